//! `chronicals memory`.

use std::path::PathBuf;

use chronibench_protocol::spec::{LoraArgs, Method};
use chronicals::{
    Error,
    backend::Component,
    config::ModelConfig,
    memory::{Accounting, Elements, elements_for, elements_of},
};
use clap::ValueEnum;

/// Arguments of `memory`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  chronicals memory --model config.json                          full fine-tuning, 1 x 512, as this CPU trainer holds it
  chronicals memory --model config.json --method lora --r 32 --rows 8 --row-slots 512
  chronicals memory --params 7e9 --accounting paper              14 + 14 + 56 = 84 GB")]
pub struct Args {
    /// Hugging Face config.json
    #[arg(long, required_unless_present = "params", conflicts_with = "params")]
    model: Option<PathBuf>,
    /// Number of parameters, for states alone, e.g. 7e9
    #[arg(long)]
    params: Option<f64>,
    /// What trains
    #[arg(long, value_enum, default_value = "full")]
    method: MethodName,
    /// LoRA rank
    #[arg(long, default_value_t = 16)]
    r: usize,
    /// Rows of a micro-batch
    #[arg(long, default_value_t = 1)]
    rows: usize,
    /// Slots of a row
    #[arg(long, default_value_t = 512)]
    row_slots: usize,
    /// Bytes of an element
    #[arg(long, value_enum, default_value = "cpu")]
    accounting: Rule,
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodName {
    Full,
    Lora,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Rule {
    /// f32 throughout, as this trainer's CPU backend holds it
    Cpu,
    /// bf16 weights and gradients, f32 moments and nothing else, as arXiv 2601.02609 counts
    Paper,
}

/// Prints the plan.
pub fn run(args: &Args) -> Result<(), Error> {
    let (title, elements) = count(args)?;
    let accounting = match args.accounting {
        Rule::Cpu => Accounting::CPU,
        Rule::Paper => Accounting::PAPER,
    };
    let bytes = accounting.bytes(&elements);
    println!("{title}\n");
    for (name, b) in &bytes {
        println!("{name:<18} {:>12}", human(*b));
    }
    println!("{:<18} {:>12}", "total", human(bytes.values().sum()));
    for line in left_out(args, &elements) {
        println!("\n{line}");
    }
    Ok(())
}

fn count(args: &Args) -> Result<(String, Elements), Error> {
    if let Some(n) = args.params {
        if !(1.0..1e15).contains(&n) {
            return Err(Error::new(format!("{n} parameters"), "--params").hint("give a count such as 7e9"));
        }
        return Ok((format!("{n:e} parameters, full fine-tuning"), elements_of(n as u64)));
    }
    let path = args.model.as_ref().expect("clap asks for --model or --params");
    let config = ModelConfig::load(path)?;
    if args.rows == 0 || args.row_slots == 0 {
        return Err(Error::new("an empty batch", "--rows, --row-slots").hint("give at least 1 of each"));
    }
    let (name, method) = match args.method {
        MethodName::Full => ("full fine-tuning".to_string(), Method::Full {}),
        MethodName::Lora => {
            let lora: LoraArgs =
                serde_json::from_value(serde_json::json!({"r": args.r, "lora_alpha": args.r}))
                    .expect("rank and alpha are enough for LoRA");
            (format!("LoRA r={}", args.r), Method::Lora(lora))
        }
    };
    let elements = elements_for(&config, &method, args.rows, args.row_slots)?;
    let params = elements.0.get(&Component::Weights).copied().unwrap_or(0);
    let title = format!("{params} parameters, {name}, micro-batch {} x {}", args.rows, args.row_slots);
    Ok((title, elements))
}

/// What the figures do not hold.
fn left_out(args: &Args, elements: &Elements) -> Vec<String> {
    let mut lines = Vec::new();
    if args.accounting == Rule::Paper {
        let master = elements.0.get(&Component::Gradients).copied().unwrap_or(0) * 4;
        lines.push(format!(
            "left out by this accounting: f32 master weights ({}), activations, logits, temporaries of kernels,\n\
             fragmentation, and the program itself",
            human(master)
        ));
    } else if args.params.is_some() {
        lines.push("left out without a config: activations and logits".to_string());
    } else {
        lines.push("left out: the program itself and the tokenised data set".to_string());
    }
    lines
}

/// Decimal units, as GPU memory is quoted in papers.
fn human(bytes: u64) -> String {
    let b = bytes as f64;
    match b {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.2} MB", b / 1e6),
        b => format!("{:.2} kB", b / 1e3),
    }
}
