//! The rules of ARCHITECTURE.md that a machine can check.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Every edge between crates of this workspace that the product may have.
const EDGES: [(&str, &[&str]); 9] = [
    ("chronibench-protocol", &[]),
    ("chronibench-analysis", &["chronibench-protocol"]),
    ("chronicals-kernels", &[]),
    ("chronicals-emulator", &["chronicals-kernels"]),
    ("chronicals-data", &["chronibench-protocol"]),
    ("chronicals", &["chronibench-protocol", "chronicals-data", "chronicals-kernels"]),
    ("chronibench-candle", &["chronibench-protocol"]),
    (
        "chronibench",
        &[
            "chronibench-analysis",
            "chronibench-candle",
            "chronibench-protocol",
            "chronicals",
            "chronicals-kernels",
        ],
    ),
    ("chronicals-tests", &[]),
];

/// Modules of the harness that may reach the code they measure.
const REACHES_ARMS: [&str; 3] = ["worker", "doctor", "kernel"];

/// Longest source file, and longest file of tests.
const MAX_LINES: usize = 420;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != "runs" && !name.starts_with('.') {
                sources(&path, out);
            }
        } else if ["rs", "cu", "cuh", "py"].iter().any(|e| path.extension().is_some_and(|x| x == *e)) {
            out.push(path);
        }
    }
}

#[test]
fn crates_depend_only_along_the_allowed_edges() {
    let metadata = MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap();
    let allowed: BTreeMap<_, BTreeSet<_>> =
        EDGES.iter().map(|(from, to)| (*from, to.iter().copied().collect())).collect();
    let members: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(members, allowed.keys().copied().collect(), "every member has a row in EDGES");
    for package in &metadata.packages {
        let used: BTreeSet<&str> = package
            .dependencies
            .iter()
            .filter(|d| d.kind == DependencyKind::Normal && members.contains(d.name.as_str()))
            .map(|d| d.name.as_str())
            .collect();
        if package.name.as_str() != "chronicals-tests" {
            assert_eq!(used, allowed[package.name.as_str()], "edges of {}", package.name);
        }
    }
}

#[test]
fn only_some_modules_of_the_harness_reach_the_arms() {
    let mut files = Vec::new();
    sources(&root().join("harness/src"), &mut files);
    for file in files {
        let relative = file.strip_prefix(root().join("harness/src")).unwrap().to_path_buf();
        let module = relative.iter().next().unwrap().to_string_lossy().replace(".rs", "");
        if REACHES_ARMS.contains(&module.as_str()) {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for name in ["chronicals::", "chronicals_data::", "chronicals_kernels::", "chronibench_candle::"] {
            assert!(!text.contains(name), "{} uses {name}", relative.display());
        }
    }
}

#[test]
fn analysis_is_pure() {
    let mut files = Vec::new();
    sources(&root().join("harness/analysis/src"), &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for word in ["std::fs", "std::process", "std::env", "std::net", "SystemTime", "Instant::now"] {
            assert!(!text.contains(word), "{} uses {word}", file.display());
        }
    }
}

#[test]
fn files_stay_short() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    assert!(files.len() > 40, "the walk finds the sources");
    let long: Vec<String> = files
        .iter()
        .map(|f| (f, std::fs::read_to_string(f).unwrap().lines().count()))
        .filter(|(_, n)| *n > MAX_LINES)
        .map(|(f, n)| format!("{}: {n} lines", f.display()))
        .collect();
    assert!(long.is_empty(), "split along a seam: {long:#?}");
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let block = line.contains("unsafe {") && !line.trim_start().starts_with("//");
            if block && !line.contains('"') {
                let near = lines[i.saturating_sub(6)..=i].iter().any(|l| l.contains("SAFETY:"));
                assert!(near, "{}:{}: unsafe without SAFETY", file.display(), i + 1);
            }
        }
    }
}
