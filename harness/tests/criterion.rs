//! `gate --criterion`: results of `cargo bench` through the gate's test.

mod common;

use std::{path::Path, process::Output};

use common::{chronibench, folder};
use tempfile::TempDir;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn gate(args: &[&str], dirs: &[String]) -> Output {
    chronibench().arg("gate").args(args).arg("--criterion").args(dirs).output().unwrap()
}

/// So many folders, baseline and candidate in turn; the candidate takes `factor` as long.
fn folders(place: &TempDir, count: u32, factor: f64, ids: &[&str]) -> Vec<String> {
    let folder = |i: u32| {
        let dir = place.path().join(i.to_string());
        for id in ids {
            benchmark(
                &dir,
                id,
                if i.is_multiple_of(2) { 100.0 } else { 100.0 * factor } + 0.1 * f64::from(i / 2),
            );
        }
        dir.display().to_string()
    };
    (0..count).map(folder).collect()
}

/// Adds a benchmark to a `target/criterion` folder.
fn benchmark(dir: &Path, id: &str, ns: f64) {
    let new = dir.join(id).join("new");
    std::fs::create_dir_all(&new).unwrap();
    std::fs::write(new.join("benchmark.json"), format!(r#"{{"full_id": "{id}"}}"#)).unwrap();
    let sample = format!(
        r#"{{"sampling_mode": "Linear", "iters": [1.0, 2.0, 3.0], "times": [{ns}, {}, {}]}}"#,
        2.0 * ns,
        3.0 * ns
    );
    std::fs::write(new.join("sample.json"), sample).unwrap();
}

#[test]
fn results_of_criterion_go_through_the_same_gate() {
    let place = folder();
    let enforced = |count, factor| {
        let dirs = folders(&place, count, factor, &["rmsnorm"]);
        let ran = gate(&["--enforce", "always"], &dirs);
        (ran.status.code().unwrap(), text(&ran))
    };
    assert_eq!(enforced(8, 1.0).0, 0);
    assert_eq!(enforced(8, 1.05).0, 1);
    assert_eq!(enforced(3, 1.0).0, 2, "no pairs");
    // As the help says: inconclusive is 4, and too few pairs are that.
    let (code, said) = enforced(4, 1.05);
    assert!(code == 4 && said.contains("2 pairs, too few for a look: the first one needs 4"), "{said}");
    let empty = place.path().join("empty").display().to_string();
    std::fs::create_dir(&empty).unwrap();
    assert_ne!(gate(&[], &[empty.clone(), empty]).status.code(), Some(0));
}

#[test]
fn without_enforcement_the_way_to_it_is_told() {
    let place = folder();
    let dirs = folders(&place, 8, 1.05, &["rmsnorm"]);
    let advice = gate(&[], &dirs);
    let said = text(&advice);
    assert!(advice.status.code() == Some(0) && said.contains("FAIL (advice)"), "{said}");
    assert!(said.contains("--enforce always") && !said.contains("chronibench noise"), "{said}");
}

#[test]
fn every_pair_counts_or_the_gate_says_so() {
    let place = folder();
    // The last four pairs are slow: a gate that stopped at an early look would not see them.
    let mut dirs = folders(&place, 20, 1.0, &["rmsnorm"]);
    for i in [13, 15, 17, 19] {
        benchmark(&place.path().join(i.to_string()), "rmsnorm", 150.0);
    }
    let late = gate(&["--enforce", "always"], &dirs);
    assert_ne!(late.status.code(), Some(0), "{}", text(&late));
    dirs = folders(&place, 28, 1.05, &["rmsnorm"]);
    let beyond_the_looks = gate(&["--enforce", "always"], &dirs);
    assert_eq!(beyond_the_looks.status.code(), Some(1), "{}", text(&beyond_the_looks));
    dirs = folders(&place, 42, 1.0, &["rmsnorm"]);
    let many = gate(&[], &dirs);
    let said = text(&many);
    assert!(many.status.code() == Some(2) && said.contains("leave 1 pairs of folders out"), "{said}");
    // Eight pairs and three cases: a look that could never say FAIL is refused.
    dirs = folders(&place, 16, 1.05, &["a", "b", "c"]);
    let blind = gate(&[], &dirs);
    let said = text(&blind);
    assert!(blind.status.code() == Some(2) && said.contains("give 10 pairs, or fewer than 8"), "{said}");
}

#[test]
fn benchmarks_may_be_called_as_criterion_calls_its_folders() {
    let place = folder();
    let dirs = ["a", "b"].map(|name| {
        let dir = place.path().join(name);
        for id in ["vec", "vec/new", "base", "sort/base", "new"] {
            benchmark(&dir, id, 100.0);
        }
        // The results before: no benchmark.
        std::fs::create_dir_all(dir.join("vec/base")).unwrap();
        std::fs::copy(dir.join("vec/new/sample.json"), dir.join("vec/base/sample.json")).unwrap();
        dir.display().to_string()
    });
    let gate = |args: &[&str]| gate(args, &dirs);
    let comment = place.path().join("gate.md").display().to_string();
    let found = gate(&["--comment", &comment]);
    assert_eq!(found.status.code(), Some(0), "{}", text(&found));
    let said = std::fs::read_to_string(&comment).unwrap();
    let named = |id: &str| said.contains(&format!("| {id} |"));
    assert!(["vec", "vec/new", "base", "sort/base", "new"].into_iter().all(named), "{said}");
    let nothing = gate(&["-k", "vce"]);
    assert!(nothing.status.code() == Some(2) && text(&nothing).contains("sort/base"), "{}", text(&nothing));
    for option in
        ["--baseline", "--candidate", "--set", "--arm", "--anchor", "--out", "--history", "--save-baseline"]
    {
        let refused = gate(&[option, "x"]);
        let (code, text) = (refused.status.code(), text(&refused));
        assert!(code == Some(2) && text.contains("cannot be used with"), "{option}: {text}");
    }
    let refused = gate(&["--max-pairs", "6"]);
    assert!(refused.status.code() == Some(2) && text(&refused).contains("--max-pairs"), "{}", text(&refused));
}
