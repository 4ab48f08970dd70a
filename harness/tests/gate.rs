//! Gates of mock arms, whose speed and noise are known to the last digit.

mod common;

use std::{os::unix::fs::PermissionsExt, path::PathBuf, process::Output};

use common::{HEAD, chronibench, folder, names, scenario};
use tempfile::TempDir;

/// A scenario of one honest arm with half a percent of noise.
const NOISY: &str = "\
arms:
  steady: { runner: mock, mock: { step_ms: 2, noise: 0.005 } }
only: [{ method: full, packing: on }]
";

struct Place {
    dir: TempDir,
}

impl Place {
    fn new(arms: &str) -> Self {
        let dir = folder();
        scenario(dir.path(), &format!("{HEAD}{arms}"));
        Self { dir }
    }

    fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    /// Runs `chronibench ARGS` there, with a cache folder of its own.
    fn run(&self, args: &[&str]) -> Output {
        let mut command = chronibench();
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env_remove("CHRONICALS_CACHE");
        command.output().unwrap()
    }

    /// A program that is the one under test, slower by `share`.
    fn slower(&self, share: &str) -> String {
        let path = self.path("slower");
        let this = assert_cmd::cargo::cargo_bin!("chronibench");
        let text = format!("#!/bin/sh\nCHRONIBENCH_PLANTED_DELAY={share} exec {} \"$@\"\n", this.display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    fn json(&self, file: &str) -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(self.path(file)).unwrap()).unwrap()
    }
}

fn this() -> String {
    assert_cmd::cargo::cargo_bin!("chronibench").display().to_string()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_planted_loss_is_caught_and_equal_programs_pass() {
    let place = Place::new(NOISY);
    let slower = place.slower("0.03");
    let caught = place.run(&[
        "gate",
        "scenario.yaml",
        "--baseline",
        &this(),
        "--candidate",
        &slower,
        "--enforce",
        "always",
        "--out",
        "slow",
        "--junit",
        "gate.xml",
        "--comment",
        "gate.md",
    ]);
    assert_eq!(caught.status.code(), Some(1), "{}", text(&caught));
    let gate = place.json("slow/gate.json");
    assert_eq!(gate["verdict"], "FAIL");
    let change = gate["cases"][0]["looks"].as_array().unwrap().last().unwrap()["change"].as_f64().unwrap();
    assert!((change + 0.03).abs() < 0.01, "{change}");
    let junit = std::fs::read_to_string(place.path("gate.xml")).unwrap();
    assert!(junit.contains("failures=\"1\"") && junit.contains("<failure message="), "{junit}");
    let comment = std::fs::read_to_string(place.path("gate.md")).unwrap();
    assert!(comment.contains("❌") && comment.contains("steady/full/on"), "{comment}");

    let passed =
        place.run(&["gate", "scenario.yaml", "--baseline", &this(), "--enforce", "always", "--out", "same"]);
    assert_eq!(passed.status.code(), Some(0), "{}", text(&passed));
    assert_eq!(place.json("same/gate.json")["verdict"], "PASS");
    assert!(text(&passed).contains("no difference seen"), "{}", text(&passed));
}

#[test]
fn a_stored_gate_is_judged_again_to_the_same_bytes() {
    let place = Place::new(NOISY);
    place.run(&["gate", "scenario.yaml", "--baseline", &this(), "--out", "out"]);
    let read = |file: &str| std::fs::read(place.path(file)).unwrap();
    let files = ["out/gate.json", "out/gate.md", "out/results.json", "out/report.md"];
    let before: Vec<Vec<u8>> = files.iter().map(|f| read(f)).collect();
    let again = place.run(&["report", "out"]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again));
    assert_eq!(files.iter().map(|f| read(f)).collect::<Vec<_>>(), before);
    assert!(!place.path("out/work").exists());

    // What a gate lays beside its run is verified with it.
    let whole = place.run(&["verify", "--require-chain", "out"]);
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole));
    let changes = [
        ("out/gate-plan.json", "gate-plan.json: it is not the file that the harness wrote"),
        ("out/gate.json", "gate.json: "),
    ];
    for (file, why) in changes {
        let before = read(file);
        std::fs::write(place.path(file), [&before[..], b" "].concat()).unwrap();
        let broken = place.run(&["verify", "out"]);
        assert!(broken.status.code() == Some(8) && text(&broken).contains(why), "{}", text(&broken));
        std::fs::write(place.path(file), before).unwrap();
    }
    let evidence = std::fs::read_to_string(place.path("out/evidence.json")).unwrap();
    let mut known: serde_json::Value = serde_json::from_str(&evidence).unwrap();
    known["beside"] = serde_json::json!({});
    std::fs::write(place.path("out/evidence.json"), known.to_string()).unwrap();
    let unknown = place.run(&["verify", "out"]);
    assert!(text(&unknown).contains("the evidence does not know this file"), "{}", text(&unknown));
}

#[test]
fn only_a_certified_machine_enforces() {
    let place = Place::new(NOISY);
    let slower = place.slower("0.03");
    let gate = |out: &str| {
        place.run(&["gate", "scenario.yaml", "--baseline", &this(), "--candidate", &slower, "--out", out])
    };
    let args = ["gate", "scenario.yaml", "--baseline", &this(), "--candidate", &slower, "--out", "advice"];
    let advice = place.run(&[&args[..], &["--history", "history.jsonl"]].concat());
    assert_eq!(advice.status.code(), Some(0), "{}", text(&advice));
    assert!(text(&advice).contains("FAIL (advice)") && text(&advice).contains("no certificate"));
    assert!(!place.path("history.jsonl").exists(), "what fails is no history, advice or not");

    let few = place.run(&["noise", "scenario.yaml", "--comparisons", "2", "--out", "few"]);
    assert_eq!(few.status.code(), Some(4), "{}", text(&few));
    assert!(text(&few).contains("2 comparisons of 20"), "{}", text(&few));
    assert_eq!(gate("uncertified").status.code(), Some(0));

    let noise = place.run(&["noise", "scenario.yaml", "--out", "noise"]);
    assert_eq!(noise.status.code(), Some(0), "{}", text(&noise));
    let certificate = place.json("noise/certificate.json");
    assert_eq!(
        (certificate["cases"][0]["comparisons"].as_u64(), certificate["cases"][0]["alarms"].as_u64()),
        (Some(20), Some(0))
    );
    // Another design was never played on this machine: what it says is advice.
    for (option, why) in
        [("--min-effect=1%", "losses of 1.50 %"), ("--max-pairs=8", "looks after 4, 6, 8, 12 pairs")]
    {
        let args = [
            "gate",
            "scenario.yaml",
            "--baseline",
            &this(),
            "--candidate",
            &slower,
            "--out",
            &option[2..5],
            option,
        ];
        let other = place.run(&args);
        assert!(other.status.code() == Some(0) && text(&other).contains(why), "{}", text(&other));
    }
    let counts = gate("counts");
    assert_eq!(counts.status.code(), Some(1), "{}", text(&counts));

    let short = place.run(&["noise", "scenario.yaml", "--comparisons", "1", "--out", "short"]);
    assert!(text(&short).contains("the certificate from before stays"), "{}", text(&short));
    assert_eq!(gate("still").status.code(), Some(1));
}

#[test]
fn arms_in_python_run_as_they_do_in_a_run() {
    let place =
        Place::new(&NOISY.replace("runner: mock, mock: { step_ms: 2, noise: 0.005 }", "runner: mock-python"));
    let noise =
        place.run(&["noise", "scenario.yaml", "--comparisons", "1", "--max-pairs", "4", "--out", "out"]);
    assert_eq!(noise.status.code(), Some(4), "valid, and too few to certify: {}", text(&noise));
    let place =
        Place::new(&NOISY.replace("runner: mock, mock: { step_ms: 2, noise: 0.005 }", "runner: hf-cpu"));
    for args in [&["noise", "scenario.yaml"][..], &["gate", "scenario.yaml", "--baseline", &this()]] {
        let missing = place.run(args);
        assert_eq!(missing.status.code(), Some(5), "{}", text(&missing));
        assert!(text(&missing).contains("chronibench env sync hf-cpu"), "{}", text(&missing));
    }
}

#[test]
fn a_trial_that_is_not_valid_spoils_the_gate() {
    let place = Place::new(&NOISY.replace("noise: 0.005", "behaviour: frozen"));
    let spoiled = place.run(&["gate", "scenario.yaml", "--baseline", &this(), "--out", "out"]);
    assert_eq!(spoiled.status.code(), Some(3), "{}", text(&spoiled));
    assert_eq!(place.json("out/gate.json")["verdict"], "INVALID");
    assert_eq!(names(&place.path("out/events")).len(), 8, "it ends at the first look");
}

#[test]
fn a_saved_baseline_is_the_program_itself() {
    let place = Place::new(NOISY);
    let saved =
        place.run(&["run", "scenario.yaml", "--trials", "1", "--save-baseline", "release", "--out", "run"]);
    assert_eq!(saved.status.code(), Some(0), "{}", text(&saved));
    let gate = place.run(&["gate", "scenario.yaml", "--baseline", "release", "--out", "out"]);
    assert_eq!(gate.status.code(), Some(0), "{}", text(&gate));
    assert_eq!(place.json("out/gate.json")["baseline"]["name"], "release");
    // Another program in its place is noticed.
    std::fs::write(place.path("runs/baselines/release/chronibench"), "#!/bin/sh\n").unwrap();
    let changed = place.run(&["gate", "scenario.yaml", "--baseline", "release", "--out", "again"]);
    assert_eq!(changed.status.code(), Some(5), "{}", text(&changed));
}

#[test]
fn a_baseline_that_cannot_be_executed_is_said_before_anything_runs() {
    let place = Place::new(NOISY);
    std::fs::write(place.path("program"), "no program\n").unwrap();
    for args in [["--baseline", "./program"], ["--candidate", "./program"]] {
        let own = this();
        let other: &[&str] = if args[0] == "--baseline" { &[] } else { &["--baseline", &own] };
        let refused = place.run(&[&["gate", "scenario.yaml", "--out", "out"], &args[..], other].concat());
        let (code, text) = (refused.status.code(), text(&refused));
        assert!(code == Some(5) && text.contains("chmod +x") && text.contains("./program"), "{text}");
    }
    assert!(!place.path("out").exists());
}

#[test]
fn two_gates_do_not_build_a_revision_at_once() {
    let place = Place::new(NOISY);
    let git = "git init -q . && git add scenario.yaml && git -c user.name=x -c user.email=x@x commit -qm x";
    let made = std::process::Command::new("sh").args(["-c", git]).current_dir(place.dir.path()).output();
    assert!(made.unwrap().status.success());
    // In the place of cargo: it notices another one, and takes a while.
    let cargo = place.path("cargo");
    let text_of = "#!/bin/sh\nfor target; do :; done\nmkdir -p $target/release && mkdir $target/busy || exit 1\n\
                   sleep 0.5\necho '#!/bin/sh' > $target/release/chronibench\nchmod +x $target/release/chronibench\n\
                   echo built >> $target/log\nrmdir $target/busy\n";
    std::fs::write(&cargo, text_of).unwrap();
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
    // The folder holds a run: the gates end after the build, and before a trial.
    std::fs::create_dir(place.path("out")).unwrap();
    std::fs::write(place.path("out/resolved.yaml"), "").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut gate = chronibench();
                gate.args(["gate", "scenario.yaml", "--baseline", "HEAD", "--out", "out"]);
                let gate = gate.current_dir(place.dir.path()).env("CARGO", &cargo).output().unwrap();
                assert!(text(&gate).contains("holds a run already"), "{}", text(&gate));
            });
        }
    });
    assert_eq!(std::fs::read_to_string(place.path("runs/builds/target/log")).unwrap(), "built\n");
}

#[test]
fn figures_of_another_session_are_advice_without_an_anchor() {
    let arms = "arms:\n  steady: { runner: mock, mock: { noise: 0.001 } }\n  anchor: { runner: mock, mock: { noise: 0.001 } }\n\
                only: [{ method: full, packing: on }]\n";
    let place = Place::new(arms);
    place.run(&["run", "scenario.yaml", "--trials", "4", "--out", "then"]);
    let slower = place.slower("0.03");
    let gate = |extra: &[&str], out: &str| {
        let args = ["gate", "scenario.yaml", "--baseline", "then", "--enforce", "always", "--out", out];
        place.run(&[&args, extra].concat())
    };
    let advice = gate(&["--candidate", &slower], "advice");
    assert_eq!(advice.status.code(), Some(0), "{}", text(&advice));
    assert!(text(&advice).contains("another session"), "{}", text(&advice));
    let anchored = gate(&["--anchor", "anchor/full/on"], "anchored");
    assert_eq!(anchored.status.code(), Some(0), "{}", text(&anchored));
    assert!(text(&anchored).contains("PASS"), "{}", text(&anchored));
    // Such a gate does not follow from its folder alone: its file is held to its hash.
    let verify = || place.run(&["verify", "anchored"]);
    assert_eq!(verify().status.code(), Some(0), "{}", text(&verify()));
    let file = place.path("anchored/gate.json");
    let changed = std::fs::read_to_string(&file).unwrap().replace("PASS", "FAIL");
    std::fs::write(&file, changed).unwrap();
    assert_eq!(verify().status.code(), Some(8), "{}", text(&verify()));
    let changed =
        gate(&["--anchor", "anchor/full/on", "--set", "matrix.method.full.learning_rate=0.002"], "changed");
    let why = "another case than the baseline's: train.learning_rate was 0.001, and is 0.002";
    assert!(text(&changed).contains(why), "{}", text(&changed));
    let missing = gate(&["--anchor", "ancor"], "missing");
    assert_eq!(missing.status.code(), Some(2), "{}", text(&missing));
}

#[test]
fn an_option_without_effect_is_refused() {
    let place = Place::new(NOISY);
    place.run(&["run", "scenario.yaml", "--trials", "1", "--out", "then"]);
    let this = this();
    for (baseline, option) in [("then", "--history"), ("then", "--save-baseline"), (&this, "--anchor")] {
        let refused =
            place.run(&["gate", "scenario.yaml", "--baseline", baseline, option, "x", "--out", "out"]);
        let (code, text) = (refused.status.code(), text(&refused));
        assert!(code == Some(2) && text.contains(option) && text.contains("no effect"), "{text}");
    }
    assert!(!place.path("out").exists());
}

#[test]
fn help_has_examples_and_mistakes_end_in_exit_code_2() {
    let place = Place::new(NOISY);
    for command in ["gate", "noise"] {
        let help = text(&place.run(&[command, "--help"]));
        assert!(help.contains("Examples:") && help.contains("Exit codes: 0"), "{help}");
    }
    for args in [
        vec!["gate", "scenario.yaml"],
        vec!["gate", "scenario.yaml", "--baseline", "nothing-of-that-name"],
        vec!["gate", "scenario.yaml", "--baseline", "x", "--max-pairs", "5"],
        vec!["gate", "scenario.yaml", "--baseline", "x", "--min-effect", "60%"],
        vec!["gate", "scenario.yaml", "--baseline", "x", "--save-baseline", "../x"],
        vec!["noise", "scenario.yaml", "--comparisons", "0"],
    ] {
        let output = place.run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}\n{}", text(&output));
    }
}
