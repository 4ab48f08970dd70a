//! Arms that go wrong, each in its own way, beside one that does not.

mod common;

use common::{HEAD, Ran, chronibench, names};
use nix::{sys::signal::kill, unistd::Pid};

fn with_fault(behaviour: &str, args: &[&str]) -> Ran {
    let text = format!(
        "{HEAD}arms:\n  steady: {{ runner: mock }}\n  faulty: {{ runner: mock, mock: {{ behaviour: {behaviour} }} }}\n\
         only: [{{ method: full, packing: on }}]\n"
    );
    Ran::new(&text, &[&["--trials", "1"], args].concat())
}

fn reasons(ran: &Ran) -> String {
    let results = ran.results();
    let trials = results["cases"][1]["trials"].as_array().unwrap();
    trials.iter().flat_map(|t| t["reasons"].as_array().unwrap()).map(|r| r.as_str().unwrap()).collect()
}

#[test]
fn every_fault_is_told_by_its_name_and_leaves_the_other_arm_alone() {
    for (behaviour, verdict, code, words) in [
        ("wrong_counts", "INVALID", 3, "real"),
        ("partial_line", "ERROR", 6, "expected `done` before exit code 0"),
        (
            "out_of_memory",
            "ERROR",
            6,
            "out of memory after 2 steps: torch.OutOfMemoryError: CUDA out of memory",
        ),
        ("killed", "ERROR", 6, "out of memory after 2 steps: signal 9 that the harness did not send"),
        ("flood", "ERROR", 6, "nothing but events, saw more than 10000 other lines"),
        ("huge_output, step_ms: 200", "VALID", 0, ""),
    ] {
        let ran = with_fault(behaviour, &[]);
        assert_eq!(ran.verdicts("faulty/full/on"), [verdict], "{behaviour}\n{}", ran.output);
        assert_eq!(ran.verdicts("steady/full/on"), ["VALID"], "{behaviour}\n{}", ran.output);
        assert_eq!(ran.code, code, "{behaviour}\n{}", ran.output);
        assert!(reasons(&ran).contains(words), "{behaviour}: {}", reasons(&ran));
    }
}

#[test]
fn the_peak_is_told_where_memory_ran_out() {
    let ran = with_fault("out_of_memory", &[]);
    assert!(reasons(&ran).contains("the most seen in use was") && reasons(&ran).contains("GB resident"));
}

#[test]
fn what_an_arm_prints_is_kept_and_does_not_fill_the_disk() {
    // 10 MB a step.
    let ran = with_fault("huge_output", &[]);
    let logs = ran.names("logs");
    assert_eq!(logs, ["001-faulty_full_on.stderr.log"]);
    let length = ran.path("logs").join(&logs[0]).metadata().unwrap().len();
    assert!((1..=(8 << 20) + (1 << 17)).contains(&length), "{length}");
}

#[test]
fn a_process_left_behind_in_its_own_session_is_ended() {
    let ran = with_fault("grandchild", &[]);
    assert_eq!(ran.verdicts("faulty/full/on"), ["VALID"], "{}", ran.output);
    let log = ran.read("logs/001-faulty_full_on.stderr.log");
    let pids: Vec<i32> = log.lines().filter_map(|l| l.strip_prefix("left behind: ")?.parse().ok()).collect();
    assert!(!pids.is_empty(), "{log}");
    for pid in pids {
        assert!(kill(Pid::from_raw(pid), None).is_err(), "process {pid} is still there");
    }
}

#[test]
fn a_fault_of_the_machine_is_tried_again_and_every_attempt_is_stored() {
    let ran = with_fault("busy_once", &[]);
    assert_eq!(ran.code, 0, "{}", ran.output);
    assert!(ran.output.contains("another program holds the GPU: begun again"), "{}", ran.output);
    let events = ["000-steady_full_on.jsonl", "001-faulty_full_on.jsonl", "001-faulty_full_on.retry1.jsonl"];
    assert_eq!(names(&ran.path("events")), events);
    assert_eq!(ran.verdicts("faulty/full/on"), ["ERROR", "VALID"]);
    let results = ran.results();
    assert_eq!((&results["verdict"], &results["trials_stored"]), (&"VALID".into(), &2.into()));
    assert!(ran.read("report.md").contains("begun again: a fault of the machine ended it"));
    // The attempts of one place are one trial, for a published run too.
    let to = ran.dir.path().join("reports");
    chronibench().args(["verify", "--require-chain"]).arg(ran.path("")).assert().success();
    chronibench().arg("publish").arg(ran.path("")).arg("--to").arg(to).assert().success();
    // Without retries the first attempt is the verdict; and an arm's own failure is never tried again.
    let ran = with_fault("busy_once", &["--set", "retries=0"]);
    assert_eq!(ran.verdicts("faulty/full/on"), ["ERROR"], "{}", ran.output);
    let ran = with_fault("crash", &["--set", "retries=3"]);
    assert_eq!(ran.verdicts("faulty/full/on"), ["ERROR"], "{}", ran.output);
}

/// An arm that knows how fast it is could ask for another try.
#[test]
fn words_of_a_fault_after_the_first_timed_step_are_the_arms_own_failure() {
    let ran = with_fault("busy_once, at_step: 4", &[]);
    assert_eq!(ran.verdicts("faulty/full/on"), ["ERROR"], "{}", ran.output);
    assert_eq!(ran.names("events").len(), 2, "{}", ran.output);
}

#[test]
fn a_helper_that_hangs_ends_the_run_by_its_name() {
    let ran = with_fault("honest", &["--set", "helper_timeout_s=0.001"]);
    assert_eq!(ran.code, 6, "{}", ran.output);
    // A machine may be quick enough to prepare so little in time; it does not calibrate in it.
    for words in ["step did not end within 0.001 s, and was ended", "helper_timeout_s", "nvidia-smi"] {
        assert!(ran.output.contains(words), "{words}: {}", ran.output);
    }
}
