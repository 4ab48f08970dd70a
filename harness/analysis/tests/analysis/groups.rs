//! Gradient norms by parameter group, tokens of distinct samples, and a warm-up that reaches too far.

use chronibench_analysis::{Reason, TrialLog, judge, metrics::metrics, report, summarise};
use chronibench_protocol::{
    record::{Packing, Verdict},
    spec::Method,
};
use serde_json::json;

use crate::testing::{case, lora, resolved, trial};

/// Norms of both groups at every step; B is 0 at the start, and A has no gradient before B has moved.
fn with_norms() -> TrialLog {
    let mut log = trial(&case("chronicals", lora(), Packing::Bfd), 0, 25);
    let mut moved = false;
    for s in &mut log.steps {
        let base = s.event.lr.remove("decay").unwrap();
        s.event.lr.insert("lora_A".into(), base);
        let (a, b): (f64, f64) = if moved { (0.9, 1.2) } else { (0.0, 1.5) };
        s.event.grad_norm_by_group = [("lora_A".into(), a), ("lora_B".into(), b)].into();
        s.event.grad_norm = a.hypot(b);
        moved |= s.event.lr["lora_B"] > 0.0;
    }
    log
}

fn wrong(plant: impl Fn(&mut TrialLog)) -> String {
    let mut log = with_norms();
    plant(&mut log);
    let judgement = judge(&log);
    assert_eq!(judgement.verdict, Verdict::Invalid);
    let found = judgement.reasons.iter().find(|r| matches!(r, Reason::GroupNorms { .. }));
    found.unwrap_or_else(|| panic!("{:?}", judgement.reasons)).to_string()
}

#[test]
fn norms_by_group_that_fit_are_let_pass_and_none_is_asked_for() {
    let judgement = judge(&with_norms());
    assert_eq!(judgement.verdict, Verdict::Valid, "{:?}", judgement.reasons);
}

#[test]
fn a_group_without_a_gradient_is_found_though_the_global_norm_is_fine() {
    let dead = wrong(|l| {
        for s in l.steps.iter_mut().skip(6) {
            s.event.grad_norm_by_group.insert("lora_A".into(), 0.0);
            s.event.grad_norm_by_group.insert("lora_B".into(), 1.5);
            s.event.grad_norm = 1.5;
        }
    });
    assert!(dead.contains("0 in lora_A at step 6"), "{dead}");
    let never = wrong(|l| {
        l.steps[0].event.grad_norm_by_group = [("lora_A".into(), 1.0), ("lora_B".into(), 0.0)].into();
        l.steps[0].event.grad_norm = 1.0;
    });
    assert!(never.contains("0 in lora_B at step 0"), "{never}");
}

#[test]
fn groups_must_add_up_and_be_those_of_the_rates() {
    let sum = wrong(|l| l.steps[9].event.grad_norm = 1.6);
    assert!(sum.contains("1.5 of all groups and 1.6") && sum.contains("step 9"), "{sum}");
    let lost = wrong(|l| {
        l.steps[9].event.grad_norm_by_group = [("lora_B".into(), 1.5)].into();
    });
    assert!(lost.contains("norms of lora_B and learning rates of lora_A, lora_B"), "{lost}");
}

#[test]
fn a_warm_up_and_repeated_samples_are_told() {
    let cases = vec![case("chronicals", Method::Full {}, Packing::Bfd)];
    let mut log = trial(&cases[0], 0, 25);
    log.unique = Some(9_500);
    assert_eq!(metrics(&log).warm_timed_steps, 0);
    // A longer trial, whose first steps take three times as long: six of them after the three that are not timed.
    let template = log.steps.last().unwrap().clone();
    while log.steps.len() < 40 {
        log.steps.push(template.clone());
    }
    for (i, s) in log.steps.iter_mut().enumerate() {
        s.event.start_ns = 1_000 * i as u64;
        s.event.end_ns = s.event.start_ns + if i < 9 { 900 } else { 300 + i as u64 % 3 };
    }
    assert_eq!(metrics(&log).warm_timed_steps, 6);
    let r = resolved(cases, 1);
    let mut summary = summarise(&r, &[log]);
    let trial = &mut summary.cases[0].trials[0];
    trial.verdict = Verdict::Valid;
    summary.cases[0].valid = 1;
    let text = report::report_md(&r, &summary, &json!({}));
    assert!(text.contains("(6 timed steps): raise `measure.untimed_steps`"), "{text}");
    assert!(text.contains("| unique/real |") && text.contains("| 41.7 % |"), "{text}");
}
