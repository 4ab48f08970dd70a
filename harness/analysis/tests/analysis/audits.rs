//! Audits of what the harness found out by itself.

use chronibench_analysis::{
    Reason, TrialLog,
    judge::audit::{Audit, Check, Outcome, checks, judge_in_run},
    judge::judge,
    summarise,
};
use chronibench_protocol::{
    audit::{AuditArgs, Findings, Probe, Replay, TensorAgreement, TensorUpdate},
    record::{Packing, Skipped, Verdict},
    spec::Method,
};

use crate::testing::{case, resolved, trial};

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

#[test]
fn a_clock_that_could_be_off_unseen_says_by_how_much() {
    let of_ms = |ms| trial(&case("chronicals", Method::Full {}, Packing::Bfd), 0, ms);
    // 24 steps of 30 ms.
    let found = of(&of_ms(30), Audit::TimedRegion);
    assert_eq!(found.outcome, Outcome::Unclear);
    assert_eq!(
        found.figure,
        "0.72 s were timed, of which the arm's clock could be off by 0.14 s (18.9 %) unseen"
    );
    assert_eq!(judge(&of_ms(30)).reasons, []);
    assert!(
        checks(&of_ms(90)).iter().all(|c| c.audit != Audit::TimedRegion),
        "long enough to hold it to 5 %"
    );
}

#[test]
fn an_audit_that_the_arm_gave_nothing_for_is_held_against_it_and_one_of_the_harness_is_not() {
    let missing = |what: &str| Skipped { what: what.into(), why: "no file".into(), hint: "-".into() };
    let with = |found: Findings| {
        let mut log = trial(&case("chronicals", Method::Full {}, Packing::Bfd), 0, 30);
        log.audit = Some(Box::new(found));
        judge(&log).reasons
    };
    let all = || ["update", "isolation"].map(missing).to_vec();
    assert_eq!(with(Findings { skipped: all(), ..Findings::default() }), []);
    let refused = with(Findings { refused: all(), ..Findings::default() });
    let by: Vec<Audit> = refused.iter().map(Reason::audit).collect();
    assert_eq!(by, [Audit::Update, Audit::Isolation]);
}

#[test]
fn a_case_without_the_audit_trial_that_is_asked_for_is_not_valid() {
    let log = trial(&case("chronicals", Method::Full {}, Packing::Bfd), 0, 30);
    assert_eq!(judge_in_run(&log, None, false).verdict, Verdict::Valid);
    assert_eq!(judge_in_run(&log, None, true).reasons, [Reason::NoAuditTrial]);
    let mut run = resolved(vec![case("chronicals", Method::Full {}, Packing::Bfd)], 1);
    assert_eq!(summarise(&run, std::slice::from_ref(&log)).verdict, Some(Verdict::Valid));
    run.audit = Some(AuditArgs::default());
    assert_eq!(summarise(&run, &[log]).verdict, Some(Verdict::Invalid));
}
