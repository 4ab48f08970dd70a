//! `chronicals generate`.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
};

use chronicals::{
    Error,
    config::ModelConfig,
    device::Device,
    formats::hub,
    generate::{Decoder, Limits, Sampler, Sampling, Text, generate},
    job::{JobData, told},
};
use chronicals_data::{records::Message, tokenizer::TextTokenizer};
use serde_json::Value;

/// Arguments of `generate`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  chronicals generate --model smollm2 --chat --prompt \"What is the capital of France?\"
  chronicals generate --model smollm2 --adapter out --chat --prompt \"Name three colours.\"
  chronicals generate --model smollm2 --prompt \"Once upon a time\" --temperature 0.7 --seed 1
  chronicals generate --model smollm2 --chat < question.txt
The most likely token is taken at every place unless a temperature is set. The answer ends at a token that generation_config.json \
or config.json names as eos_token_id, or at the tokenizer's. Text goes to stdout as it comes, the speed to stderr.")]
pub struct Args {
    /// Hugging Face folder, or repository of the hub (fetched; `HF_HUB_OFFLINE=1` forbids it)
    #[arg(long)]
    model: PathBuf,
    /// Folder of a LoRA adapter
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What to continue, or to answer with --chat; read from stdin when left out
    #[arg(long)]
    prompt: Option<String>,
    /// Put the prompt into the model's chat template, as what a user says
    #[arg(long)]
    chat: bool,
    /// What the system says first
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// Most tokens of the answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Divides the logits before a token is drawn; 0 takes the most likely
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Draw among so many of the most likely tokens
    #[arg(long)]
    top_k: Option<usize>,
    /// Draw among the most likely tokens that come to this probability
    #[arg(long)]
    top_p: Option<f64>,
    /// Draw among tokens at least this share as likely as the most likely
    #[arg(long)]
    min_p: Option<f64>,
    /// Above 1: tokens that were there before are less likely
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Seed of what is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// cpu: generation has no kernels on a GPU
    #[arg(long, default_value = "cpu")]
    device: String,
}

impl Args {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }

    fn prompt(&self) -> Result<String, Error> {
        if let Some(prompt) = &self.prompt {
            return Ok(prompt.clone());
        }
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|e| Error::io(Path::new("stdin"), &e))?;
        Ok(text.trim_end_matches('\n').to_string())
    }
}

/// Generates.
pub fn run(a: &Args) -> Result<(), Error> {
    if a.device.parse::<Device>()? != Device::Cpu {
        return Err(Error::new("generation runs on the processor alone", "--device").hint("use --device cpu"));
    }
    let mut sampler = Sampler::new(a.sampling())?;
    let folder = hub::resolve(&a.model)?;
    let config = ModelConfig::load(&folder.join("config.json"))?;
    let mut data = JobData::of(PathBuf::new(), 1);
    data.tokenizer = Some(folder.clone());
    let tokenizer = data.tokenizer()?;
    let prompt = ids(a, &tokenizer)?;
    let limits = Limits { max_new_tokens: a.max_new_tokens as usize, eos: eos(&folder, &tokenizer)? };
    // The last token is not read.
    let context = prompt.len() + limits.max_new_tokens - 1;
    let mut decoder = Decoder::open(&config, &folder, a.adapter.as_deref(), context)?;
    let failed = |e: &dyn std::fmt::Display| told(e, tokenizer.path());
    let mut text = Text::new(|ids: &[u32]| tokenizer.decode(ids).map_err(|e| failed(&e)));
    let began = std::time::Instant::now();
    let new = generate(&mut decoder, &prompt, &mut sampler, &limits, |id| print(&text.push(id)?))?;
    print(&(text.finish()? + "\n"))?;
    let seconds = began.elapsed().as_secs_f64();
    eprintln!(
        "{} tokens behind a prompt of {}, in {seconds:.1} s: {:.1} tokens/s",
        new.len(),
        prompt.len(),
        new.len() as f64 / seconds
    );
    Ok(())
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::io(Path::new("stdout"), &e))
}

/// The prompt's ids, with what the tokenizer or the template puts around it.
fn ids(a: &Args, tokenizer: &TextTokenizer) -> Result<Vec<u32>, Error> {
    let failed = |e: &dyn std::fmt::Display| told(e, tokenizer.path());
    let prompt = a.prompt()?;
    let encode = |text: String| {
        let ids = tokenizer.encode(vec![text]).map_err(|e| failed(&e))?;
        Ok(ids.into_iter().next().unwrap_or_default())
    };
    let ids = if a.chat {
        let template = tokenizer.chat_template().map_err(|e| failed(&e))?.ok_or_else(|| {
            Error::new("the model has no chat template", tokenizer.path().display().to_string())
                .hint("leave --chat out, or put a chat_template.jinja beside the tokenizer")
        })?;
        let system = a.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<_> = system.chain([Message::new("user", &prompt)]).collect();
        encode(template.render(&messages, None, true).map_err(|e| failed(&e))?.text)?
    } else {
        [tokenizer.bos().to_vec(), encode(prompt)?].concat()
    };
    if ids.is_empty() {
        return Err(Error::new("the prompt is empty", "--prompt").hint("give a text of at least one token"));
    }
    Ok(ids)
}

/// Ids that end an answer: one or a list in `generation_config.json`, or else in `config.json`; and the tokenizer's.
fn eos(folder: &Path, tokenizer: &TextTokenizer) -> Result<Vec<u32>, Error> {
    let mut all = vec![tokenizer.eos().id];
    for name in ["generation_config.json", "config.json"] {
        let path = folder.join(name);
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            text => text.map_err(|e| Error::io(&path, &e))?,
        };
        let config: Value = serde_json::from_slice(&text)
            .map_err(|e| Error::new(format!("not JSON: {e}"), path.display().to_string()))?;
        let named: Vec<u32> = match &config["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(id).collect(),
            one => id(one).into_iter().collect(),
        };
        if !named.is_empty() {
            all.extend(named);
            break;
        }
    }
    Ok(all)
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| id.try_into().ok())
}
