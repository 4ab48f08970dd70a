//! A run that is killed, at whatever moment, goes on: no finished trial is lost, none runs twice, the chains stay whole.

mod common;

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{HEAD, HONEST, Ran, chronibench, folder, names, scenario};

/// Kills that must have been survived.
const KILLS: usize = 24;

fn arms() -> String {
    format!(
        "{HEAD}arms:\n  fast: {{ runner: mock, mock: {{ step_ms: 2 }} }}\n  slow: {{ runner: mock, mock: {{ step_ms: 4 }} }}\n\
         only: [{{ method: full }}]\n"
    )
}

/// Stored trials by name: what a finished trial is must never change again.
fn stored(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let events = out.join("events");
    if !events.is_dir() {
        return BTreeMap::new();
    }
    let whole = names(&events).into_iter().filter(|n| n.ends_with(".jsonl"));
    whole.map(|n| (n.clone(), std::fs::read(events.join(&n)).unwrap())).collect()
}

/// Begins the run, or goes on with it: a kill may come before it has a folder.
fn run(file: &Path, out: &Path) -> Command {
    let how = if out.join("events").is_dir() { "--resume" } else { "--out" };
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("chronibench"));
    command.arg("run").arg(file).arg(how).arg(out);
    command
}

/// Begins or goes on with the run, and kills it after `delay`; whether it was killed.
fn killed(file: &Path, out: &Path, delay: Duration) -> bool {
    let mut run = run(file, out)
        .stderr(std::fs::File::create(file.with_extension("stderr")).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while start.elapsed() < delay {
        if let Some(status) = run.try_wait().unwrap() {
            let told = std::fs::read_to_string(file.with_extension("stderr")).unwrap();
            assert_eq!(status.code(), Some(0), "it ended by itself: {told}");
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    run.kill().unwrap();
    !run.wait().unwrap().success()
}

#[test]
fn a_run_that_is_killed_again_and_again_loses_and_repeats_nothing() {
    let dir = folder();
    let file = scenario(dir.path(), &arms());
    let began = Instant::now();
    let whole = dir.path().join("whole");
    assert!(!killed(&file, &whole, Duration::from_secs(120)), "a whole run takes more than two minutes");
    let length = began.elapsed().as_millis() as u64;
    let (mut seed, mut kills, mut runs) = (0x2545_f491_4f6c_dd1d_u64, 0, 0);
    let mut moments = Vec::new();
    while kills < KILLS {
        let out = dir.path().join(format!("run{runs}"));
        let mut before = BTreeMap::new();
        loop {
            // Xorshift: another moment every time, the same on every machine as a share of a run's length.
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let delay = Duration::from_micros(seed % (length * 1_100));
            let was_killed = killed(&file, &out, delay);
            let now = stored(&out);
            for (name, bytes) in &before {
                assert_eq!(now.get(name), Some(bytes), "{name} was lost or ran again");
            }
            before = now;
            if !was_killed {
                break;
            }
            kills += 1;
            moments.push(before.len());
            if kills >= KILLS {
                let resumed = run(&file, &out).output().unwrap();
                assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
                for (name, bytes) in &before {
                    assert_eq!(stored(&out).get(name), Some(bytes), "{name} was lost or ran again");
                }
                break;
            }
        }
        complete(&out, &whole);
        runs += 1;
    }
    println!("{kills} kills survived in {runs} runs of 8 trials; finished trials at each kill: {moments:?}");
}

/// The run has every trial once, is verified, and says what an undisturbed one says.
fn complete(out: &Path, whole: &Path) {
    let verify = chronibench().args(["verify", "--require-chain"]).arg(out).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
    let trials = |dir: &Path| names(&dir.join("events"));
    assert_eq!(trials(out), trials(whole));
    let results = |dir: &Path| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(dir.join("results.json")).unwrap()).unwrap()
    };
    let (a, b) = (results(out), results(whole));
    assert_eq!((&a["verdict"], &a["trials_valid"]), (&b["verdict"], &b["trials_valid"]));
    for (a, b) in a["cases"].as_array().unwrap().iter().zip(b["cases"].as_array().unwrap()) {
        assert_eq!(a["real_tokens_per_s"], b["real_tokens_per_s"], "{}", a["id"]);
    }
    assert!(!out.join("work").exists());
}

fn resume(ran: &Ran, args: &[&str]) -> (i32, String) {
    let mut command = chronibench();
    command.arg("run").arg(ran.dir.path().join("scenario.yaml")).arg("--resume").arg(ran.path("")).args(args);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout) + &text(&output.stderr))
}

fn evidence(ran: &Ran) -> serde_json::Value {
    serde_json::from_str(&ran.read("evidence.json")).unwrap()
}

#[test]
fn a_trial_that_is_stored_and_not_yet_noted_is_kept_and_half_a_one_is_set_aside() {
    let ran = Ran::new(&format!("{HEAD}{HONEST}"), &[]);
    let first = ran.read("events/000-steady_full_on.jsonl");
    let mut notes = evidence(&ran);
    notes["trials"].as_array_mut().unwrap().clear();
    std::fs::write(ran.path("evidence.json"), serde_json::to_vec_pretty(&notes).unwrap()).unwrap();
    let second = ran.read("events/001-steady_full_on.jsonl");
    let lines: Vec<&str> = second.lines().collect();
    let half = lines[..lines.len() - 1].join("\n") + "\n";
    std::fs::write(ran.path("events/001-steady_full_on.jsonl"), half).unwrap();
    std::fs::write(ran.path("events/.tmpleft"), "half a file").unwrap();
    let (code, text) = resume(&ran, &[]);
    assert!(code == 0 && text.contains("1 trials are kept"), "{text}");
    assert_eq!(ran.read("events/000-steady_full_on.jsonl"), first);
    assert_ne!(ran.read("events/001-steady_full_on.jsonl"), second);
    assert_eq!(ran.names("aside"), ["001-steady_full_on.jsonl.1"]);
    assert_eq!(ran.names("events").len(), 2);
    assert_eq!(evidence(&ran)["trials"].as_array().unwrap().len(), 2);
    chronibench().args(["verify", "--require-chain"]).arg(ran.path("")).assert().success();
    // A run that is complete runs nothing.
    let before = stored(&ran.path(""));
    assert_eq!(resume(&ran, &[]).0, 0);
    assert_eq!(stored(&ran.path("")), before);
}

#[test]
fn another_scenario_or_program_is_refused_and_nothing_is_touched() {
    let ran = Ran::new(&format!("{HEAD}{HONEST}"), &["--trials", "1"]);
    let before = stored(&ran.path(""));
    let (code, text) = resume(&ran, &["--trials", "2"]);
    assert!(code == 2 && text.contains("trials was 1, and is 2") && text.contains("mend:"), "{text}");
    let (code, text) = resume(&ran, &["--trials", "1", "--set", "measure.timed_steps=12"]);
    assert!(code == 2 && text.contains("timed_steps was 8, and is 12"), "{text}");
    let environment = ran.read("environment.json");
    let mut other: serde_json::Value = serde_json::from_str(&environment).unwrap();
    other["program"]["binary_sha256"] = "0".repeat(64).into();
    std::fs::write(ran.path("environment.json"), serde_json::to_vec_pretty(&other).unwrap()).unwrap();
    let (code, text) = resume(&ran, &["--trials", "1"]);
    assert!(code == 8 && text.contains("not the file that the run began with"), "{text}");
    let mut notes = evidence(&ran);
    let bytes = std::fs::read(ran.path("environment.json")).unwrap();
    notes["files"]["environment.json"] = chronibench_protocol::digest::sha256_hex(&bytes).into();
    std::fs::write(ran.path("evidence.json"), serde_json::to_vec_pretty(&notes).unwrap()).unwrap();
    let (code, text) = resume(&ran, &["--trials", "1"]);
    assert!(code == 3 && text.contains("another program") && text.contains("join"), "{text}");
    assert_eq!(stored(&ran.path("")), before);
}

#[test]
fn a_changed_or_lost_trial_ends_it() {
    let ran = Ran::new(&format!("{HEAD}{HONEST}"), &[]);
    let file = ran.path("events/001-steady_full_on.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"loss\":", "\"loss\":1", 1)).unwrap();
    let (code, said) = resume(&ran, &[]);
    assert!(code == 8 && said.contains("not what the harness wrote"), "{said}");
    std::fs::remove_file(&file).unwrap();
    let (code, said) = resume(&ran, &[]);
    assert!(code == 8 && said.contains("lost"), "{said}");
    let (code, said) = {
        let output = chronibench()
            .args(["run", "--resume", "nowhere"])
            .arg(ran.dir.path().join("scenario.yaml"))
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(code == Some(2) && said.contains("no run to go on with"), "{said}");
}

#[test]
fn two_harnesses_do_not_run_in_one_folder() {
    let ran = Ran::new(&format!("{HEAD}{HONEST}"), &["--trials", "1"]);
    std::fs::create_dir_all(ran.path("work")).unwrap();
    let file = std::fs::File::create(ran.path("work/lock")).unwrap();
    file.lock().unwrap();
    let (code, text) = resume(&ran, &["--trials", "1"]);
    assert!(code == 2 && text.contains("another chronibench runs"), "{text}");
}
