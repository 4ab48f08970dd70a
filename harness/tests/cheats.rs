//! The corpus of lies: each is found by the audit that is meant for it, and nobody else is accused.
//!
//! The table is printed by `cargo test --release -p chronibench --test cheats -- --nocapture`.

mod common;

use std::{collections::BTreeSet, path::Path};

use chronibench::store::Store;
use chronibench_analysis::{
    TrialLog,
    judge::audit::{Audit, judge_with},
};
use chronibench_protocol::record::Verdict;
use common::chronibench;

/// Arm of `scenarios/cheats.yaml` → the audit meant for it.
const MEANT: [(&str, Audit); 25] = [
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
    ("impossible-speed", Audit::SpeedOfLight),
];

#[test]
fn every_lie_is_found_by_the_audit_meant_for_it_and_no_honest_arm_is_accused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/cheats.yaml");
    let ran = chronibench().arg("run").arg(scenario).arg("--out").arg(&out).output().unwrap();
    assert_eq!(ran.status.code(), Some(3), "{}", String::from_utf8_lossy(&ran.stderr));
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
