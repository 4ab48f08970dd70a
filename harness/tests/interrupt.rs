//! A run that is stopped keeps what it has and leaves nothing running.

mod common;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{HEAD, folder, names, scenario};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A run whose second trial hangs, at the moment at which it does; and the hanging process.
fn hanging_run(dir: &Path) -> (Child, Pid) {
    let text = format!(
        "{HEAD}arms:\n  steady: {{ runner: mock }}\n  stuck: {{ runner: mock, mock: {{ behaviour: hang }} }}\n\
         only: [{{ method: full, packing: on }}]\n"
    );
    let file = scenario(dir, &text);
    let run = Command::new(assert_cmd::cargo::cargo_bin!("chronibench"))
        .args(["run", "--set", "timeout_s=300", "--out"])
        .arg(dir.join("out"))
        .arg(file)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let events = dir.join("out/work/001-stuck_full_on/events.jsonl");
    let pid = wait_for(|| {
        let text = std::fs::read_to_string(&events).ok()?;
        let hello: serde_json::Value = serde_json::from_str(text.lines().next()?).ok()?;
        text.contains("\"step\":1").then(|| Pid::from_raw(hello["pid"].as_i64().unwrap() as i32))
    });
    (run, pid)
}

fn wait_for<T>(mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Gone, or a zombie that nobody has reaped yet.
fn ended(pid: Pid) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

#[test]
fn ctrl_c_ends_the_child_and_keeps_finished_trials() {
    let dir = folder();
    let (mut run, child) = hanging_run(dir.path());
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).unwrap();
    let status = wait_for(|| run.try_wait().unwrap());
    assert_eq!(status.code(), Some(130));
    assert!(ended(child));
    let out = dir.path().join("out");
    assert_eq!(names(&out.join("events")), ["000-steady_full_on.jsonl"]);
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("1 of 4"), "{report}");
    assert!(!out.join("work").exists());
}

#[test]
fn a_gate_against_stored_figures_that_is_stopped_leaves_no_work_behind() {
    let dir = folder();
    let file = |mock: &str| {
        let arm =
            format!("arms:\n  steady: {{ runner: mock{mock} }}\nonly: [{{ method: full, packing: on }}]\n");
        scenario(dir.path(), &format!("{HEAD}{arm}"))
    };
    let then = dir.path().join("then");
    let mut before = common::chronibench();
    before.args(["run", "--trials", "4", "--out"]).arg(&then).arg(file("")).assert().success();
    let out = dir.path().join("out");
    let mut gate = Command::new(assert_cmd::cargo::cargo_bin!("chronibench"))
        .args(["gate", "--set", "timeout_s=300", "--baseline"])
        .arg(&then)
        .arg("--out")
        .arg(&out)
        .arg(file(", mock: { behaviour: hang }"))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let events = out.join("work/000-steady_full_on/events.jsonl");
    wait_for(|| std::fs::read_to_string(&events).ok()?.contains("\"step\":1").then_some(()));
    kill(Pid::from_raw(gate.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(wait_for(|| gate.try_wait().unwrap()).code(), Some(130));
    assert!(!out.join("work").exists() && out.join("report.md").is_file());
}

#[test]
fn a_killed_harness_takes_its_child_with_it_and_leaves_a_complete_folder() {
    let dir = folder();
    let (mut run, child) = hanging_run(dir.path());
    run.kill().unwrap();
    run.wait().unwrap();
    wait_for(|| ended(child).then_some(()));
    let out = dir.path().join("out");
    let before = std::fs::read(out.join("report.md")).unwrap();
    common::chronibench().arg("report").arg(&out).assert().success();
    assert_eq!(std::fs::read(out.join("report.md")).unwrap(), before);
}
