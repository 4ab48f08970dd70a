//! `chronicals data stats`.

use chronibench_protocol::{
    TokenStore,
    record::{BatchArgs, Packing},
};
use chronicals::{
    Error,
    data::{
        dataset::{self, DatasetArgs, Validation},
        packing::{efficiency, pack},
        plan::build_plan,
        tokenize::cut,
    },
    job::{Counter, told},
};

use super::{Settings, Source};

/// Arguments of `stats`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  chronicals data stats train.yaml                      at the job's max_length and batch size
  chronicals data stats train.yaml --max-length 1024    what another length would cut
  chronicals data stats chat.jsonl --tokenizer model/ --max-length 2048

Lengths are those before anything is cut.")]
pub struct Args {
    #[command(flatten)]
    source: Source,
}

/// Prints the counts.
pub fn run(args: &Args) -> Result<(), Error> {
    let Settings { mut data, batch, seed } = args.source.settings()?;
    let tokenizer = data.tokenizer()?;
    let (read, tokenize) = (data.read_args(), data.tokenize_args()?);
    let set = DatasetArgs {
        path: &data.path,
        read: &read,
        tokenize: &tokenize,
        validation: Validation::None,
        seed,
    };
    let counter = Counter::new();
    let (samples, recognised) =
        dataset::tokens(&data.path, &set, &tokenizer, &data.token_cache(), &mut |n| counter.set(n))
            .map_err(|e| told(&e, &data.path))?;
    drop(counter);
    super::heading(&data.path, &recognised);
    let mut lengths = samples.store.lengths();
    lengths.sort_unstable();
    let Some(&longest) = lengths.last() else {
        println!("every record has an empty answer: there is nothing to learn");
        return Ok(());
    };
    data.max_length = data.max_length.min(longest as u32);
    let (kept, mut report) = cut(&samples.store, data.max_length, data.overlong);
    report.read += samples.empty;
    report.empty = samples.empty;
    println!("{report}");
    tokens(&samples.store, &lengths);
    histogram(&lengths);
    rows(&kept, &batch, data.max_length, seed)
}

fn tokens(store: &TokenStore, lengths: &[usize]) {
    let total = store.input_ids.len();
    let learned: usize =
        (0..store.len()).map(|s| store.sample(s).1.iter().skip(1).filter(|&&m| m != 0).count()).sum();
    let share = 100.0 * learned as f64 / total.max(1) as f64;
    println!("\ntokens      {total}, of which {learned} learned ({share:.1} %)");
    let at = |q: f64| lengths[((lengths.len() - 1) as f64 * q).round() as usize];
    println!(
        "lengths     mean {:.1}, median {}, 90 % up to {}, 99 % up to {}, longest {}",
        total as f64 / lengths.len() as f64,
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}

/// Samples by length, in classes that double.
fn histogram(lengths: &[usize]) {
    const WIDTH: usize = 40;
    let mut classes: Vec<(usize, usize)> = Vec::new();
    for &n in lengths {
        let end = n.max(1).next_power_of_two();
        match classes.last_mut() {
            Some((last, count)) if *last == end => *count += 1,
            _ => classes.push((end, 1)),
        }
    }
    let most = classes.iter().map(|&(_, count)| count).max().unwrap_or(1);
    println!("\n{:>15}  samples", "tokens");
    for (end, count) in classes {
        let bar = "█".repeat((count * WIDTH).div_ceil(most));
        let class = format!("{}–{end}", end / 2 + 1);
        println!("{class:>15}  {bar:<WIDTH$} {count} ({:.1} %)", 100.0 * count as f64 / lengths.len() as f64);
    }
}

/// How much of the rows holds a token.
fn rows(kept: &TokenStore, batch: &BatchArgs, max_length: u32, seed: u64) -> Result<(), Error> {
    if kept.is_empty() {
        println!("\nno sample is left at max_length {max_length}");
        return Ok(());
    }
    let lengths = kept.lengths();
    let size = batch.per_device_train_batch_size.max(1);
    let padded = BatchArgs {
        packing: Packing::None,
        per_device_train_batch_size: size,
        gradient_accumulation_steps: 1,
    };
    let steps = lengths.len().div_ceil(size as usize) as u32;
    let batch_error = |e: &dyn std::fmt::Display| told(e, "batch".as_ref());
    let plan = build_plan(&lengths, &padded, max_length, 0, seed, steps).map_err(|e| batch_error(&e))?;
    let (mut slots, mut real) = (0usize, 0usize);
    for micro in plan.steps.iter().flat_map(|s| &s.micro_batches) {
        slots += micro.rows.len() * micro.row_slots as usize;
        real += micro.rows.iter().flatten().map(|&s| lengths[s as usize]).sum::<usize>();
    }
    let capacity = max_length as usize;
    let bins = pack(&lengths, capacity, Packing::Bfd).map_err(|e| batch_error(&e))?;
    println!("\nslots that hold a token, at max_length {max_length}");
    let line = |name: &str, share: f64, rows: usize| {
        println!("  {name:<34} {:5.1} %  {rows} rows an epoch", 100.0 * share);
    };
    let name = format!("packing: none, batches of {size}");
    line(&name, real as f64 / slots.max(1) as f64, lengths.len());
    let whole = lengths.iter().sum::<usize>() as f64 / (lengths.len() * capacity) as f64;
    line("rows padded to max_length", whole, lengths.len());
    line("packing: bfd", efficiency(&lengths, &bins, capacity), bins.len());
    Ok(())
}
