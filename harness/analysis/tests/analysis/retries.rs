//! Trials that a fault of the machine ended are shown, and take nobody's place.

use chronibench_analysis::{
    RunSummary, TrialLog,
    gate::pairs::{self, BASELINE, CANDIDATE, on_side},
    judge::faults::environment_fault,
    summarise,
};
use chronibench_protocol::{
    record::{Case, Exit, Packing, Verdict},
    spec::Method,
};

use crate::testing::{case, resolved, trial};

/// A trial that found the GPU held after so many steps.
fn held(case: &Case, round: u32, steps: usize) -> TrialLog {
    let mut log = trial(case, round, 30);
    log.steps.truncate(steps);
    (log.windows, log.done) = (Vec::new(), None);
    let stderr_tail = "CUDA error: all CUDA-capable devices are busy or unavailable".into();
    log.exit = Some(Exit { code: Some(1), stderr_tail, ..Exit::default() });
    log
}

fn again(mut log: TrialLog) -> TrialLog {
    log.header.as_mut().unwrap().attempt = 1;
    log
}

fn on(side: &str) -> Case {
    let case = case("chronicals", Method::Full {}, Packing::Bfd);
    Case { id: on_side(side, &case.id), ..case }
}

fn run(rounds: u32, logs: &[TrialLog]) -> (String, RunSummary) {
    let (baseline, candidate) = (on(BASELINE), on(CANDIDATE));
    let id = case("chronicals", Method::Full {}, Packing::Bfd).id;
    (id, summarise(&resolved(vec![baseline, candidate], rounds), logs))
}

#[test]
fn a_pair_of_a_gate_is_of_the_trials_that_count() {
    let (a, b) = (on(BASELINE), on(CANDIDATE));
    let logs =
        [held(&a, 0, 2), again(trial(&a, 0, 30)), trial(&b, 0, 20), trial(&b, 1, 20), trial(&a, 1, 30)];
    let (id, summary) = run(2, &logs);
    let live = pairs::live(&summary, &id, 0..2);
    assert_eq!((live.pairs.len(), live.problems), (2, Vec::new()));
    assert_eq!(pairs::played(&summary), Some((2, 2)));
    let stored = pairs::stored(&summary, &summary, &a.id, Some(&b.id));
    assert_eq!((stored.pairs.len(), stored.problems), (2, Vec::new()));
    assert!(stored.pairs.iter().all(|(then, now)| then == now), "{:?}", stored.pairs);
}

#[test]
fn another_attempt_for_nothing_does_not_undo_the_first() {
    let a = on(BASELINE);
    let slow = again(trial(&a, 0, 20));
    let (_, summary) = run(1, &[held(&a, 0, 2), slow.clone()]);
    assert_eq!(summary.cases[0].verdict, Some(Verdict::Valid));
    // It was an arm that had begun to be timed, or one that failed for a reason of its own.
    let mut own = held(&a, 0, 2);
    own.exit.as_mut().unwrap().stderr_tail = "no idea".into();
    for first in [held(&a, 0, 5), own] {
        assert_eq!(environment_fault(&first), None);
        let (_, summary) = run(1, &[first, slow.clone()]);
        assert_eq!(summary.cases[0].verdict, Some(Verdict::Error));
    }
}
