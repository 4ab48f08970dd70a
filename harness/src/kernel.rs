//! `chronibench kernel`: every CUDA kernel alone, beside a copy of its bytes.

use chronibench_analysis::stats::{Estimate, median_estimate, ratio_estimate};
use chronibench_protocol::record::GpuSample;
use chronicals_kernels::gpu::{self, GpuError, bench::Measured, compile::Cache};
use comfy_table::Table;
use serde_json::{Value, json};

use crate::{
    cli::KernelArgs,
    environment,
    error::{Error, Exit, Result},
    interrupt,
    runner::gpu::Gpu,
    store::write_whole,
};

/// Times the kernels whose name contains the filter, prints a table and, where asked, writes every repetition.
pub fn run(args: &KernelArgs) -> Result<Exit> {
    interrupt::install();
    let failed = |e: GpuError| Error::environment(e.what, e.at).hint(e.hint);
    let on = gpu::Gpu::open(0, Cache::of_user()).map_err(failed)?;
    let nvml = Gpu::open().ok();
    println!("{} ({}), {} repetitions, L2 cold", on.name(), on.arch(), args.repetitions);
    let mut all = Vec::new();
    let ran = gpu::bench::each(&on, |op| args.wants(op), &mut |bench| {
        if interrupt::requested() {
            return Ok(());
        }
        let look = || nvml.as_ref().and_then(|g| g.look(&[]));
        let before = look();
        let measured = bench.measure(&on, args.repetitions)?;
        eprintln!("{:<24} {}", measured.op, measured.case);
        all.push(Row { measured, before, after: look() });
        Ok(())
    });
    // What was measured before a failure is not lost by it.
    println!("{}", table(&all));
    if let Some(file) = &args.out {
        let record = json!({
            "schema": "chronibench.kernels/2",
            "environment": environment::describe(nvml.as_ref())?,
            "device": { "name": on.name(), "arch": on.arch() },
            "kernels": all.iter().map(record).collect::<Vec<_>>(),
        });
        write_whole(file, &serde_json::to_vec(&record).expect("plain data"))?;
        println!("record: {}", file.display());
    }
    ran.map_err(failed)?;
    Ok(if interrupt::requested() { Exit::Interrupted } else { Exit::Pass })
}

/// A kernel's times, and the GPU (clock, temperature, power, reasons of throttling) before and after them.
struct Row {
    measured: Measured,
    before: Option<GpuSample>,
    after: Option<GpuSample>,
}

fn table(all: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "kernel",
        "shape",
        "µs [95 %]",
        "TFLOP/s",
        "TB/s",
        "copy TB/s",
        "of the copy [95 %]",
        "µs, L2 warm",
    ]);
    for Row { measured: m, .. } in all {
        let rate = |times: &[f64]| {
            median_estimate(times)
                .map_or("–".into(), |e| format!("{:.2}", m.bytes as f64 / e.median / 1e12))
        };
        let pairs: Vec<(f64, f64)> = m.copy.iter().copied().zip(m.cold.iter().copied()).collect();
        table.add_row([
            m.op.to_string(),
            m.case.clone(),
            spread(median_estimate(&m.cold), 1e6, 1, ""),
            median_estimate(&m.cold)
                .filter(|_| m.flops > 0)
                .map_or("–".into(), |e| format!("{:.0}", m.flops as f64 / e.median / 1e12)),
            rate(&m.cold),
            rate(&m.copy),
            spread(ratio_estimate(&pairs), 100.0, 0, " %"),
            median_estimate(&m.warm).map_or("–".into(), |e| format!("{:.1}", e.median * 1e6)),
        ]);
    }
    table
}

/// `12.3 [12.1, 12.6]`
fn spread(estimate: Option<Estimate>, scale: f64, digits: usize, unit: &str) -> String {
    let Some(e) = estimate else { return "–".into() };
    let interval =
        e.interval.map(|(low, high)| format!(" [{:.digits$}, {:.digits$}]", low * scale, high * scale));
    format!("{:.digits$}{unit}{}", e.median * scale, interval.unwrap_or_default())
}

fn record(Row { measured: m, before, after }: &Row) -> Value {
    json!({
        "kernel": m.op, "case": m.case, "bytes": m.bytes, "flops": m.flops,
        "cold_s": m.cold, "warm_s": m.warm, "copy_s": m.copy, "before": before, "after": after,
    })
}
