//! The order in which trials run.

use chronibench_protocol::record::Case;

/// Case ids of all rounds: forward in even rounds, backward in odd ones (A B C, C B A, A B C, …), so that a machine
/// that slowly warms up or throttles treats all cases alike.
///
/// The first round has every cell of a sweep; in the others the id of the sweep, where its first cell stood, is a place for whichever
/// cell turns out best.
pub fn interleaved(cases: &[Case], trials: u32) -> Vec<String> {
    let mut later: Vec<String> = Vec::new();
    for case in cases {
        let id = case.sweep.as_ref().map_or(&case.id, |s| &s.of);
        if !later.contains(id) {
            later.push(id.clone());
        }
    }
    let first = cases.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
    (0..trials)
        .flat_map(|round| {
            let mut ids = if round == 0 { first.clone() } else { later.clone() };
            if round % 2 == 1 {
                ids.reverse();
            }
            ids
        })
        .collect()
}

/// The round of a place in the order: how often its case, or its sweep's best, has had its turn before.
pub fn round(order: &[String], position: usize, cases: &[Case]) -> u32 {
    let id = &order[position];
    let before = order[..position].iter().filter(|o| *o == id).count() as u32;
    // The best cell had its first trial as a cell.
    if cases.iter().any(|c| c.id == *id) { before } else { before + 1 }
}

#[cfg(test)]
mod tests {
    use chronibench_protocol::{
        record::{BatchArgs, Packing, SweepCell},
        spec::Method,
    };

    use super::*;

    fn case(id: &str, of: Option<&str>) -> Case {
        let sweep =
            of.map(|of| SweepCell { of: of.into(), values: Default::default(), sets: Default::default() });
        Case {
            id: id.into(),
            arm: id.into(),
            runner: "mock".into(),
            axes: Default::default(),
            method: Method::Full {},
            train: Default::default(),
            batch: BatchArgs {
                packing: Packing::None,
                per_device_train_batch_size: 1,
                gradient_accumulation_steps: 1,
            },
            kernels: Default::default(),
            device: "cpu".into(),
            precision: Default::default(),
            recompute: Default::default(),
            offload: false,
            memory_limit_gb: None,
            options: Default::default(),
            ablation: None,
            sweep,
        }
    }

    #[test]
    fn every_second_round_runs_backwards() {
        let order = interleaved(&["a", "b", "c"].map(|id| case(id, None)), 3).concat();
        assert_eq!(order, "abccbaabc");
    }

    #[test]
    fn a_sweep_has_one_place_after_the_first_round() {
        let cases = [case("a", None), case("x", Some("s")), case("y", Some("s")), case("b", None)];
        let order = interleaved(&cases, 3);
        assert_eq!(order.concat(), "axybbsaasb");
        let rounds: Vec<u32> = (0..order.len()).map(|at| round(&order, at, &cases)).collect();
        assert_eq!(rounds, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]);
    }
}
