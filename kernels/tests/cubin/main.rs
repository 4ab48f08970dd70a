//! What the compiler makes of every kernel: registers, spills and shared memory, against a committed table, and its
//! instructions.
//!
//! Needs NVRTC and, for the instructions, nvdisasm, but no GPU:
//!
//! ```text
//! pip install --target .venv/nvrtc nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-nvdisasm==13.5.37
//! PYTHONPATH="$PWD/.venv/nvrtc" cargo test --release -p chronicals-kernels --test cubin -- --ignored
//! ```
//!
//! After a change that is meant, `CHRONICALS_BLESS=1` writes the table anew.

mod faults;
mod sass;

use std::{collections::BTreeMap, fmt::Write, path::Path, sync::OnceLock};

use chronicals_kernels::gpu::{
    Elem, Unit,
    compile::{Cubin, compile},
    launch::UNITS,
};

const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90a"];

/// A unit in machine code.
struct Compiled {
    arch: &'static str,
    elem: Elem,
    unit: &'static Unit,
    cubin: Cubin,
}

/// Every unit for every element type and architecture that it is written for, compiled once for all tests.
fn compiled() -> &'static [Compiled] {
    static ALL: OnceLock<Vec<Compiled>> = OnceLock::new();
    ALL.get_or_init(|| {
        let cases = ARCHITECTURES.into_iter().flat_map(|arch| Elem::ALL.map(|elem| (arch, elem)));
        let all = cases.flat_map(|(arch, elem)| UNITS.iter().map(move |unit| (arch, elem, *unit)));
        all.filter(|(arch, elem, unit)| unit.elems.contains(elem) && unit.needs.met_by(arch))
            .map(|(arch, elem, unit)| {
                let cubin = compile(unit, elem, arch).unwrap_or_else(|e| panic!("{e}; {}", e.hint));
                Compiled { arch, elem, unit, cubin }
            })
            .collect()
    })
}

/// What the compiler warns of, and where the assembler says that it did not do as told: products of warpgroups made one after
/// another (C7510 and its like), a change of the number of registers ignored (C7508).
fn complaints(log: &str) -> Vec<&str> {
    log.lines().filter(|l| l.contains("warning") || l.contains("Potential Performance Loss")).collect()
}

/// Of one entry point.
#[derive(Default)]
struct Resources {
    registers: u32,
    spilled: u32,
    stack: u32,
    shared: u32,
}

/// Reads the assembler's report: a line that names the entry, one of stack and spills, one of registers and the rest.
fn resources(log: &str) -> BTreeMap<String, Resources> {
    let mut all = BTreeMap::new();
    let mut name = String::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("entry function '") {
            name = rest.split('\'').next().unwrap_or_default().to_string();
            all.insert(name.clone(), Resources::default());
        }
        let Some(entry) = all.get_mut(&name) else { continue };
        let before = |unit: &str| -> Option<u32> {
            line.split(unit)
                .next()
                .filter(|head| head.len() < line.len())?
                .split_whitespace()
                .last()?
                .parse()
                .ok()
        };
        entry.stack = before(" bytes stack frame").unwrap_or(entry.stack);
        entry.spilled = before(" bytes spill stores").unwrap_or(entry.spilled);
        entry.registers = before(" registers").unwrap_or(entry.registers);
        entry.shared = before(" bytes smem").unwrap_or(entry.shared);
    }
    all
}

#[test]
#[ignore = "needs NVRTC"]
fn resources_are_those_of_the_table() {
    let mut table =
        String::from("arch    elem  entry                         registers  spilled  stack  shared\n");
    for Compiled { arch, elem, unit, cubin } in compiled() {
        let elem = elem.name();
        let complaints = complaints(&cubin.log);
        assert!(complaints.is_empty(), "{} for {arch}, {elem}:\n{}", unit.name, complaints.join("\n"));
        let entries = resources(&cubin.log);
        let names: Vec<&str> = entries.keys().map(String::as_str).collect();
        let mut declared = unit.entries.to_vec();
        declared.sort_unstable();
        assert_eq!(names, declared, "entry points of {}", unit.name);
        for (name, Resources { registers, spilled, stack, shared }) in &entries {
            assert_eq!(*spilled, 0, "{name} spills on {arch}, {elem}");
            writeln!(
                table,
                "{arch:<7} {elem:<5} {name:<29} {registers:>9} {spilled:>8} {stack:>6} {shared:>7}"
            )
            .unwrap();
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cubin.txt");
    if std::env::var_os("CHRONICALS_BLESS").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    for (line, (now, then)) in table.lines().zip(committed.lines()).enumerate() {
        assert_eq!(now, then, "line {} of {}", line + 1, path.display());
    }
    assert_eq!(table.lines().count(), committed.lines().count(), "lines of {}", path.display());
}

#[test]
#[ignore = "needs NVRTC"]
fn complaints_are_seen() {
    let cubin = compile(&faults::UNIT, Elem::Bf16, "sm_90a").unwrap_or_else(|e| panic!("{e}; {}", e.hint));
    let complaints = complaints(&cubin.log);
    let about = |what: &str| complaints.iter().filter(|line| line.contains(what)).count();
    assert_eq!((about("setmaxnreg"), about("serialized"), complaints.len()), (1, 1, 2), "{}", cubin.log);
}
