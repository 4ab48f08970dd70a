//! `chronicals data`: what a training sees of a file.

mod show;
mod stats;

use std::path::{Path, PathBuf};

use chronibench_protocol::record::{BatchArgs, Packing};
use chronicals::{
    Error,
    job::{Job, JobData},
};

/// Arguments of `data`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Print samples as the model gets them, and which of their tokens are learned
    Show(show::Args),
    /// Count samples and tokens: lengths, what is cut or left out, how full rows are
    Stats(stats::Args),
}

/// Runs a sub-command.
pub fn run(args: &Args) -> Result<(), Error> {
    match &args.command {
        Command::Show(a) => show::run(a),
        Command::Stats(a) => stats::run(a),
    }
}

/// What both read. Flags win over a job's settings.
#[derive(clap::Args)]
struct Source {
    /// Data set (JSONL, JSON, CSV, Parquet), or the YAML file of a job
    file: PathBuf,
    /// tokenizer.json or its folder; a job has its own
    #[arg(long, short)]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    samples: Samples,
    /// Longest sample, tokens; without it, and without a job, nothing is cut
    #[arg(long)]
    max_length: Option<u32>,
}

/// From records to samples, and what of these is learned, or counts where nothing learns.
#[derive(clap::Args)]
pub struct Samples {
    /// Shape of the records: messages, sharegpt, prompt_completion, alpaca, text; else recognised
    #[arg(long)]
    format: Option<String>,
    /// A key that is not the usual one, e.g. prompt=question; may come several times
    #[arg(long = "column", value_name = "ROLE=KEY")]
    columns: Vec<String>,
    /// From record to text: chat, alpaca, plain, text, auto
    #[arg(long)]
    template: Option<String>,
    /// Jinja file in place of the tokenizer's chat template
    #[arg(long, value_name = "FILE")]
    chat_template_path: Option<PathBuf>,
    /// Loss on what the assistant says only
    #[arg(long)]
    assistant_only_loss: bool,
    /// Loss on what follows the prompt only, as it is for records with a prompt when left out; `false`: on every token
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    completion_only_loss: Option<bool>,
}

impl Samples {
    /// Sets what is given.
    pub fn set(&self, data: &mut JobData) -> Result<(), Error> {
        data.assistant_only_loss |= self.assistant_only_loss;
        data.completion_only_loss = self.completion_only_loss.or(data.completion_only_loss);
        data.template = self.template.clone().unwrap_or_else(|| data.template.clone());
        data.chat_template_path = self.chat_template_path.clone().or(data.chat_template_path.take());
        data.format = self.format.clone().or(data.format.take());
        self.columns.iter().try_for_each(|column| set(data, column))
    }
}

/// Settings of the data, and of the batches where a job says them.
struct Settings {
    data: JobData,
    batch: BatchArgs,
    seed: u64,
}

impl Source {
    fn settings(&self) -> Result<Settings, Error> {
        let extension = self.file.extension().unwrap_or_default();
        let job = extension == "yaml" || extension == "yml";
        let mut settings = if job {
            let Job { data, batch, seed, .. } = Job::load(&self.file)?;
            Settings { data, batch, seed }
        } else {
            let batch = BatchArgs {
                packing: Packing::None,
                per_device_train_batch_size: 8,
                gradient_accumulation_steps: 1,
            };
            Settings { data: JobData::of(self.file.clone(), u32::MAX), batch, seed: 0 }
        };
        let data = &mut settings.data;
        data.max_length = self.max_length.unwrap_or(data.max_length);
        data.tokenizer = self.tokenizer.clone().or(data.tokenizer.take());
        self.samples.set(data)?;
        if data.tokenizer.is_none() {
            return Err(Error::new("no tokenizer is named", "--tokenizer")
                .hint("name the model's folder or its tokenizer.json, or give a job's YAML file instead of a data set"));
        }
        Ok(settings)
    }
}

/// Sets one column, by way of the names that they have in a job.
fn set(data: &mut JobData, column: &str) -> Result<(), Error> {
    let wrong = |what: String| {
        Error::new(what, format!("--column {column}")).hint("write ROLE=KEY, e.g. --column prompt=question")
    };
    let (role, key) = column.split_once('=').ok_or_else(|| wrong("no '=' in it".into()))?;
    let mut columns = serde_json::to_value(&data.columns).expect("plain data");
    columns[role] = key.into();
    data.columns = serde_json::from_value(columns).map_err(|e| wrong(e.to_string()))?;
    Ok(())
}

/// First line of both: what the file turned out to be.
fn heading(path: &Path, recognised: &chronicals::data::dataset::Recognised) {
    println!("{}: {recognised}", path.display());
}
