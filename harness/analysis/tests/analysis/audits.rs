//! Audits of what the harness found out by itself.

use chronibench_analysis::{
    Reason, TrialLog,
    judge::audit::{Audit, Check, Outcome, checks},
    judge::judge,
};
use chronibench_protocol::{
    audit::{Findings, Probe, Replay, TensorAgreement, TensorUpdate},
    record::Packing,
    spec::Method,
};

use crate::testing::{case, trial};

const NAME: &str = "model.norm.weight";

/// An honest trial whose norm did not move in the first step, as little as the reference's.
fn still(too_coarse: f64, agreement: Option<f64>) -> TrialLog {
    let mut log = trial(&case("chronicals", Method::Full {}, Packing::Bfd), 0, 30);
    let update = TensorUpdate {
        name: NAME.into(),
        expected: 1e-8,
        expected_sum: 4e-8,
        first: Some(0.0),
        first_moved: 0.0,
        travel: 1.2e-7,
        moved: 0.3,
        from_zero: false,
        too_coarse,
    };
    let way = TensorAgreement {
        name: NAME.into(),
        first_cosine: None,
        first_ratio: None,
        cosine: agreement,
        ratio: agreement,
    };
    let losses: Vec<f64> = log.steps.iter().map(|s| s.event.loss).collect();
    let replay = Replay { reference: "cpu, f32".into(), losses, grad_norms: Vec::new(), tensors: vec![way] };
    log.audit =
        Some(Box::new(Findings { updates: vec![update], replay: Some(replay), ..Findings::default() }));
    log
}

fn of(log: &TrialLog, audit: Audit) -> Check {
    checks(log).into_iter().find(|c| c.audit == audit).expect("the findings allow it")
}

#[test]
fn an_update_that_rounding_swallows_is_no_fault_where_the_replay_is_equal() {
    // Two fifths of the tensor have no number near enough: too few to tell it from a tensor that does not train by that alone.
    let found = of(&still(0.4, Some(1.0)), Audit::Update);
    assert_eq!(found.outcome, Outcome::Unclear, "{found:?}");
    assert!(found.figure.contains("below rounding") && found.figure.contains(NAME), "{found:?}");
    // The reference went elsewhere.
    assert_eq!(of(&still(0.4, Some(0.5)), Audit::Update).outcome, Outcome::Failed);
    // The format could have shown the update: an arm that is its own reference is not believed.
    assert_eq!(of(&still(0.0, Some(1.0)), Audit::Update).outcome, Outcome::Failed);
}

#[test]
fn a_tensor_that_rounding_keeps_where_it_is_need_not_change_in_an_audit_trial() {
    let stuck = |too_coarse| {
        let mut log = still(too_coarse, None);
        for t in log.weights.as_mut().unwrap().iter_mut().filter(|t| t.name == NAME) {
            (t.delta_norm, t.changed) = (0.0, 0);
        }
        judge(&log).reasons
    };
    assert_eq!(stuck(1.0), []);
    assert!(stuck(0.0).contains(&Reason::Unchanged(vec![NAME.into()])));
}

#[test]
fn a_loss_that_stays_is_no_fault_where_the_reference_has_it_too() {
    let probed = |reference| {
        let mut log = still(0.4, Some(1.0));
        let probe = Probe { samples: 8, before: 2.5, after: 2.5, std_error: 0.0, reference };
        log.audit.as_mut().unwrap().probe = Some(probe);
        of(&log, Audit::Probe).outcome
    };
    assert_eq!(probed(Some(2.5)), Outcome::Unclear);
    assert_eq!(probed(Some(2.4)), Outcome::Failed);
    assert_eq!(probed(None), Outcome::Failed);
}
