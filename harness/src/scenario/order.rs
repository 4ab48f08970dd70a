//! The order in which trials run.

/// Case ids of all rounds: forward in even rounds, backward in odd ones (A B C, C B A, A B C, …), so that a machine
/// that slowly warms up or throttles treats all cases alike.
pub fn interleaved(cases: &[String], trials: u32) -> Vec<String> {
    (0..trials)
        .flat_map(|round| {
            let mut ids = cases.to_vec();
            if round % 2 == 1 {
                ids.reverse();
            }
            ids
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_round_runs_backwards() {
        let order = interleaved(&["a".into(), "b".into(), "c".into()], 3).concat();
        assert_eq!(order, "abccbaabc");
    }
}
