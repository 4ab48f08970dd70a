//! Benchmarks of fine-tuning that can be believed.
//!
//! The way of a scenario: YAML → [`scenario::raw`] → [`scenario::resolve`] → [`inputs`] → for each trial
//! [`runner`] (a child process, watched) → [`store`] → analysis and report, rendered again after every trial.
//! [`run`] is the whole program.

pub mod audit;
pub mod claims;
pub mod cli;
pub mod compare;
pub mod doctor;
pub mod env;
pub mod environment;
pub mod error;
pub mod estimate;
pub mod evidence;
pub mod expect;
pub mod gate;
pub mod history;
pub mod inputs;
pub mod interrupt;
pub mod join;
pub mod kernel;
pub mod lock;
pub mod plan;
pub mod progress;
pub mod publish;
pub mod resume;
pub mod runner;
pub mod scenario;
pub mod session;
pub mod store;
pub mod tables;
pub mod weights;
pub mod worker;

use std::process::ExitCode;

pub use cli::Cli;
pub use error::{Error, Exit, Result};

use cli::Command;

/// Runs one command.
///
/// # Errors
/// Whatever the user can mend; the error knows the exit code.
pub fn run(cli: &Cli) -> Result<ExitCode> {
    let exit = match &cli.command {
        Command::Run(args) if args.dry_run => plan::show(&args.select)?,
        Command::Run(args) => session::run(args)?,
        Command::Plan(args) => plan::show(args)?,
        Command::Doctor => doctor::show()?,
        Command::Schema => print_schema(),
        Command::Report { dir } => session::report(dir)?,
        Command::Join(args) => join::run(args)?,
        Command::Audit { dir } => audit::again(dir)?,
        Command::Compare(args) => compare::run(args)?,
        Command::History(command) => history::run(command)?,
        Command::Publish(args) => publish::run(args)?,
        Command::Claims(command) => claims::run(command)?,
        Command::Verify(args) => evidence::show(args)?,
        Command::Kernel(args) => kernel::run(args)?,
        Command::Env(command) => env::commands::run(command)?,
        Command::Gate(args) => gate::run(args)?,
        Command::Noise(args) => gate::noise::run(args)?,
        Command::Worker(command) => return Ok(worker::run(command)),
    };
    Ok(ExitCode::from(exit as u8))
}

fn print_schema() -> Exit {
    let schema = schemars::schema_for!(scenario::Raw);
    println!("{}", serde_json::to_string_pretty(&schema).expect("plain data"));
    Exit::Pass
}
