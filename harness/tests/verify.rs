//! A stored run that was changed does not verify, whatever the change.

mod common;

use std::path::{Path, PathBuf};

use chronibench::evidence::{Standing, Verification, verify};
use common::{HEAD, Ran, chronibench, names};
use tempfile::TempDir;

/// One run for all changes: two arms, two trials each.
fn run() -> Ran {
    let arms = "arms:\n  one: { runner: mock, mock: { step_ms: 5 } }\n  two: { runner: mock, mock: { step_ms: 5 } }\n";
    let ran = Ran::new(&format!("{HEAD}{arms}only: [{{ method: full, packing: on }}]\n"), &[]);
    assert_eq!(ran.code, 0, "{}", ran.output);
    ran
}

fn copy(from: &Path) -> TempDir {
    fn tree(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for name in names(from) {
            let (from, to) = (from.join(&name), to.join(&name));
            if from.is_dir() {
                tree(&from, &to);
            } else {
                std::fs::copy(from, to).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    tree(from, dir.path());
    dir
}

/// What is found in a copy after a change; the change is given the folder of events, too.
fn after(ran: &Ran, change: impl FnOnce(&Path, &Path)) -> Verification {
    let dir = copy(&ran.path(""));
    change(dir.path(), &dir.path().join("events"));
    verify(dir.path()).unwrap()
}

const FIRST: &str = "000-one_full_on.jsonl";
const SECOND: &str = "001-two_full_on.jsonl";
/// The second trial of the same case as [`FIRST`].
const AGAIN: &str = "003-one_full_on.jsonl";

fn edit(file: PathBuf, change: impl FnOnce(Vec<&str>) -> Vec<String>) {
    let text = std::fs::read_to_string(&file).unwrap();
    let lines = change(text.lines().collect());
    std::fs::write(file, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
}

fn owned(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|l| l.to_string()).collect()
}

/// Broken, and the finding names the place and the reason.
fn broken(found: &Verification, at: &str, why: &str) {
    assert_eq!(found.standing, Standing::Broken, "{at} {why}");
    let hit = found.findings.iter().any(|f| f.at.starts_with(at) && f.what.contains(why));
    assert!(hit, "no finding at {at} with '{why}': {:#?}", found.findings);
}

#[test]
fn what_was_not_changed_is_verified() {
    let ran = run();
    let found = verify(&ran.path("")).unwrap();
    assert_eq!((found.standing, found.trials), (Standing::Verified, 4), "{:#?}", found.findings);
    assert!(found.rendered >= 4 && found.lines > 40 && found.head.is_some(), "{found:?}");
    let out = chronibench().arg("verify").arg(ran.path("")).arg("--require-chain").assert().success();
    let out = String::from_utf8_lossy(&out.get_output().stdout).into_owned();
    assert!(out.starts_with("VERIFIED") && out.contains("4 trials"), "{out}");
    // The same head is in the results.
    let results = ran.results();
    assert_eq!(results["evidence"]["trials"].as_array().unwrap().len(), 4);
    // Packed events are the same events.
    let packed = after(&ran, |_, events| {
        for name in names(events) {
            common::compress(&events.join(name));
        }
    });
    assert_eq!(packed.standing, Standing::Verified, "{:#?}", packed.findings);
}

#[test]
fn every_change_of_events_is_found_where_it_is() {
    let ran = run();
    let lines = std::fs::read_to_string(ran.path("events").join(FIRST)).unwrap().lines().count();
    broken(
        &after(&ran, |_, e| {
            edit(e.join(FIRST), |l| l.iter().map(|l| l.replace("\"loss\":5.7", "\"loss\":5.6")).collect())
        }),
        "events/000-one_full_on.jsonl:",
        "does not follow the line before it",
    );
    let dropped = after(&ran, |_, e| edit(e.join(FIRST), |l| owned(&[&l[..5], &l[6..]].concat())));
    broken(&dropped, "events/000-one_full_on.jsonl:6", "its number is 6, and 5 is due");
    let reordered = after(&ran, |_, e| {
        edit(e.join(FIRST), |mut l| {
            l.swap(3, 4);
            owned(&l)
        })
    });
    broken(&reordered, "events/000-one_full_on.jsonl:4", "its number is 4, and 3 is due");
    let spliced = after(&ran, |_, e| {
        let other = std::fs::read_to_string(e.join(AGAIN)).unwrap();
        edit(e.join(FIRST), |l| owned(&[&l[..5], &[other.lines().nth(5).unwrap()], &l[6..]].concat()));
    });
    broken(&spliced, "events/000-one_full_on.jsonl:6", "does not follow the line before it");
    let cut = after(&ran, |_, e| edit(e.join(FIRST), |l| owned(&l[..l.len() - 1])));
    broken(&cut, "events/000-one_full_on.jsonl", "lines are missing");
    broken(&cut, "events/000-one_full_on.jsonl", &format!("it has {} lines", lines - 1));
    let half = after(&ran, |_, e| {
        let text = std::fs::read(e.join(FIRST)).unwrap();
        std::fs::write(e.join(FIRST), &text[..text.len() / 2]).unwrap();
    });
    assert_eq!(half.standing, Standing::Broken);
    let end = after(&ran, |_, e| {
        edit(e.join(FIRST), |l| {
            l.iter().map(|l| l.replace("\"stderr_tail\":\"\"", "\"stderr_tail\":\"x\"")).collect()
        })
    });
    broken(&end, "events/000-one_full_on.jsonl", "its last line is not the one");
}

#[test]
fn trials_cannot_be_swapped_lost_added_or_taken_from_another_run() {
    let ran = run();
    let swapped = after(&ran, |_, e| {
        std::fs::rename(e.join(FIRST), e.join("x")).unwrap();
        std::fs::rename(e.join(AGAIN), e.join(FIRST)).unwrap();
        std::fs::rename(e.join("x"), e.join(AGAIN)).unwrap();
    });
    broken(&swapped, "events/000-one_full_on.jsonl:1", "does not begin this trial of this run");
    broken(&swapped, "events/000-one_full_on.jsonl", "it is the record of trial 003-one_full_on");
    let lost = after(&ran, |_, e| std::fs::remove_file(e.join(SECOND)).unwrap());
    broken(&lost, "events/001-two_full_on.jsonl", "in the evidence and not in the folder");
    let added = after(&ran, |_, e| {
        std::fs::copy(e.join(SECOND), e.join("004-two_full_on.jsonl")).unwrap();
    });
    broken(&added, "events/004-two_full_on.jsonl", "does not begin this trial");
    broken(&added, "events/004-two_full_on.jsonl", "another trial has its position");
    let other = run();
    let taken = after(&ran, |_, e| {
        std::fs::copy(other.path("events").join(FIRST), e.join(FIRST)).unwrap();
    });
    broken(&taken, "events/000-one_full_on.jsonl:1", "does not begin this trial of this run");
}

#[test]
fn files_beside_the_events_are_held_to_them() {
    let ran = run();
    let append = |name: &'static str| {
        move |dir: &Path, _: &Path| {
            let text = std::fs::read_to_string(dir.join(name)).unwrap();
            std::fs::write(dir.join(name), text + "\n# more\n").unwrap();
        }
    };
    broken(&after(&ran, append("resolved.yaml")), "resolved.yaml", "not the file that the run began with");
    for name in ["report.md", "results.csv", "results.json", "plots/throughput.svg"] {
        broken(&after(&ran, append(name)), name, "not what the events come to");
    }
    let machine = after(&ran, |dir, _| {
        let text = std::fs::read_to_string(dir.join("environment.json")).unwrap();
        std::fs::write(dir.join("environment.json"), text.replace("\"cpu\": \"", "\"cpu\": \"better "))
            .unwrap();
    });
    broken(&machine, "environment.json", "not the file that the run began with");
    let gone = after(&ran, |dir, _| std::fs::remove_file(dir.join("evidence.json")).unwrap());
    broken(&gone, "events/000-one_full_on.jsonl", "it is chained");
    let head = after(&ran, |dir, _| {
        let text = std::fs::read_to_string(dir.join("evidence.json")).unwrap();
        let at = text.rfind("\"head\": \"").unwrap() + 9;
        let flipped = if &text[at..=at] == "0" { "1" } else { "0" };
        std::fs::write(dir.join("evidence.json"), format!("{}{flipped}{}", &text[..at], &text[at + 1..]))
            .unwrap();
    });
    broken(&head, "events/", "its last line is not the one that the evidence names");
}

/// A generator of numbers for places; not for anybody's safety.
fn numbers(mut seed: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    }
}

#[test]
fn any_flipped_byte_of_the_record_is_found() {
    let ran = run();
    let mut next = numbers(7);
    let files: Vec<String> = ran
        .names("events")
        .into_iter()
        .map(|n| format!("events/{n}"))
        .chain(
            ["resolved.yaml", "environment.json", "evidence.json", "results.json", "report.md"]
                .map(String::from),
        )
        .collect();
    for _ in 0..60 {
        let file = &files[next(files.len())];
        let mut bytes = std::fs::read(ran.path(file)).unwrap();
        let (at, bit) = (next(bytes.len()), next(7));
        bytes[at] ^= 1 << bit;
        let found = after(&ran, |dir, _| std::fs::write(dir.join(file), &bytes).unwrap());
        assert_eq!(found.standing, Standing::Broken, "bit {bit} of byte {at} of {file}");
    }
}

/// Takes the chains out of a folder, and renders it again.
fn strip(dir: &Path, events: &Path) {
    std::fs::remove_file(dir.join("evidence.json")).unwrap();
    for name in names(events) {
        edit(events.join(name), |lines| lines.iter().map(|l| unchained(l)).collect());
    }
    chronibench().arg("report").arg(dir).assert().success();
}

/// What the version before chains wrote: it knew neither them nor audits.
fn older(dir: &Path) {
    let file = dir.join("environment.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut environment: serde_json::Value = serde_json::from_str(&text).unwrap();
    environment.as_object_mut().unwrap().shift_remove("chains").expect("runs say that they are chained");
    std::fs::write(file, environment.to_string()).unwrap();
    without_audit(dir);
}

fn without_audit(dir: &Path) {
    edit(dir.join("resolved.yaml"), |lines| {
        let audit = lines.iter().position(|l| l.starts_with("audit:")).expect("runs have audits");
        let after = lines[audit + 1..].iter().position(|l| !l.starts_with(' ')).unwrap_or(0);
        owned(&[&lines[..audit], &lines[audit + 1 + after..]].concat())
    });
}

#[test]
fn a_run_that_lost_its_chains_is_broken() {
    let ran = run();
    broken(&after(&ran, strip), "evidence.json", "environment.json says that its trials have chains");
    let by_audit = after(&ran, |dir, events| {
        let file = dir.join("environment.json");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("\"chains\"", "\"links\"")).unwrap();
        strip(dir, events);
    });
    broken(&by_audit, "evidence.json", "resolved.yaml has audits");
    let dir = copy(&ran.path(""));
    strip(dir.path(), &dir.path().join("events"));
    chronibench().arg("verify").arg(dir.path()).assert().code(8);
}

#[test]
fn a_record_older_than_chains_says_so() {
    let ran = run();
    let strip = |dir: &Path, events: &Path| {
        older(dir);
        strip(dir, events);
    };
    let found = after(&ran, strip);
    assert_eq!(found.standing, Standing::NoChain, "{:#?}", found.findings);
    let dir = copy(&ran.path(""));
    strip(dir.path(), &dir.path().join("events"));
    let out = chronibench().arg("verify").arg(dir.path()).assert().success();
    let out = String::from_utf8_lossy(&out.get_output().stdout).into_owned();
    assert!(out.contains("nothing proves"), "{out}");
    chronibench().arg("verify").arg(dir.path()).arg("--require-chain").assert().code(8);
    edit(dir.path().join("events").join(FIRST), |l| owned(&l[..l.len() - 1]));
    chronibench().arg("verify").arg(dir.path()).assert().code(8);
}

/// The line as it was stored before there were chains.
fn unchained(line: &str) -> String {
    let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
    let fields = value.as_object_mut().unwrap();
    fields.shift_remove("seq");
    fields.shift_remove("prev_hash");
    value.to_string()
}

#[test]
fn no_run_folder_is_an_error_that_says_how_to_mend_it() {
    let dir = tempfile::tempdir().unwrap();
    let ran = chronibench().arg("verify").arg(dir.path()).assert().code(5);
    let error = String::from_utf8_lossy(&ran.get_output().stderr).into_owned();
    assert!(error.contains("no resolved.yaml") && error.contains("mend:"), "{error}");
}
