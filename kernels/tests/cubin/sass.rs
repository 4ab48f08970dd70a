//! The instructions of every kernel: what it is written for must be there, and memory of a thread's own must not.

use std::{collections::BTreeMap, io::Write, process::Command};

use chronicals_kernels::gpu::{
    Elem, Needs, Unit,
    compile::{compile, text},
    launch::UNITS,
    library,
};

use super::{Compiled, compiled, faults};

/// Loads and stores of memory of a thread's own: registers that did not suffice, or arrays that could not stay in them.
const LOCAL: [&str; 2] = ["LDL", "STL"];

/// Instructions that kernels do without although their unit has them, each with a reason.
const WITHOUT: &[(&str, &str, &str)] = &[];

/// How often a kernel has each instruction, by the name before its first dot.
type Instructions = BTreeMap<String, usize>;

/// What every kernel of a unit must have: products of tensor cores where its text has them, on Hopper those of warpgroups and
/// the loads of the copy engine.
fn wanted(unit: &Unit) -> &'static [&'static str] {
    match unit.needs {
        Needs::Hopper => &["HGMMA", "UTMALDG"],
        Needs::Ampere if text(unit).contains("mma.sync") => &["HMMA"],
        Needs::Ampere => &[],
    }
}

/// What is wrong with a kernel's instructions.
fn faults_of(
    kernel: &str,
    has: &Instructions,
    wanted: &[&str],
    without: &[(&str, &str, &str)],
) -> Vec<String> {
    let mut all = Vec::new();
    if has.is_empty() {
        all.push(format!("{kernel} has no instructions"));
    }
    all.extend(LOCAL.iter().filter(|i| has.contains_key(**i)).map(|i| format!("{kernel} has {i}")));
    for instruction in wanted {
        let excepted = without.iter().any(|(name, i, _)| *name == kernel && i == instruction);
        match (has.contains_key(*instruction), excepted) {
            (false, false) => all.push(format!("{kernel} has no {instruction}")),
            (true, true) => all.push(format!("{kernel} has {instruction}, which WITHOUT says it has not")),
            _ => {}
        }
    }
    all
}

/// Instructions by kernel, from the disassembler's listing: a section for each, in which a line has an offset in a comment,
/// perhaps a predicate, and an instruction.
fn parse(listing: &str) -> BTreeMap<String, Instructions> {
    let mut all: BTreeMap<String, Instructions> = BTreeMap::new();
    let mut kernel = None;
    for line in listing.lines().map(str::trim) {
        // Not `.sectioninfo`.
        if let Some(name) = line.strip_prefix(".section").filter(|rest| rest.starts_with(char::is_whitespace))
        {
            kernel = name.trim().strip_prefix(".text.").and_then(|name| name.split(',').next());
        }
        let code = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/"));
        let (Some(kernel), Some((_, code))) = (kernel, code) else { continue };
        let instruction = code.split_whitespace().find(|word| word.starts_with(char::is_alphabetic));
        if let Some(base) = instruction.and_then(|i| i.split(['.', ';']).next()) {
            *all.entry(kernel.to_string()).or_default().entry(base.to_string()).or_default() += 1;
        }
    }
    all
}

fn disassemble(image: &[u8]) -> BTreeMap<String, Instructions> {
    let program = library::nvdisasm().unwrap_or_else(|e| panic!("{e}; {}", e.hint));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    let output = Command::new(&program).arg("--print-code").arg(file.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {}\n{errors}", program.display(), output.status);
    parse(&String::from_utf8_lossy(&output.stdout))
}

#[test]
#[ignore = "needs NVRTC and nvdisasm"]
fn kernels_have_the_instructions_they_are_written_for() {
    let mut all = Vec::new();
    for Compiled { arch, elem, unit, cubin } in compiled() {
        let instructions = disassemble(&cubin.image);
        for name in unit.entries {
            let has = instructions.get(*name).cloned().unwrap_or_default();
            let faults = faults_of(name, &has, wanted(unit), WITHOUT);
            all.extend(faults.iter().map(|f| format!("{f} ({arch}, {})", elem.name())));
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn exceptions_are_of_kernels_and_have_reasons() {
    for (kernel, instruction, why) in WITHOUT {
        let of = UNITS.iter().find(|u| u.entries.contains(kernel));
        let unit = of.unwrap_or_else(|| panic!("{kernel} is no kernel"));
        assert!(wanted(unit).contains(instruction) && !why.is_empty(), "{kernel}, {instruction}");
    }
}

#[test]
#[ignore = "needs NVRTC and nvdisasm"]
fn faults_are_seen() {
    let cubin = compile(&faults::UNIT, Elem::Bf16, "sm_90a").unwrap_or_else(|e| panic!("{e}; {}", e.hint));
    let all = disassemble(&cubin.image);
    let none = Instructions::new();
    let faults = |name: &str, wanted: &[&str], without: &[(&str, &str, &str)]| {
        faults_of(name, all.get(name).unwrap_or(&none), wanted, without)
    };
    assert_eq!(faults("local_array", &[], &[]), ["local_array has LDL", "local_array has STL"]);
    let hopper = wanted(&faults::UNIT);
    assert_eq!(faults("serialised", hopper, &[]), ["serialised has no UTMALDG"]);
    assert_eq!(faults("serialised", hopper, &[("serialised", "UTMALDG", "no loads")]), [""; 0]);
    let stale = "serialised has HGMMA, which WITHOUT says it has not";
    assert_eq!(faults("serialised", &["HGMMA"], &[("serialised", "HGMMA", "no products")]), [stale]);
    assert_eq!(faults("missing", &[], &[]), ["missing has no instructions"]);
}

#[test]
fn listings_are_read() {
    let listing = "\t.section\t.text.a,\"ax\",@progbits\n\t.sectioninfo\t@\"X\"\n        /*0000*/  MOV R1, R2 ;\n        /*0010*/  \
                   @!UP0 HMMA.16816.F32.BF16 R4, R8, R4, R4 ;\n.L_1:\n        /*0020*/  EXIT;\n        /* 0x1 */\n\
                   \t.section\t.nv.info,\"\",@\"SHT_CUDA_INFO\"\n        /*0000*/  .byte 0x4\n";
    let expected = ["EXIT", "HMMA", "MOV"].map(|name| (name.to_string(), 1));
    assert_eq!(parse(listing), BTreeMap::from([("a".to_string(), BTreeMap::from(expected))]));
}
