//! `chronibench plan`: cases, order and estimated time, without running.

use std::{path::Path, time::Duration};

use chronibench_analysis::skipped;
use chronibench_protocol::{
    record::{Case, Resolved},
    spec::Method,
};
use comfy_table::Table;
use indicatif::HumanDuration;

use crate::{
    cli::SelectArgs,
    error::{AtPath, Exit, Result},
    estimate::{self, Pace},
    expect::HfConfig,
    inputs::{self, Extent, Inputs},
    interrupt,
    runner::child,
    scenario::Setup,
    session,
};

/// Prints the plan of a scenario.
pub fn show(args: &SelectArgs) -> Result<Exit> {
    let setup = session::set_up(args)?;
    interrupt::install();
    let scratch = tempfile::tempdir().at(&std::env::temp_dir())?;
    let inputs = inputs::prepare(&setup, scratch.path(), Extent::Tokens)?;
    let (seconds, basis) = estimates(&setup, &inputs, scratch.path())?;
    let resolved = &setup.resolved;
    println!("{} — {}", resolved.name, resolved.title);
    println!("{}", table(resolved, &inputs, &seconds));
    println!("order: {}", order(resolved));
    for line in skipped::lines(&resolved.skipped) {
        println!("{line}");
    }
    let by_id = |id: &String| seconds_of(id, resolved, &seconds);
    let total: f64 = resolved.order.iter().map(by_id).sum();
    println!(
        "{} trials, about {} ({basis})",
        resolved.order.len(),
        HumanDuration(Duration::from_secs_f64(total.max(1.0)))
    );
    Ok(Exit::Pass)
}

/// Seconds a trial of every case takes, and how that is known.
fn estimates(setup: &Setup, inputs: &Inputs, scratch: &Path) -> Result<(Vec<f64>, String)> {
    let cases = &setup.resolved.cases;
    if let Some((dir, pace)) = estimate::earlier_run(Path::new("runs"), &setup.resolved) {
        let known: Option<Vec<f64>> = cases.iter().map(|c| Pace::case(&pace, &c.id)).collect();
        if let Some(seconds) = known {
            return Ok((seconds, format!("measured on this machine in {}", dir.display())));
        }
    }
    let shape = HfConfig::load(&setup.config)?.shape();
    let on_cpu = |c: &Case| c.device == "cpu";
    let gflops = if cases.iter().any(on_cpu) {
        let args = ["worker", "calibrate"].map(String::from);
        let answer = child::answer(&args, scratch, "calibrate", setup.helper_timeout)?;
        estimate::rate(&answer).unwrap_or(1.0)
    } else {
        1.0
    };
    let seconds = cases.iter().map(|c| {
        let counts = inputs.counts(c);
        if on_cpu(c) {
            estimate::from_flops(c, &shape, &counts, gflops)
        } else {
            estimate::GPU_START_S + estimate::from_flops(c, &shape, &counts, estimate::GPU_GFLOPS)
        }
    });
    let basis = if cases.iter().any(on_cpu) {
        format!("a matrix product at {gflops:.0} GFLOP/s")
    } else {
        // A GPU is not started for a guess.
        format!("{:.0} TFLOP/s, as a GPU of a data centre has them", estimate::GPU_GFLOPS / 1e3)
    };
    Ok((seconds.collect(), format!("a rough guess from FLOPs and {basis}; no earlier run here")))
}

/// Seconds of one trial of a case; of a sweep, whose best cell is not known yet, those of its slowest.
fn seconds_of(id: &str, resolved: &Resolved, seconds: &[f64]) -> f64 {
    let is = |c: &Case| c.id == id || c.sweep.as_ref().is_some_and(|s| s.of == id);
    let own = resolved.cases.iter().zip(seconds).filter(|(c, _)| is(c));
    own.map(|(_, s)| *s).fold(0.0, f64::max)
}

fn table(resolved: &Resolved, inputs: &Inputs, seconds: &[f64]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["case", "method", "batch", "kernels", "slots", "real tokens", "s/trial"]);
    for (case, seconds) in resolved.cases.iter().zip(seconds) {
        let counts = inputs.counts(case);
        let batch = &case.batch;
        table.add_row([
            case.id.clone(),
            method(case),
            format!(
                "{} × {} rows, {}",
                batch.gradient_accumulation_steps,
                batch.per_device_train_batch_size,
                batch.packing.name()
            ),
            kernels(case),
            counts.slots.to_string(),
            counts.real.to_string(),
            format!("{seconds:.1}"),
        ]);
    }
    table
}

fn method(case: &Case) -> String {
    match &case.method {
        Method::Full {} => format!("full, lr {:e}", case.train.learning_rate),
        Method::Lora(l) => format!("lora r={}, lr {:e}", l.r, case.train.learning_rate),
    }
}

/// Kernels that differ from the commonest variant, or that variant alone.
fn kernels(case: &Case) -> String {
    let mut by_variant: Vec<(&str, Vec<&str>)> = Vec::new();
    for (seam, variant) in &case.kernels {
        match by_variant.iter_mut().find(|(v, _)| *v == variant.as_str()) {
            Some((_, seams)) => seams.push(seam),
            None => by_variant.push((variant, vec![seam])),
        }
    }
    by_variant.sort_by_key(|(_, seams)| std::cmp::Reverse(seams.len()));
    let others = by_variant.iter().skip(1).map(|(v, seams)| format!("{v}: {}", seams.join(" ")));
    by_variant.first().map(|(v, _)| v.to_string()).into_iter().chain(others).collect::<Vec<_>>().join("; ")
}

/// The first two rounds tell the order: forward, then backward.
fn order(resolved: &Resolved) -> String {
    let (first, later) = resolved.order.split_at(resolved.cases.len());
    // Later rounds are as long as each other: a sweep has one place in each.
    let second = &later[..later.len() / (resolved.trials as usize - 1).max(1)];
    let rounds: Vec<String> =
        [first, second].into_iter().filter(|r| !r.is_empty()).map(|r| r.join(" → ")).collect();
    let more = if resolved.trials > 2 { "\n       … and so on" } else { "" };
    format!("{}{more}", rounds.join("\n       "))
}
