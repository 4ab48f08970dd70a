//! The side of the harness that runs in child processes, and the only one that knows the programs under test.
//!
//! `chronibench worker train` is an arm of the protocol, `kernels` one for kernels alone; `prepare` makes the inputs of a run; `evaluate`
//! runs saved weights forward, and `calibrate` measures how fast this machine multiplies matrices, both for audits.

mod cheat;
mod evaluate;
mod faults;
mod kernels;
mod mock;
mod native;
mod planted;
mod prepare;

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use chronibench_protocol::{Event, Spec, event::Failure};
use clap::Subcommand;

pub use native::offer;

#[cfg(target_os = "linux")]
use crate::runner::orphans;
use crate::{
    error::Exit,
    scenario::{
        cheat::Cheat,
        raw::{MockScript, Runner},
    },
};

/// What a worker can do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run one trial.
    Train {
        /// `native`, `candle` or `mock`.
        #[arg(long, value_parser = runner)]
        arm: Runner,
        /// Specification to read.
        #[arg(long)]
        spec: PathBuf,
        /// Event file to write.
        #[arg(long)]
        events: PathBuf,
        /// Script of a mock arm, JSON.
        #[arg(long, value_parser = script)]
        script: Option<MockScript>,
        /// Lie of a native arm, JSON.
        #[arg(long, value_parser = lie)]
        cheat: Option<Cheat>,
    },
    /// Check and time the kernels of a specification.
    Kernels {
        /// Specification to read.
        #[arg(long)]
        spec: PathBuf,
        /// Event file to write.
        #[arg(long)]
        events: PathBuf,
    },
    /// Make the inputs of a run.
    Prepare {
        /// What to make.
        #[arg(long)]
        spec: PathBuf,
    },
    /// Evaluate saved weights.
    Evaluate {
        /// What to evaluate.
        #[arg(long)]
        spec: PathBuf,
    },
    /// Measure the rate of a matrix product, GFLOP/s.
    Calibrate {
        /// `cpu`, `cuda` or `cuda:N`.
        #[arg(long, default_value = "cpu")]
        device: String,
    },
}

fn runner(word: &str) -> Result<Runner, String> {
    serde_json::from_value(word.into()).map_err(|e| e.to_string())
}

fn script(json: &str) -> Result<MockScript, String> {
    serde_json::from_str(json).map_err(|e| e.to_string())
}

fn lie(json: &str) -> Result<Cheat, String> {
    serde_json::from_str(json).map_err(|e| e.to_string())
}

/// Runs a worker to its end.
pub fn run(command: &Command) -> ExitCode {
    end_with_parent();
    match command {
        Command::Train { spec, events, cheat: Some(cheat), .. } => arm(events, |file| {
            read_spec(spec).map_err(of_trial).and_then(|s| cheat::train(&s, *cheat, &mut |e| file.event(&e)))
        }),
        Command::Train { arm, spec, events, script, cheat: None } => {
            train(*arm, spec, events, &script.clone().unwrap_or_default())
        }
        Command::Kernels { spec, events } => {
            let run = |spec, file: &mut EventFile| kernels::run(&spec, &mut |e| file.event(&e));
            arm(events, |file| read_spec(spec).and_then(|spec| run(spec, file)).map_err(of_trial))
        }
        Command::Prepare { spec } => say(prepare::run(spec)),
        Command::Evaluate { spec } => say(evaluate::run(spec)),
        Command::Calibrate { device } => say(native::peak_gflops(device).map(Into::into)),
    }
}

/// A harness that is killed outright must not leave a trial behind that burns the machine.
fn end_with_parent() {
    #[cfg(target_os = "linux")]
    {
        let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
        // A harness that was killed before that was asked for sends no signal any more.
        if orphans::spawned_by().is_some_and(|pid| pid != nix::unistd::getppid().as_raw() as u32) {
            std::process::exit(Exit::Interrupted as i32);
        }
    }
}

/// Prints a worker's one answer, or its failure, for the harness to read.
fn say(answer: Result<serde_json::Value, (Exit, Failure)>) -> ExitCode {
    match answer {
        Ok(value) => {
            println!("{value}");
            ExitCode::SUCCESS
        }
        Err((exit, failure)) => {
            println!("{}", serde_json::to_string(&failure).expect("plain data"));
            ExitCode::from(exit as u8)
        }
    }
}

/// The event file of an arm; every line is written as it happens.
struct EventFile(File);

impl EventFile {
    fn event(&mut self, event: &Event) -> std::io::Result<()> {
        self.line(&serde_json::to_string(event)?)
    }

    fn line(&mut self, text: &str) -> std::io::Result<()> {
        self.text(&format!("{text}\n"))
    }

    fn text(&mut self, text: &str) -> std::io::Result<()> {
        self.0.write_all(text.as_bytes())
    }
}

/// One trial.
fn train(runner: Runner, spec: &Path, events: &Path, script: &MockScript) -> ExitCode {
    arm(events, |file| {
        read_spec(spec).map_err(of_trial).and_then(|spec: Spec| match runner {
            Runner::Native => native::train(&spec, &mut planted::delayed(|e| file.event(&e))),
            Runner::Candle => chronibench_candle::run(&spec, &mut |e| file.event(&e))
                .map_err(|e| of_trial(Failure::from(&e))),
            Runner::Mock => mock::run(&spec, script, file).map_err(of_trial),
            rival => Err(of_trial(Failure {
                what: format!("'{}' is not a part of this program", rival.name()),
                at: "--arm".into(),
                hint: "its adapter runs it: see `chronibench env`".into(),
            })),
        })
    })
}

fn of_trial(failure: Failure) -> (Exit, Failure) {
    (Exit::Trial, failure)
}

/// Runs an arm; a failure is its last event.
fn arm(events: &Path, run: impl FnOnce(&mut EventFile) -> Result<(), (Exit, Failure)>) -> ExitCode {
    let mut file = match File::create(events) {
        Ok(file) => EventFile(file),
        Err(e) => {
            eprintln!("{}: {e}", events.display());
            return ExitCode::from(Exit::Environment as u8);
        }
    };
    match run(&mut file) {
        Ok(()) => ExitCode::SUCCESS,
        Err((exit, failure)) => {
            eprintln!("{}\n  where: {}\n  mend:  {}", failure.what, failure.at, failure.hint);
            // The message is on standard error too, in case the event file is what failed.
            let _ = file.event(&Event::Error(failure));
            ExitCode::from(exit as u8)
        }
    }
}

fn read_spec<S: serde::de::DeserializeOwned>(path: &Path) -> Result<S, Failure> {
    let failure = |what: String| Failure {
        what,
        at: path.display().to_string(),
        hint: "give the specification that the harness wrote".into(),
    };
    let text = std::fs::read(path).map_err(|e| failure(e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| failure(format!("not a specification: {e}")))
}
