//! The seeds of the fuzz targets, and what once broke one, by the same functions that the fuzzer calls.

use std::path::{Path, PathBuf};

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use targets::TARGETS;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn seeds_are_survived() {
    for (name, target) in TARGETS {
        let folder = root().join("seeds").join(name);
        let seeds = names(&folder);
        assert!(seeds.len() >= 3, "{name} has seeds");
        for seed in seeds {
            println!("{name}/{seed}");
            target(&std::fs::read(folder.join(seed)).unwrap());
        }
    }
}

/// A cut anywhere, and a changed byte anywhere: what a bad disk or network does.
#[test]
fn damaged_seeds_are_survived() {
    for (name, target) in TARGETS {
        let folder = root().join("seeds").join(name);
        for seed in names(&folder) {
            let bytes = std::fs::read(folder.join(&seed)).unwrap();
            let step = bytes.len() / 12 + 1;
            for at in (0..bytes.len()).step_by(step) {
                println!("{name}/{seed} at {at}");
                target(&bytes[..at]);
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                target(&changed);
            }
        }
    }
}

#[test]
fn every_target_has_a_program_and_seeds() {
    let mut expected: Vec<String> = TARGETS.iter().map(|(name, _)| name.to_string()).collect();
    expected.sort();
    assert_eq!(names(&root().join("seeds")), expected);
    let programs = names(&root().join("fuzz_targets"));
    assert_eq!(programs, expected.iter().map(|name| format!("{name}.rs")).collect::<Vec<_>>());
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for name in expected {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is in the manifest");
    }
}
