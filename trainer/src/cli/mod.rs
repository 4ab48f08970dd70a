//! Arguments, sub-commands and exit codes of `chronicals`.

mod convert;
mod data;
mod describe;
mod evaluate;
mod generate;
mod init;
mod interrupt;
mod memory;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Fine-tune language models, on a CPU or a GPU.
#[derive(Parser)]
#[command(
    name = "chronicals",
    version,
    after_help = "Examples:
  chronicals import model.gguf my-model
  chronicals init --model my-model --data chat.jsonl --gpu 24GB
  chronicals train --config train.yaml
  chronicals generate --model my-model --adapter out --chat --prompt \"Name three colours.\"
  chronicals merge --model my-model --adapter out merged
  chronicals data show train.yaml
  chronicals memory --model config.json --method lora --r 32 --rows 8 --row-slots 512
  chronicals memory --params 7e9 --accounting paper
  chronicals describe --json

Exit codes: 0 done, 2 wrong arguments or settings, 5 the machine lacks a GPU, a library or memory, 6 training failed, 130 a signal ended it."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a training's file with settings that a GPU's memory has room for
    Init(init::Args),
    /// Train a model on a data set
    Train(train::Args),
    /// Show what a training sees of its data: samples, masks, lengths
    Data(data::Args),
    /// Print loss and perplexity of a model on a text or a data set
    Evaluate(evaluate::Args),
    /// Continue a text, or answer a question
    Generate(generate::Args),
    /// Make a Hugging Face folder of a GGUF file, a repository of the hub, or another folder
    Import(convert::Import),
    /// Make a Hugging Face folder of what full fine-tuning left
    Export(convert::Export),
    /// Make a Hugging Face folder of a model with an adapter added to its weights
    Merge(convert::Merge),
    /// Print the memory that a training needs, by component
    Memory(memory::Args),
    /// List the seams of a step, their variants and the models supported
    Describe(describe::Args),
}

/// A failure with the exit code that tells its kind.
pub struct Exit {
    code: u8,
    error: chronicals::Error,
}

impl Exit {
    /// Arguments, settings or files that the user can mend before anything ran, or a machine that lacks something.
    pub fn usage(error: chronicals::Error) -> Self {
        Self { code: if error.is_environment() { 5 } else { 2 }, error }
    }

    /// A signal ended it, in good order.
    pub fn interrupted(error: chronicals::Error) -> Self {
        Self { code: interrupt::CODE, error }
    }

    /// Training started and failed.
    pub fn failed(error: chronicals::Error) -> Self {
        Self { code: 6, error }
    }
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Init(a) => init::run(&a).map_err(Exit::usage),
        Command::Train(a) => train::run(&a),
        Command::Data(a) => data::run(&a).map_err(Exit::usage),
        Command::Evaluate(a) => evaluate::run(&a).map_err(Exit::usage),
        Command::Generate(a) => generate::run(&a).map_err(Exit::usage),
        Command::Import(a) => convert::import(&a).map_err(Exit::usage),
        Command::Export(a) => convert::export(&a).map_err(Exit::usage),
        Command::Merge(a) => convert::merge(&a).map_err(Exit::usage),
        Command::Memory(a) => memory::run(&a).map_err(Exit::usage),
        Command::Describe(a) => {
            describe::run(&a);
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit { code, error }) => {
            eprintln!("error: {error}");
            ExitCode::from(code)
        }
    }
}
