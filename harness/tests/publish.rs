//! A run becomes a published one, verified; the index is what the published runs say.

mod common;

use std::path::{Path, PathBuf};

use chronibench::publish::index;
use common::{HEAD, HONEST, Ran, chronibench, names};

fn publish(args: &[&str], dir: Option<&Path>, to: &Path) -> (Option<i32>, String) {
    let output = chronibench().arg("publish").args(args).args(dir).arg("--to").arg(to).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn a_run_is_published_with_all_that_verifies_it() {
    let ran = Ran::new(&format!("{HEAD}{HONEST}"), &[]);
    let to = ran.dir.path().join("reports");
    let (code, text) = publish(&[], Some(&ran.path("")), &to);
    assert_eq!(code, Some(0), "{text}");
    let run = names(&to).into_iter().find(|n| n.ends_with("-tiny")).unwrap();
    let has = names(&to.join(&run));
    let wanted = [
        "environment.json",
        "events",
        "evidence.json",
        "plots",
        "report.html",
        "report.md",
        "resolved.yaml",
        "results.csv",
        "results.json",
    ];
    assert_eq!(has, wanted);
    assert!(names(&to.join(&run).join("events")).iter().all(|n| n.ends_with(".jsonl.gz")));
    chronibench().args(["verify", "--require-chain"]).arg(to.join(&run)).assert().success();
    let readme = std::fs::read_to_string(to.join("README.md")).unwrap();
    let row = readme.lines().find(|l| l.contains(&run)).unwrap();
    assert!(row.contains("Mock arms") && row.contains("**VALID** · 2 of 2 trials"), "{row}");
    assert_eq!(names(&to), [run.clone(), "README.md".into()], "nothing is left beside");
    // The same bytes again, under another name.
    let (code, text) = publish(&["--name", "again"], Some(&ran.path("")), &to);
    assert_eq!(code, Some(0), "{text}");
    let again = names(&to).into_iter().find(|n| n.ends_with("-again")).unwrap();
    for file in names(&to.join(&run).join("events")) {
        let read = |run: &str| std::fs::read(to.join(run).join("events").join(&file)).unwrap();
        assert!(read(&run) == read(&again), "{file}");
    }
    // And never over what is there.
    let (code, text) = publish(&[], Some(&ran.path("")), &to);
    assert!(code == Some(2) && text.contains("not overwritten"), "{text}");
}

#[test]
fn a_run_that_was_changed_or_is_not_complete_is_refused() {
    let ran = Ran::new(&format!("{HEAD}{HONEST}"), &[]);
    let to = ran.dir.path().join("reports");
    let report = ran.read("report.md");
    std::fs::write(ran.path("report.md"), report.replace("VALID", "FINE")).unwrap();
    let (code, text) = publish(&[], Some(&ran.path("")), &to);
    assert!(code == Some(8) && text.contains("report.md") && text.contains("chronibench report"), "{text}");
    std::fs::write(ran.path("report.md"), report).unwrap();
    let mut notes: serde_json::Value = serde_json::from_str(&ran.read("evidence.json")).unwrap();
    notes["trials"].as_array_mut().unwrap().pop();
    std::fs::write(ran.path("evidence.json"), serde_json::to_vec_pretty(&notes).unwrap()).unwrap();
    std::fs::remove_file(ran.path("events/001-steady_full_on.jsonl")).unwrap();
    chronibench().arg("report").arg(ran.path("")).assert().success();
    let (code, text) = publish(&[], Some(&ran.path("")), &to);
    assert!(code == Some(2) && text.contains("--resume"), "{text}");
    assert!(!to.exists());
    let (code, text) = publish(&["--partial"], Some(&ran.path("")), &to);
    assert_eq!(code, Some(0), "{text}");
    std::fs::remove_file(ran.path("evidence.json")).unwrap();
    let (code, text) = publish(&["--partial", "--name", "x"], Some(&ran.path("")), &to);
    assert_eq!(code, Some(8), "{text}");
}

/// `reports/README.md` has the rows that the published runs come to.
#[test]
fn the_index_of_this_repository_is_up_to_date() {
    let reports: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reports");
    let is = std::fs::read_to_string(reports.join("README.md")).unwrap();
    let should = index::text(&reports).unwrap();
    assert!(is == should, "write it anew with `chronibench publish --index`");
    assert!(should.matches("/report.md)").count() >= 12, "{should}");
}

#[test]
fn an_index_needs_its_marks() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("README.md"), "# Mine\n").unwrap();
    let (code, text) = publish(&["--index"], None, dir.path());
    assert!(code == Some(2) && text.contains(index::BEGIN), "{text}");
    std::fs::write(
        dir.path().join("README.md"),
        format!("# Mine\n{}\nold\n{}\nend\n", index::BEGIN, index::END),
    )
    .unwrap();
    let (code, text) = publish(&["--index"], None, dir.path());
    assert_eq!(code, Some(0), "{text}");
    let now = std::fs::read_to_string(dir.path().join("README.md")).unwrap();
    assert!(now.starts_with("# Mine\n") && now.ends_with("\nend\n") && !now.contains("old"), "{now}");
}
