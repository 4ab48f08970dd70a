//! The `chronibench` command.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match chronibench::run(&chronibench::Cli::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(e.exit as u8)
        }
    }
}
