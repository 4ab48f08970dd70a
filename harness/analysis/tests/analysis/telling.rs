//! What a report owes its reader beside the figures: what was not looked into, what lies in a figure, and what an interval is worth.

use chronibench_analysis::{
    RunSummary, TrialLog, report, summarise,
    summary::{Outcome, summary_table},
};
use chronibench_protocol::{
    audit::{AuditArgs, Findings, Peak},
    record::{Case, GpuSample, Packing, Resolved, Skipped, SweepCell, Verdict},
    spec::Method,
};
use serde_json::json;

use crate::testing::{MEASURE, case, comparison, resolved, trial};

const MS: u64 = 1_000_000;

fn pair() -> [Case; 2] {
    ["chronicals", "candle"].map(|arm| case(arm, Method::Full {}, Packing::None))
}

/// `trials` rounds of two cases, the second of which takes twice as long, and a comparison with a target of 1.5.
fn run(trials: u32) -> (Resolved, Vec<TrialLog>) {
    let cases = pair();
    let mut r = resolved(cases.to_vec(), trials);
    r.comparisons = vec![comparison(&cases[0], &cases[1], Some(1.5), &[])];
    let logs = (0..trials)
        .flat_map(|round| {
            [trial(&cases[0], round, 20 + u64::from(round)), trial(&cases[1], round, 40 + u64::from(round))]
        })
        .collect();
    (r, logs)
}

fn text_of(r: &Resolved, logs: &[TrialLog]) -> (RunSummary, String) {
    let summary = summarise(r, logs);
    let text = report::report_md(r, &summary, &json!({}));
    (summary, text)
}

/// Makes a step longer, and all that comes behind it later, on both clocks.
fn stretch(log: &mut TrialLog, step: u32, by_ms: u64) {
    for s in log.steps.iter_mut().filter(|s| s.event.step >= step) {
        s.recv_ns += by_ms * MS;
        s.event.end_ns += by_ms * MS;
        if s.event.step > step {
            s.event.start_ns += by_ms * MS;
        }
    }
    for w in log.windows.iter_mut().filter(|w| w.event.last_step >= step) {
        w.recv_ns += by_ms * MS;
        w.event.end_ns += by_ms * MS;
        if w.event.first_step > step {
            w.event.start_ns += by_ms * MS;
        }
    }
}

#[test]
fn audits_that_were_not_made_are_told_at_the_head() {
    let (mut r, mut logs) = run(2);
    let head = |r: &Resolved, logs: &[TrialLog]| {
        let (summary, text) = text_of(r, logs);
        let line = text.lines().find(|l| l.starts_with("**")).unwrap().to_string();
        (line, report::notes(r, &summary).join("\n"))
    };
    r.audit = Some(AuditArgs { steps: 0, ..AuditArgs::default() });
    let (line, notes) = head(&r, &logs);
    let told = "audits: not made (audit.steps is 0), speed of light: not measured";
    assert!(line.contains(told) && notes.contains(told), "{line}\n{notes}");
    r.audit = None;
    assert!(head(&r, &logs).0.contains("audits: not made (the record asks for none)"));
    // With the machine's rate, that audit alone is made.
    for log in &mut logs {
        let peak = Some(Peak { gflops: 100.0, method: "a product".into() });
        log.audit = Some(Box::new(Findings { peak, ..Findings::default() }));
    }
    let (line, _) = head(&r, &logs);
    assert!(line.contains("audits: not made") && !line.contains("speed of light"), "{line}");
}

#[test]
fn steps_that_are_slow_in_most_trials_are_told_with_what_the_figures_are_without() {
    let (r, mut logs) = run(4);
    let steady = summarise(&r, &logs);
    assert_eq!(
        (&steady.cases[1].slow_steps, steady.comparisons[0].result.speed_without_slow_steps),
        (&None, None)
    );
    let step = MEASURE.untimed_steps + 5;
    // In three trials of four, and another step in one alone, which is a neighbour's doing.
    for log in logs.iter_mut().filter(|l| l.case().starts_with("candle")).take(3) {
        stretch(log, step, 400);
    }
    stretch(&mut logs[7], step + 3, 400);
    let (summary, text) = text_of(&r, &logs);
    let slow = summary.cases[1].slow_steps.as_ref().unwrap();
    assert_eq!((slow.steps.len(), slow.steps[0].step, slow.steps[0].trials, slow.of), (1, step, 3, 4));
    assert!((slow.steps[0].seconds.0 - 0.44).abs() < 1e-9 && (slow.steps[0].usual_s - 0.041).abs() < 1e-9);
    let share = 0.44 / (24.0 * 0.04 + 0.4);
    assert!((slow.share.1 - share).abs() < 1e-9, "{:?}", slow.share);
    let result = &summary.comparisons[0].result;
    let (with, without) = (result.speed.unwrap().median, result.speed_without_slow_steps.unwrap().median);
    let before = steady.comparisons[0].result.speed.unwrap().median;
    assert!(with > 1.3 * before, "{with}");
    assert!((without / before - 1.0).abs() < 0.03, "{without} and {before}");
    let head = format!("step {step} takes 0.44 to 0.44 s").replace("0.44 to 0.44", "0.44");
    for words in
        [&head, " in 3 of 4 trials (0.04 s at the median)", "if the steps that are slow in most trials"]
    {
        assert!(text.contains(words), "'{words}' is not in:\n{text}");
        assert!(report::notes(&r, &summary).join("\n").contains(words), "{words}");
    }
    let stored = serde_json::to_string(&summary).unwrap();
    assert_eq!(serde_json::from_str::<RunSummary>(&stored).unwrap(), summary);
    let untouched = serde_json::to_string(&steady).unwrap();
    assert!(!untouched.contains("slow_steps"), "what does not recur leaves no trace");
}

#[test]
fn a_single_trial_tells_no_recurrence() {
    let (r, mut logs) = run(1);
    stretch(&mut logs[1], MEASURE.untimed_steps + 5, 400);
    assert_eq!(summarise(&r, &logs).cases[1].slow_steps, None);
}

fn on_gpu(log: &mut TrialLog, bytes: u64) {
    for sample in &mut log.samples {
        sample.gpu = Some(GpuSample {
            process_bytes: bytes,
            device_bytes: bytes,
            power_mw: 100_000,
            energy_mj: 0,
            sm_mhz: 1500,
            temp_c: 50,
            throttle_mask: 0,
        });
    }
}

#[test]
fn memory_is_named_by_what_it_is_and_two_kinds_have_no_ratio() {
    let (r, mut logs) = run(3);
    assert!(text_of(&r, &logs).1.contains("| peak RSS ratio |"));
    for (i, log) in logs.iter_mut().enumerate() {
        on_gpu(log, if i % 2 == 0 { 2 << 30 } else { 1 << 30 });
    }
    let (summary, text) = text_of(&r, &logs);
    assert!(text.contains("| peak GPU memory ratio |") && text.contains("| 2.00× |"), "{text}");
    assert_eq!(summary.comparisons[0].result.memory.unwrap().median, 2.0);
    logs.iter_mut().step_by(2).for_each(|log| on_gpu(log, 0));
    let summary = summarise(&r, &logs);
    assert_eq!(summary.comparisons[0].result.verdict, Some(Verdict::Valid));
    assert_eq!(summary.comparisons[0].result.memory, None, "resident set over GPU memory is no ratio");
}

#[test]
fn brackets_of_few_trials_are_their_range() {
    for (trials, rates) in
        [(1, "real tokens/s"), (3, "real tokens/s [range of 3]"), (6, "real tokens/s [95 %]")]
    {
        let (r, logs) = run(trials);
        let (summary, text) = text_of(&r, &logs);
        assert_eq!(summary_table(&summary)[0][2], rates);
        assert!(text.contains(&format!("| {rates} |")), "{text}");
        assert_eq!(text.contains("range: that of"), trials == 3, "{text}");
    }
    // Of three rounds two have both sides: the caveat is of what was used.
    let (r, mut logs) = run(3);
    logs[0].done = None;
    let (_, text) = text_of(&r, &logs);
    assert!(text.contains("real tokens/s [range of 2 to 3]"), "{text}");
    assert!(
        text.contains("that of 2, the fewest here, holds the true median with a probability of 50.0 %"),
        "{text}"
    );
}

#[test]
fn a_target_needs_five_pairs() {
    for (trials, outcome) in [(3, Outcome::Unclear), (4, Outcome::Unclear), (5, Outcome::Reached)] {
        let (r, logs) = run(trials);
        let (summary, text) = text_of(&r, &logs);
        assert_eq!(summary.comparisons[0].outcome, Some(outcome), "{trials}");
        let told = text.contains(&format!("unclear: pairs {trials}, needed 5"));
        assert_eq!(told, outcome == Outcome::Unclear, "{text}");
    }
}

#[test]
fn a_side_that_fails_more_often_than_not_is_not_compared() {
    let (r, mut logs) = run(5);
    // Two of five are left on one side, and then three.
    for log in logs.iter_mut().skip(1).step_by(2).take(3) {
        log.done = None;
    }
    let (summary, text) = text_of(&r, &logs);
    let result = &summary.comparisons[0].result;
    assert_eq!((result.verdict, result.speed), (Some(Verdict::Error), None));
    assert!(
        result.reasons[0].contains("2 valid trials of 5, which is fewer than half"),
        "{:?}",
        result.reasons
    );
    assert!(text.contains("| 5/5 VALID / 2/5 ERROR |"), "{text}");
    let (r, mut logs) = run(5);
    logs.iter_mut().skip(1).step_by(2).take(2).for_each(|log| log.done = None);
    let (summary, text) = text_of(&r, &logs);
    assert_eq!(summary.comparisons[0].result.verdict, Some(Verdict::Valid));
    assert!(text.contains("| 5/5 VALID / 3/5 ERROR |"), "{text}");
}

#[test]
fn a_sweep_of_some_cells_says_so() {
    let (mut r, logs) = run(1);
    r.cases[1].sweep =
        Some(SweepCell { of: "candle/full/padded".into(), values: Default::default(), sets: Vec::new() });
    assert!(text_of(&r, &logs).1.contains("Every cell ran once."));
    let left_out =
        |what: &str| Skipped { what: what.into(), why: "not selected".into(), hint: "none".into() };
    r.skipped =
        ["candle@a/full/padded", "candle@b/full/padded", "candle@a/lora/padded", "other@a/full/padded"]
            .map(left_out)
            .to_vec();
    let (_, text) = text_of(&r, &logs);
    assert!(text.contains("1 of 3 cells selected") && !text.contains("Every cell ran once."), "{text}");
}

#[test]
fn how_weights_are_rounded_is_a_row() {
    let compare = |master: &str, runner: &str, told: Option<&str>, declared: &[&str]| {
        let (mut r, mut logs) = run(2);
        r.cases[1].runner = runner.into();
        let cases = r.cases.clone();
        r.comparisons = vec![comparison(&cases[0], &cases[1], None, declared)];
        for (i, log) in logs.iter_mut().enumerate() {
            let hello = &mut log.hello.as_mut().unwrap().event;
            hello.precision.weights = "bf16".into();
            if i % 2 == 1 {
                hello.precision.master = master.into();
                hello.settings.extend(told.map(|how| ("weight_rounding".to_string(), how.into())));
            }
        }
        let (summary, text) = text_of(&r, &logs);
        (summary.comparisons[0].result.clone(), text)
    };
    let (result, text) = compare("none", "trl", None, &["precision"]);
    assert_eq!(result.verdict, Some(Verdict::Valid), "{:?}", result.reasons);
    let row =
        "| `precision.rounding` | stochastic | nearest | declared difference: rounding of weights in bf16 |";
    assert!(text.contains(row), "{text}");
    let (result, _) = compare("none", "trl", None, &[]);
    assert_eq!(result.verdict, Some(Verdict::NotComparable), "undeclared, it is another training");
    // Of a program whose optimizer is not known nothing is said, unless it tells.
    let (result, text) = compare("none", "llmq", None, &[]);
    assert_eq!(result.verdict, Some(Verdict::Valid), "{:?}", result.reasons);
    assert!(
        text.contains("| `precision.rounding` | stochastic | – | rounding of weights in bf16: not told"),
        "{text}"
    );
    let (result, text) = compare("none", "llmq", Some("stochastic"), &[]);
    assert!(result.verdict == Some(Verdict::Valid) && !text.contains("precision.rounding` |"), "{text}");
    let (_, text) = compare("f32", "llmq", None, &["precision"]);
    assert!(text.contains("stochastic | nearest, of masters |"), "{text}");
}
