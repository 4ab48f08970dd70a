//! The corpus of lies: each is found by the audit that is meant for it, and nobody else is accused.
//!
//! The table is printed by `cargo test --release -p chronibench --test cheats -- --nocapture`.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use chronibench::{evidence::verify, store::Store};
use chronibench_analysis::{
    TrialLog,
    judge::audit::{Audit, judge_with},
    summary::CaseSummary,
};
use chronibench_protocol::record::Verdict;
use common::{chronibench, names};

/// Arm of `scenarios/cheats.yaml` → the audit meant for it.
const MEANT: [(&str, Audit); 28] = [
    ("zero-gradient", Audit::Update),
    ("frozen-tensor", Audit::Update),
    ("frozen-embedding", Audit::Update),
    ("wrong-learning-rate", Audit::Update),
    ("dead-lora-plus", Audit::Update),
    ("swapped-lora-plus", Audit::Update),
    ("lower-rank", Audit::Update),
    ("copied-weights", Audit::Update),
    ("skipped-step", Audit::Replay),
    ("skipped-layer", Audit::Replay),
    ("stale-batch", Audit::Replay),
    ("labels-unshifted", Audit::Replay),
    ("loss-on-padding", Audit::Replay),
    ("untied-head", Audit::Replay),
    ("no-clipping", Audit::Replay),
    ("fewer-micro-batches", Audit::Replay),
    ("truncated-documents", Audit::Replay),
    ("duplicated-data", Audit::Replay),
    ("noise", Audit::Probe),
    ("cross-document", Audit::Isolation),
    ("early-clock", Audit::TimedRegion),
    ("asynchronous-timer", Audit::TimedRegion),
    ("padding-counted", Audit::TokenLedger),
    ("replayed-events", Audit::BatchDigest),
    ("found-answers", Audit::Update),
    ("kept-back", Audit::Update),
    ("refused-row", Audit::Isolation),
    ("impossible-speed", Audit::SpeedOfLight),
];

/// Runs the corpus, or what the arguments select of it.
fn run(out: &Path, args: &[&str]) {
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/cheats.yaml");
    let ran = chronibench().arg("run").arg(scenario).args(args).arg("--out").arg(out).output().unwrap();
    assert_eq!(ran.status.code(), Some(3), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// The verdict of each arm's only timed trial, with its reasons.
fn verdicts(out: &Path) -> BTreeMap<String, (Verdict, String)> {
    let summary = Store::open(out).unwrap().summary().unwrap();
    let of = |c: &CaseSummary| (c.arm.clone(), (c.trials[0].verdict, c.trials[0].reasons.join("; ")));
    summary.cases.iter().map(of).collect()
}

/// Half a second of hidden work was once let pass: more than all that these steps take.
#[test]
fn a_clock_that_lies_is_found_where_little_is_timed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let short = ["untimed_steps=6", "timed_steps=4", "window_steps=2"].map(|s| format!("measure.{s}"));
    let select = ["-k", "full/on", "--arm", "honest", "--arm", "early-clock"].map(String::from);
    let set = short.into_iter().flat_map(|s| ["--set".to_string(), s]);
    let args: Vec<String> = select.into_iter().chain(set).collect();
    run(&out, &args.iter().map(String::as_str).collect::<Vec<_>>());
    let found = verdicts(&out);
    assert_eq!(found["honest"], (Verdict::Valid, String::new()));
    let (verdict, why) = &found["early-clock"];
    assert!(*verdict == Verdict::Invalid && why.contains("expected the arm's clock to agree"), "{why}");
    // What so little can show is said.
    let text = std::fs::read_to_string(out.join("results.json")).unwrap();
    assert!(text.contains("the arm's clock could be off by"), "{text}");
}

#[test]
fn an_audit_trial_that_is_taken_out_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run(&out, &["-k", "full/on", "--arm", "honest", "--arm", "wrong-learning-rate"]);
    common::take_out(&out, "audit-wrong-learning-rate_full_on");
    chronibench().arg("report").arg(&out).assert().code(3);
    let (verdict, why) = &verdicts(&out)["wrong-learning-rate"];
    assert!(*verdict == Verdict::Invalid && why.contains("expected an audit trial of the case"), "{why}");
    let found = verify(&out).unwrap();
    let whats: Vec<&str> = found.findings.iter().map(|f| f.what.as_str()).collect();
    let has = |words: &str| whats.iter().any(|w| w.contains(words));
    assert!(has("asks for an audit trial of wrong-learning-rate/full/on"), "{whats:#?}");
    // The trial behind it was linked to it.
    assert!(has("behind the trial before it"), "{whats:#?}");
}

#[test]
fn every_lie_is_found_by_the_audit_meant_for_it_and_no_honest_arm_is_accused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run(&out, &[]);
    assert_eq!(names(dir.path()), ["out"], "nothing of the references is left");
    let logs = Store::open(&out).unwrap().load().unwrap().logs;
    let timed: Vec<&TrialLog> = logs.iter().filter(|l| !l.is_audit()).collect();
    let (mut wrong, mut found, mut honest) = (Vec::new(), 0, 0);
    println!("| cheat | audit meant for it | found by |\n| --- | --- | --- |");
    for log in &timed {
        let audit = logs.iter().find(|a| a.is_audit() && a.case() == log.case());
        let judgement = judge_with(log, audit);
        let by: BTreeSet<Audit> = judgement.reasons.iter().map(|r| r.audit()).collect();
        let arm = log.case().split('/').next().unwrap();
        let names: Vec<&str> = by.iter().map(|a| a.name()).collect();
        let Some((_, meant)) = MEANT.iter().find(|(name, _)| *name == arm) else {
            honest += 1;
            if judgement.verdict != Verdict::Valid {
                let reasons: Vec<String> = judgement.reasons.iter().map(ToString::to_string).collect();
                wrong.push(format!("{} is honest and accused: {}", log.case(), reasons.join("; ")));
            }
            continue;
        };
        println!("| {arm} | {} | {} |", meant.name(), names.join(", "));
        if judgement.verdict == Verdict::Invalid && by.contains(meant) {
            found += 1;
        } else {
            wrong.push(format!("{arm}: {:?}, by {names:?}, not by {}", judgement.verdict, meant.name()));
        }
    }
    println!("{found} of {} cheats found, {honest} honest cases", MEANT.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((found, honest), (MEANT.len(), 10));

    // The same once more from what is stored.
    let again = chronibench().arg("audit").arg(&out).output().unwrap();
    let text = String::from_utf8_lossy(&again.stdout);
    assert_eq!(again.status.code(), Some(3), "{text}");
    assert!(text.contains("dead-lora-plus") && text.contains("recounted from the inputs"), "{text}");
    assert!(!text.contains("published as"), "{text}");
}
