//! `chronibench doctor`: the machine, its libraries, and what will be skipped and why.

use chronicals_kernels::gpu::library;
use serde_json::Value;

use crate::{
    environment,
    error::{Exit, Result},
    runner::gpu::Gpu,
};

/// Prints what was found.
pub fn show() -> Result<Exit> {
    let machine = environment::machine()?;
    let text = |key: &str| match &machine[key] {
        Value::String(s) => s.clone(),
        Value::Null => "not told by the system".to_string(),
        other => other.to_string(),
    };
    println!("machine");
    println!("  cpu       {} ({})", text("cpu"), text("architecture"));
    println!("  cores     {} usable of {} logical", text("usable_cores"), text("logical_cores"));
    println!("  memory    {:.1} GiB", machine["memory_bytes"].as_f64().unwrap_or(0.0) / (1u64 << 30) as f64);
    println!("  system    {}, kernel {}", text("os"), text("kernel"));
    println!("  governor  {}", text("governor"));
    if text("governor") == "powersave" {
        println!("            clocks follow the load; `cpupower frequency-set -g performance` steadies them");
    }
    let gpu = gpu();
    println!("cuda libraries");
    for found in library::probe() {
        let file = found.file.as_ref().map(|f| format!("found as {}", f.display()));
        let state = file.unwrap_or_else(|| format!("not found: {}", found.library.hint));
        println!("  {:<12} {state} ({})", found.library.name, found.library.purpose);
    }
    println!("arms");
    println!("  native    runs on the CPU");
    println!("  candle    runs on the CPU");
    match gpu {
        Ok(()) => println!("skipped\n  nothing of a CPU scenario; GPU readings are sampled during trials"),
        Err(why) => println!("skipped\n  GPU readings: {why}"),
    }
    Ok(Exit::Pass)
}

fn gpu() -> Result<(), String> {
    println!("gpu");
    match Gpu::open() {
        Ok(gpu) => {
            let facts = gpu.facts();
            println!("  driver    {}", facts["driver"].as_str().unwrap_or("unknown"));
            for d in facts["devices"].as_array().into_iter().flatten() {
                let gib = d["memory_bytes"].as_f64().unwrap_or(0.0) / (1u64 << 30) as f64;
                let capability = d["compute_capability"].as_str().unwrap_or("?");
                let mig = d["mig"].as_str().map_or(String::new(), |mode| format!(", MIG {mode}"));
                println!(
                    "  device    {}, {gib:.0} GiB, sm {capability}{mig}",
                    d["name"].as_str().unwrap_or("?")
                );
            }
            Ok(())
        }
        Err(e) => {
            println!("  none ({e})");
            Err(format!("NVML finds no GPU: {e}"))
        }
    }
}
