//! `chronibench claims check`: the file that ships, a file of one's own, and what is wrong with one.

mod common;

use std::path::{Path, PathBuf};

use common::chronibench;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("claims.yaml");
    std::fs::write(&file, text).unwrap();
    (dir, file)
}

fn one(claim: &str) -> String {
    format!("schema: chronibench.claims/1\ntitle: A paper\nsource: nowhere\nclaims:\n  - {claim}\n")
}

/// Exit code, and all that was said.
fn checked(text: &str) -> (i32, String) {
    let (_dir, file) = written(text);
    let ran = chronibench().args(["claims", "check", "--runs", "none"]).arg(file).output().unwrap();
    let said = [ran.stdout, ran.stderr].concat();
    (ran.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn the_claims_that_ship_come_to_what_the_file_expects_and_the_published_table_is_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let table = dir.path().join("claims.md");
    let ran = chronibench()
        .current_dir(repository())
        .args(["claims", "check", "--markdown"])
        .arg(&table)
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stdout));
    let published = std::fs::read_to_string(repository().join("reports/claims.md")).unwrap();
    assert_eq!(std::fs::read_to_string(table).unwrap(), published);
}

#[test]
fn a_verdict_on_another_program_than_the_claims_says_so_in_its_row() {
    let ran = |args: &[&str]| {
        let ran = chronibench().current_dir(repository()).args(["claims", "check"]).args(args).output();
        String::from_utf8(ran.unwrap().stdout).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let table = dir.path().join("claims.md");
    let findings: Vec<serde_json::Value> =
        serde_json::from_str(&ran(&["--json", "--markdown", &table.display().to_string()])).unwrap();
    let table = std::fs::read_to_string(table).unwrap();
    let row = |id: &str| table.lines().find(|l| l.starts_with(&format!("| {id} |"))).unwrap();
    let by = "(by this trainer, not the published package) |";
    assert!(row("T2").contains(&format!("| REPRODUCED {by}")), "{}", row("T2"));
    assert!(row("T2 order").contains(&format!("| REFUTED {by}")), "{}", row("T2 order"));
    // Nobody measured it, arithmetic is nobody's, and the package may be measured for itself.
    assert!(row("T6").contains("| UNTESTABLE |") && row("T1 ratio").contains("| REPRODUCED |"));
    assert!(row("T1 package").contains("| REFUTED |"), "{}", row("T1 package"));
    // Whatever else rests on a run is of this repository's programs.
    let measured = || findings.iter().filter(|f| !f["run"].is_null());
    let by_another = measured().filter(|f| f["measured_by"].is_null());
    assert!(measured().count() > 10 && by_another.map(|f| &f["id"]).eq(["T1 package"]));
}

#[test]
fn arithmetic_needs_no_run_and_measured_claims_are_untestable_without() {
    let ran = chronibench()
        .current_dir(repository())
        .args(["claims", "check", "--runs", "none", "--json"])
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(7), "measured claims are expected to be decided");
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&ran.stdout).unwrap();
    let of = |id: &str| findings.iter().find(|f| f["id"] == id).unwrap()["verdict"].clone();
    assert_eq!(of("M8"), "REPRODUCED");
    assert_eq!(of("M1"), "INCONSISTENT");
    assert_eq!(of("H2"), "REFUTED");
    assert_eq!(of("P1"), "UNTESTABLE");
    assert_eq!(of("K1"), "UNTESTABLE");
}

#[test]
fn a_verdict_that_is_not_expected_ends_with_7() {
    let claim = |expect: &str| {
        one(&format!(
            "{{id: X, quote: half, expect: {expect}, check: {{formula: {{values: {{a: 1, b: 2}}, formula: a / b, equals: 0.5}}}}}}"
        ))
    };
    assert_eq!(checked(&claim("REPRODUCED")).0, 0);
    let (code, said) = checked(&claim("REFUTED"));
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("X : REPRODUCED, expected REFUTED"), "{said}");
}

#[test]
fn mistakes_in_a_file_are_told() {
    let formula =
        |rest: &str| format!("{{id: X, quote: q, expect: REPRODUCED, check: {{formula: {{{rest}}}}}}}");
    for (claim, told) in [
        (formula("values: {a: 1}, formula: a"), "give one of equals, at_least, at_most"),
        (formula("values: {a: 1}, formula: a, equals: 1, at_least: 1"), "give one of"),
        (formula("values: {a: 1}, formula: b, equals: 1"), "'b' in 'b' is no value"),
        (formula("values: {a: 1}, formula: a +, equals: 1"), "at character"),
        ("{id: X, quote: q, expect: REPRODUCED, check: {untestable: {why: so}}}".into(), "UNTESTABLE"),
        ("{id: X, quote: q, expect: REPRODUCED, check: {kernel_traffic: {removed: 1}}}".into(), "by part"),
        ("{id: X, qoute: q, expect: REPRODUCED, check: {untestable: {why: so}}}".into(), "qoute"),
        ("{id: X, quote: q, expect: PERHAPS, check: {untestable: {why: so}}}".into(), "mend:"),
    ] {
        let (code, said) = checked(&one(&claim));
        assert_eq!(code, 2, "{claim}\n{said}");
        assert!(said.contains(told), "{claim}\n{said}");
    }
    assert_eq!(checked("schema: other/1\ntitle: t\nsource: s\nclaims: []\n").0, 2);
}
