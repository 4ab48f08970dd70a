//! `chronicals memory`.

use std::{collections::BTreeSet, path::PathBuf};

use chronibench_protocol::spec::{Dtype, LoraArgs, Method, PrecisionArgs, States};
use chronicals::{
    Error,
    backend::{
        Component, cpu,
        cuda::{
            Formats,
            plan::{self, Gpu},
        },
    },
    config::ModelConfig,
    memory::{Accounting, Elements, Plan, cpu_bytes, elements, elements_for, elements_of, gigabytes},
    model::{Capacity, Level, Setup},
};
use chronicals_kernels::linear_ce;
use clap::ValueEnum;

/// Arguments of `memory`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  chronicals memory --model config.json                          full fine-tuning, 1 x 512, on a CPU
  chronicals memory --model config.json --method lora --r 32 --rows 8 --row-slots 512
  chronicals memory --model config.json --accounting cuda --rows 16 --row-slots 2048 --states 8bit
  chronicals memory --model config.json --accounting cuda --rows 16 --memory-limit-gb 40
  chronicals memory --model config.json --accounting cuda --states bf16 --offload
  chronicals memory --params 7e9 --accounting paper              14 + 14 + 56 = 84 GB")]
pub struct Args {
    /// Hugging Face config.json
    #[arg(long, required_unless_present = "params", conflicts_with = "params")]
    model: Option<PathBuf>,
    /// Number of parameters, for states of full fine-tuning alone, e.g. 7e9
    #[arg(long, conflicts_with_all = ["method", "r", "rows", "row_slots", "dtype", "states", "loss_chunk_rows"])]
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
    /// Element type on a GPU
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DtypeName,
    /// What the optimizer keeps; on a processor f32 or 8bit
    #[arg(long, value_enum, default_value = "f32")]
    states: StatesName,
    /// Rows whose logits exist at a time, as train.loss_chunk_rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    loss_chunk_rows: Option<u32>,
    /// Let blocks' inputs wait for the backward pass in the host's memory
    #[arg(long)]
    offload: bool,
    /// Say which level `recompute: auto` takes within so many GB (10⁹ bytes)
    #[arg(long)]
    memory_limit_gb: Option<f64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum DtypeName {
    Bf16,
    F32,
}

#[derive(Clone, Copy, ValueEnum)]
enum StatesName {
    /// f32 parameters and moments
    F32,
    /// bf16 weights and moments
    Bf16,
    /// f32 parameters, 8-bit moments
    #[value(name = "8bit")]
    Eight,
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodName {
    Full,
    Lora,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Rule {
    /// f32 throughout but for 8-bit states, as this trainer's CPU backend holds it
    Cpu,
    /// As this trainer's GPU backend takes it, on an H100 or H200
    Cuda,
    /// bf16 weights and gradients, f32 moments and nothing else, as arXiv 2601.02609 counts
    Paper,
}

/// Prints the plan, of every level of recomputation where it tells them apart.
pub fn run(args: &Args) -> Result<(), Error> {
    check(args)?;
    let (title, elements) = count(args)?;
    let plans = plans(args, &elements)?;
    println!("{title}\n");
    if plans.len() > 1 {
        println!("{:<22} recompute", "");
    }
    table(&plans);
    if let Some(gb) = args.memory_limit_gb {
        println!("\n{}", first_within(&plans, gb));
    }
    for line in left_out(args, &elements) {
        println!("\n{line}");
    }
    Ok(())
}

/// What does not go together, before anything is printed.
fn check(args: &Args) -> Result<(), Error> {
    if args.offload && args.accounting != Rule::Cuda {
        return Err(Error::new("a processor has no other memory to move activations to", "--offload")
            .hint("use --accounting cuda"));
    }
    if args.model.is_none() && args.accounting == Rule::Cuda {
        return Err(Error::new("a GPU's memory cannot be counted from a number of parameters", "--params")
            .hint("give --model config.json"));
    }
    match args.memory_limit_gb {
        Some(gb) if args.model.is_none() || args.accounting == Rule::Paper => {
            Err(Error::new(format!("{gb} GB limit nothing: this plan has no levels"), "--memory-limit-gb")
                .hint("give --model config.json and --accounting cpu or cuda"))
        }
        _ => Ok(()),
    }
}

/// The plan of every level of recomputation, or one where they are not told apart.
fn plans(args: &Args, elements: &Elements) -> Result<Vec<(&'static str, Plan)>, Error> {
    match (&args.model, args.accounting) {
        (None, _) | (_, Rule::Paper) => {
            let rule = if args.accounting == Rule::Paper { Accounting::PAPER } else { Accounting::CPU };
            Ok(vec![("", Plan { bytes: rule.bytes(elements), host_bytes: 0 })])
        }
        (Some(path), Rule::Cpu | Rule::Cuda) => {
            let config = ModelConfig::load(path)?;
            Level::ALL.into_iter().map(|level| Ok((level.name(), plan(args, &config, level)?))).collect()
        }
    }
}

/// A row for each component, a column for each plan.
fn table(columns: &[(&str, Plan)]) {
    let line = |name: &str, cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<String> = cells.map(|cell| format!("{cell:>12}")).collect();
        println!("{name:<22} {}", cells.join(" "));
    };
    if columns.len() > 1 {
        line("", &mut columns.iter().map(|(name, _)| name.to_string()));
    }
    let names: BTreeSet<&String> = columns.iter().flat_map(|(_, plan)| plan.bytes.keys()).collect();
    for name in names {
        let cell = |plan: &Plan| plan.bytes.get(name).map_or("-".into(), |bytes| gigabytes(*bytes));
        line(name, &mut columns.iter().map(|(_, plan)| cell(plan)));
    }
    line("total", &mut columns.iter().map(|(_, plan)| gigabytes(plan.total())));
    if columns.iter().any(|(_, plan)| plan.host_bytes > 0) {
        line("page-locked on host", &mut columns.iter().map(|(_, plan)| gigabytes(plan.host_bytes)));
    }
}

/// What `recompute: auto` takes under a limit.
fn first_within(columns: &[(&str, Plan)], gb: f64) -> String {
    let fits = columns.iter().find(|(_, plan)| plan.total() as f64 <= gb * 1e9);
    match fits {
        Some((name, _)) => format!("within {gb} GB: recompute: auto takes {name}"),
        None => format!("within {gb} GB: nothing fits"),
    }
}

fn plan(args: &Args, config: &ModelConfig, recompute: Level) -> Result<Plan, Error> {
    let (_, method) = method(args);
    let capacity = Capacity { tokens: args.rows.saturating_mul(args.row_slots), row_slots: args.row_slots };
    let setup = Setup {
        config,
        method: &method,
        capacity,
        plan: Default::default(),
        recompute,
        offload: args.offload,
    };
    let loss = linear_ce::Options {
        chunk_rows: args.loss_chunk_rows.map(|n| n as usize),
        ..linear_ce::Options::default()
    };
    let states = match args.states {
        StatesName::F32 => States::F32,
        StatesName::Bf16 => States::Bf16,
        StatesName::Eight => States::Eight,
    };
    if args.accounting == Rule::Cpu {
        let formats = cpu::Formats::new(PrecisionArgs { dtype: None, states: Some(states) }, "--states")?;
        return Ok(Plan { bytes: cpu_bytes(&elements(&setup, loss)?, formats), host_bytes: 0 });
    }
    let dtype = match args.dtype {
        DtypeName::Bf16 => Dtype::Bf16,
        DtypeName::F32 => Dtype::F32,
    };
    let formats = Formats::from(PrecisionArgs { dtype: Some(dtype), states: Some(states) });
    plan::bytes(&setup, loss, formats, Gpu::HOPPER)
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
    let (name, method) = method(args);
    let elements = elements_for(&config, &method, args.rows, args.row_slots, Level::None)?;
    let params = elements.0.get(&Component::Weights).copied().unwrap_or(0);
    let title = format!("{params} parameters, {name}, micro-batch {} x {}", args.rows, args.row_slots);
    Ok((title, elements))
}

fn method(args: &Args) -> (String, Method) {
    match args.method {
        MethodName::Full => ("full fine-tuning".to_string(), Method::Full {}),
        MethodName::Lora => {
            let lora: LoraArgs =
                serde_json::from_value(serde_json::json!({"r": args.r, "lora_alpha": args.r}))
                    .expect("rank and alpha are enough for LoRA");
            (format!("LoRA r={}", args.r), Method::Lora(lora))
        }
    }
}

/// What the figures do not hold.
fn left_out(args: &Args, elements: &Elements) -> Vec<String> {
    let mut lines = Vec::new();
    if args.accounting == Rule::Paper {
        let master = elements.0.get(&Component::Gradients).copied().unwrap_or(0) * 4;
        lines.push(format!(
            "left out by this accounting: f32 master weights ({}), activations, logits, temporaries of kernels,\n\
             fragmentation, and the program itself",
            gigabytes(master)
        ));
    } else if args.params.is_some() {
        lines.push("left out without a config: activations and logits".to_string());
    } else if args.accounting == Rule::Cuda {
        lines.push(
            "left out: the driver's context, machine code, captured graphs, and operands of tuning, which go again"
                .to_string(),
        );
    } else {
        lines.push("left out: the program itself and the tokenised data set".to_string());
    }
    lines
}
