//! `chronicals evaluate`.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use chronibench_protocol::{
    TokenStore,
    record::Packing,
    spec::{Method, TrainArgs},
};
use chronicals::{
    Error, Trainer,
    backend::Backend,
    config::ModelConfig,
    device::Device,
    evaluate::{Evaluate, on_device, setup},
    fit::{self, Batches, Evaluation},
    formats::{hub, peft::AdapterConfig},
    job::{JobData, told},
    lora,
    model::Setup,
};
use chronicals_data::{plan::evaluation_plan, tokenizer::TextTokenizer};

use super::data::Samples;

/// Arguments of `evaluate`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  chronicals evaluate --model smollm2 --text \"The capital of France is Paris.\"
  chronicals evaluate --model smollm2 --data held-out.jsonl --max-length 1024
  chronicals evaluate --model smollm2 --adapter out --data held-out.jsonl --device cuda
  chronicals evaluate --model smollm2 --data chat.jsonl --assistant-only-loss
  chronicals evaluate --model smollm2 --data held-out.jsonl --completion-only-loss false
  chronicals evaluate --model smollm2 --data held-out.jsonl --per-token > tokens.jsonl
A text begins with the token that the tokenizer puts in front, if any. Of data the tokens count that a training with these settings would learn: \
of records with a prompt what follows it. Prints the mean loss over the tokens that count, and e to it. With --per-token that goes to the standard error, and the \
standard output has a JSON object a line for every token: sample and position, both from 0, id, token, log_probability in nats (null for the \
first of a sample, which nothing comes before), and whether it is learned.")]
pub struct Args {
    /// Hugging Face folder, or repository of the hub (fetched; `HF_HUB_OFFLINE=1` forbids it)
    #[arg(long)]
    model: PathBuf,
    /// Folder of a LoRA adapter
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// A text, of which every token counts
    #[arg(long, conflicts_with_all = ["data", "Samples"], required_unless_present = "data")]
    text: Option<String>,
    /// JSON Lines, JSON, CSV or Parquet file
    #[arg(long)]
    data: Option<PathBuf>,
    #[command(flatten)]
    samples: Samples,
    /// Longest sample, tokens; longer ones are cut
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..))]
    max_length: u32,
    /// Rows of a batch
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Print every token with its log-probability, and whether it is learned or masked
    #[arg(long)]
    per_token: bool,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// Evaluates.
pub fn run(a: &Args) -> Result<(), Error> {
    let device: Device = a.device.parse()?;
    let folder = hub::resolve(&a.model)?;
    let config = ModelConfig::load(&folder.join("config.json"))?;
    let (batches, tokenizer) = batches(a, &folder, &config)?;
    let method = match &a.adapter {
        None => Method::Lora(lora::no_adapters()),
        Some(dir) => Method::Lora(AdapterConfig::load(dir)?.lora(dir)?),
    };
    let per_token = a.per_token.then_some(&tokenizer);
    let run = Run { folder: &folder, adapter: a.adapter.as_deref(), batches: &batches, per_token };
    on_device(device, &setup(&config, &method, &batches), &run)
}

fn batches(a: &Args, folder: &Path, config: &ModelConfig) -> Result<(Batches, TextTokenizer), Error> {
    let mut data = JobData::of(a.data.clone().unwrap_or_default(), a.max_length);
    data.tokenizer = Some(folder.to_path_buf());
    a.samples.set(&mut data)?;
    let tokenizer = data.tokenizer()?;
    let tokens = match &a.text {
        Some(text) => of_text(text, a.max_length, &tokenizer)?,
        None => {
            let read = data.dataset(&tokenizer, 0)?;
            eprintln!("data: {}\n{}", read.recognised, read.report);
            read.train
        }
    };
    let longest = tokens.lengths().into_iter().max().unwrap_or(0) as u32;
    let positions = config.max_positions;
    if longest as usize > positions {
        let what = format!("a sample has {longest} tokens, the model has {positions} positions");
        let at = a.data.as_ref().map_or("--text".into(), |path| path.display().to_string());
        return Err(Error::new(what, at)
            .hint(format!("give --max-length {positions} or less: longer samples are then cut")));
    }
    let rows = a.rows.min(tokens.len() as u32);
    let plan = evaluation_plan(&tokens.lengths(), Packing::None, rows, a.max_length, tokenizer.pad().id)
        .map_err(|e| told(&e, Path::new("the batches")))?;
    let batches = Batches::new(tokens, plan, config, &tokenizer.path().display().to_string())?;
    Ok((batches, tokenizer))
}

/// One sample, which begins as all others of the tokenizer do.
fn of_text(text: &str, max_length: u32, tokenizer: &TextTokenizer) -> Result<TokenStore, Error> {
    let ids = tokenizer.encode(vec![text.into()]).map_err(|e| told(&e, tokenizer.path()))?;
    let mut ids = [tokenizer.bos(), &ids.concat()].concat();
    if ids.len() < 2 {
        return Err(
            Error::new("a text of less than two tokens has no loss", "--text").hint("give a longer one")
        );
    }
    if ids.len() > max_length as usize {
        eprintln!("the text is cut from {} tokens to --max-length {max_length}", ids.len());
        ids.truncate(max_length as usize);
    }
    let mut tokens = TokenStore::new();
    tokens.push(&ids, &vec![1; ids.len()]);
    Ok(tokens)
}

struct Run<'a> {
    folder: &'a Path,
    adapter: Option<&'a Path>,
    batches: &'a Batches,
    /// Tells tokens as text, where each is to be printed.
    per_token: Option<&'a TextTokenizer>,
}

impl Evaluate for Run<'_> {
    type Found = ();

    fn on<B: Backend>(&self, backend: B, setup: &Setup<'_>) -> Result<(), Error> {
        let mut trainer = Trainer::new(backend, setup, &TrainArgs::default(), 1)?;
        trainer.load_weights(self.folder)?;
        match self.adapter {
            Some(dir) => trainer.load_adapters(dir)?,
            None => trainer.init_adapters(setup.config, 0)?,
        }
        let sum = |e: Evaluation| {
            format!("loss {:.4} over {} tokens, perplexity {:.4}", e.loss(), e.loss_tokens, e.perplexity())
        };
        match self.per_token {
            None => println!("{}", sum(fit::evaluate(&mut trainer, self.batches)?)),
            Some(tokenizer) => eprintln!("{}", sum(self.tokens(&mut trainer, tokenizer)?)),
        }
        Ok(())
    }
}

impl Run<'_> {
    /// Prints every token; the loss of all.
    fn tokens<B: Backend>(
        &self,
        trainer: &mut Trainer<B>,
        tokenizer: &TextTokenizer,
    ) -> Result<Evaluation, Error> {
        let head = trainer.head()?;
        let mut all = Evaluation { loss_sum: 0.0, loss_tokens: 0 };
        let mut out = std::io::stdout().lock();
        let failed = |e: std::io::Error| Error::io(Path::new("the standard output"), &e);
        for (step, plan) in self.batches.plan().steps.iter().enumerate() {
            let batches = self.batches.step(step as u32)?.micro_batches;
            for (batch, micro) in batches.iter().zip(&plan.micro_batches) {
                let (loss, found) = trainer.log_probabilities(batch, &head)?;
                all.loss_sum += loss.loss_sum;
                all.loss_tokens += loss.loss_tokens;
                for (samples, row) in micro.rows.iter().zip(found.chunks(batch.row_slots)) {
                    let mut slots = row.iter();
                    for sample in samples {
                        let (ids, mask) = self.batches.tokens().sample(*sample as usize);
                        for (position, (id, learned)) in ids.iter().zip(mask).enumerate() {
                            let text = tokenizer.decode(&[*id]).map_err(|e| told(&e, tokenizer.path()))?;
                            let line = serde_json::json!({
                                "sample": sample, "position": position, "id": id, "token": text,
                                "log_probability": slots.next().expect("a slot for each token"),
                                "learned": *learned != 0 && position > 0,
                            });
                            writeln!(out, "{line}").map_err(failed)?;
                        }
                    }
                }
            }
        }
        out.flush().map_err(failed)?;
        Ok(all)
    }
}
