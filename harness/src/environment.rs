//! The machine and the program, for the record of a run.

use std::{collections::BTreeMap, path::Path, process::Command};

use chronibench_protocol::{chain::SCHEMA, digest::sha256_hex};
use serde_json::{Value, json};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, System};

use crate::{
    error::{AtPath, Error, Result},
    evidence,
    runner::{child, gpu::Gpu},
};

/// Crates whose version decides what an arm does or how fast.
const CRATES: [&str; 8] =
    ["candle-core", "candle-nn", "chronicals", "gemm", "pulp", "rayon", "safetensors", "tokenizers"];

/// Everything that is known of machine and program, and how the run was begun: with the scenario file, where it is of one.
pub fn describe(gpu: Option<&Gpu>, scenario: Option<&Path>) -> Result<Value> {
    let mut known = json!({
        "schema": "chronibench.environment/1",
        // A folder that says so and has no evidence has lost it.
        (evidence::CHAINS): SCHEMA,
        "machine": machine()?,
        "gpu": gpu.map(Gpu::facts),
        "program": program()?,
        "workers": BTreeMap::from(child::ENVIRONMENT),
        "command": std::env::args().collect::<Vec<_>>(),
        "started_at": jiff::Timestamp::now().to_string(),
    });
    if let Some(path) = scenario {
        known["scenario"] =
            json!({ "given": path.display().to_string(), "in_repository": in_repository(path) });
    }
    Ok(known)
}

/// A file's path from the root of the repository that it is in: what tells others which file it is.
fn in_repository(path: &Path) -> Option<String> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let output =
        Command::new("git").arg("-C").arg(folder).args(["rev-parse", "--show-prefix"]).output().ok()?;
    let prefix =
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())?;
    Some(format!("{prefix}{}", path.file_name()?.to_string_lossy()))
}

/// Processor, memory, system. Two runs with equal values here are of the same machine, for estimates.
pub fn machine() -> Result<Value> {
    let mut system = system()?;
    system.refresh_cpu_list(CpuRefreshKind::nothing());
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    Ok(json!({
        "cpu": system.cpus().first().map(|c| c.brand().trim().to_string()),
        "architecture": System::cpu_arch(),
        "logical_cores": system.cpus().len(),
        "usable_cores": usable_cores(),
        "physical_cores": System::physical_core_count().ok(),
        "memory_bytes": system.total_memory(),
        "os": System::long_os_version().ok(),
        "kernel": System::kernel_version().ok(),
        "governor": governor(),
    }))
}

/// The system's own figures.
pub fn system() -> Result<System> {
    System::new().map_err(|e| {
        Error::environment(format!("the system tells nothing about itself: {e}"), "/proc")
            .hint("mount /proc, or run outside the sandbox")
    })
}

/// Cores that this process may use: affinity and container quota counted.
pub fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Frequency governor of the first core, where the system tells.
fn governor() -> Option<String> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").ok()?;
    Some(text.trim().to_string())
}

/// This program: version, hash, compiler, crates, revision.
pub fn program() -> Result<Value> {
    let exe = std::env::current_exe().at(Path::new("chronibench"))?;
    let binary = std::fs::read(&exe).at(&exe)?;
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "binary_sha256": sha256_hex(&binary),
        "rustc": env!("CHRONIBENCH_RUSTC"),
        "crates": crate_versions(include_str!("../../Cargo.lock")),
        "git": git(),
    }))
}

/// Revision of the sources that this program was built from, when they are still there.
fn git() -> Option<Value> {
    let run = |args: &[&str]| {
        let output =
            Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let revision = run(&["rev-parse", "HEAD"])?;
    let dirty = run(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(json!({ "revision": revision, "dirty": !dirty.is_empty() }))
}

/// Versions of [`CRATES`] in a `Cargo.lock`.
fn crate_versions(lock: &str) -> BTreeMap<&'static str, String> {
    let quoted = |line: &str, key: &str| Some(line.strip_prefix(key)?.trim_matches('"').to_string());
    let mut versions = BTreeMap::new();
    let mut lines = lock.lines();
    while let Some(line) = lines.next() {
        let Some(name) = quoted(line, "name = ") else { continue };
        let version = lines.next().and_then(|l| quoted(l, "version = "));
        if let (Some(known), Some(version)) = (CRATES.iter().find(|c| **c == name), version) {
            versions.insert(*known, version);
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_lock_file() {
        let lock = "[[package]]\nname = \"rayon\"\nversion = \"1.2.3\"\n\n[[package]]\nname = \"other\"\nversion = \"9\"\n";
        assert_eq!(crate_versions(lock), BTreeMap::from([("rayon", "1.2.3".to_string())]));
        assert_eq!(crate_versions(include_str!("../../Cargo.lock")).len(), CRATES.len());
    }

    #[test]
    fn a_scenario_is_named_as_the_repository_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("scenarios/speed/one.yaml");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        assert_eq!(in_repository(&file), None);
        assert!(Command::new("git").arg("init").arg("-q").arg(dir.path()).status().unwrap().success());
        assert_eq!(in_repository(&file).as_deref(), Some("scenarios/speed/one.yaml"));
    }
}
