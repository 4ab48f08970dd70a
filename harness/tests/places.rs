//! Trials of a stored run are those of its scenario: none is left out among the others, and none is begun again for nothing.

mod common;

use std::path::Path;

use chronibench::evidence::{Standing, verify};
use common::{HEAD, Ran};

/// Positions 0 to 3, of which the second is begun again.
fn run() -> Ran {
    let arms =
        "arms:\n  steady: { runner: mock }\n  held: { runner: mock, mock: { behaviour: busy_once } }\n";
    let ran = Ran::new(&format!("{HEAD}{arms}only: [{{ method: full, packing: on }}]\n"), &[]);
    assert_eq!(ran.code, 0, "{}", ran.output);
    ran
}

const HELD: &str = "001-held_full_on";

/// Takes a trial out, and renders the rest again.
fn take_out(dir: &Path, id: &str) {
    common::take_out(dir, id);
    common::chronibench().arg("report").arg(dir).output().unwrap();
}

fn findings(dir: &Path) -> String {
    let found = verify(dir).unwrap();
    assert_eq!(found.standing, Standing::Broken);
    found.findings.iter().map(|f| format!("{}: {}\n", f.at, f.what)).collect()
}

#[test]
fn attempts_share_a_place_and_each_has_its_reason() {
    let ran = run();
    let dir = ran.path("");
    let found = verify(&dir).unwrap();
    assert_eq!((found.standing, found.trials), (Standing::Verified, 6), "{:#?}", found.findings);
    let path = ran.path(&format!("events/{HELD}.jsonl"));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("busy or unavailable", "slower than I like")).unwrap();
    let told = findings(&dir);
    assert!(told.contains(&format!("{HELD}.jsonl: it was begun again, and it was no fault")), "{told}");
    std::fs::write(&path, text).unwrap();
    take_out(&dir, HELD);
    let told = findings(&dir);
    assert!(told.contains(&format!("{HELD}.retry1.jsonl: it is attempt 1, and the one before")), "{told}");
}

#[test]
fn a_trial_is_missed_among_others_and_told_of_at_the_end() {
    let ran = run();
    let dir = ran.path("");
    // As where the run was interrupted: nothing was changed, and it says that it is not all.
    for id in ["003-steady_full_on", "003-held_full_on", "003-held_full_on.retry1"] {
        if dir.join(format!("events/{id}.jsonl")).exists() {
            take_out(&dir, id);
        }
    }
    let found = verify(&dir).unwrap();
    assert_eq!(found.standing, Standing::Verified, "{:#?}", found.findings);
    let left = found.left.unwrap();
    assert!(left.contains("not complete: 1 of 4 trials"), "{left}");
    let out = common::chronibench().arg("verify").arg(&dir).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains(&left));
    take_out(&dir, "000-steady_full_on");
    let told = findings(&dir);
    assert!(told.contains("no trial is stored at position 0, and later ones are"), "{told}");
    assert!(
        told.contains(":1: it does not begin this trial of this run, behind the trial before it"),
        "{told}"
    );
}
