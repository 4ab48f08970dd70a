//! Every kernel at least once, on few and small operands, against the reference: the checks of `parity!`, reduced. What they
//! launch is compared with what this crate has, so a kernel without a check is found.
//!
//! On a GPU it is what a sanitizer can get through. No kernel of another library runs, and the test binary is all it needs:
//!
//! ```text
//! compute-sanitizer --tool racecheck target/release/deps/parity-<hash> --ignored gpu::smoke
//! ```

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
};

use chronicals_kernels::gpu::{
    Arg, Cost, Elem, Entry, GpuError, Grid, Launcher, Needs, Products, Unit, launch::UNITS,
};

use crate::{
    emulator::Emulator,
    machine::{Machine, Memory},
};

/// Kernels that the emulator does not run, each with a reason: those of units that need more than [`Needs::Ampere`].
const NOT_EMULATED: &[(&str, &str)] = &[
    ("attention_hopper_forward_64", WGMMA),
    ("attention_hopper_forward_128", WGMMA),
    ("attention_hopper_dq_64", WGMMA),
    ("attention_hopper_dq_128", WGMMA),
    ("attention_hopper_dkv_64", WGMMA),
    ("attention_hopper_dkv_128", WGMMA),
];

const WGMMA: &str = "products of warpgroups and the copy engine, which only sm_90a has";

/// Kernels that change between the element type and f32: in f32 there is nothing to change, and they are never launched.
const NOT_IN_F32: &[(&str, &str)] = &[
    ("adamw_eager", "adamw_eager_to_f32"),
    ("attention_eager", "attention_eager_float"),
    ("attention_eager", "attention_eager_to"),
    ("linear_ce_eager", "linear_ce_eager_float"),
    ("linear_ce_eager", "linear_ce_eager_to"),
    ("rmsnorm_eager", "rmsnorm_eager_to"),
];

/// A check's name, and what it does on a machine.
pub type Check = (&'static str, fn(&dyn Machine));

/// A kernel at an element type.
type Kernel = (&'static str, &'static str, Elem);

/// A machine on which checks are short and launches are kept.
struct Recorder<'a> {
    on: &'a dyn Machine,
    launched: RefCell<BTreeSet<Kernel>>,
    /// What the next launch costs, where it was said; and the kernels of which it was, by our launch code.
    next: Cell<Option<Cost>>,
    said: RefCell<BTreeSet<Kernel>>,
}

impl Recorder<'_> {
    fn keep(&self, entry: Entry, launched: Result<(), GpuError>) -> Result<(), GpuError> {
        launched?;
        let kernel = (entry.unit.name, entry.name, entry.elem);
        self.launched.borrow_mut().insert(kernel);
        if self.next.take().is_some_and(|cost| cost.bytes > 0) {
            self.said.borrow_mut().insert(kernel);
        }
        Ok(())
    }
}

impl Launcher for Recorder<'_> {
    unsafe fn launch(&self, entry: Entry, grid: Grid, args: &[Arg]) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        self.keep(entry, unsafe { self.on.launcher().launch(entry, grid, args) })
    }

    unsafe fn launch_early(&self, entry: Entry, grid: Grid, args: &[Arg]) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        self.keep(entry, unsafe { self.on.launcher().launch_early(entry, grid, args) })
    }

    fn costs(&self, next: Cost) {
        self.next.set(Some(next));
    }

    fn processors(&self) -> u32 {
        self.on.launcher().processors()
    }

    fn shared_bytes(&self) -> usize {
        self.on.launcher().shared_bytes()
    }
}

impl Machine for Recorder<'_> {
    fn launcher(&self) -> &dyn Launcher {
        self
    }

    fn products(&self) -> &dyn Products {
        self.on.products()
    }

    fn upload(&self, bytes: &[u8]) -> Memory {
        self.on.upload(bytes)
    }

    fn download(&self, memory: &Memory) -> Vec<u8> {
        self.on.download(memory)
    }

    fn meets(&self, needs: Needs) -> bool {
        self.on.meets(needs)
    }

    fn reduced(&self) -> bool {
        true
    }
}

/// Kernels of units that a machine has the instructions for.
fn kernels(units: &[&'static Unit], met: impl Fn(Needs) -> bool) -> BTreeSet<Kernel> {
    let units = units.iter().filter(|u| met(u.needs));
    let typed = units.flat_map(|u| u.elems.iter().map(move |elem| (u, *elem)));
    typed.flat_map(|(u, elem)| u.entries.iter().map(move |name| (u.name, *name, elem))).collect()
}

/// Runs the checks, whose launches must say what they cost, and which must launch every kernel that the machine can run, but for conversions in f32, and no others.
pub fn every_kernel(machine: &dyn Machine, checks: &[Check]) {
    let recorder = Recorder {
        on: machine,
        launched: RefCell::default(),
        next: Cell::default(),
        said: RefCell::default(),
    };
    for (name, check) in checks {
        // A sanitizer's report goes to the check before it.
        eprintln!("{name}");
        check(&recorder);
    }
    let (said, launched) = (recorder.said.into_inner(), recorder.launched.into_inner());
    let silent = Vec::from_iter(launched.difference(&said));
    assert!(silent.is_empty(), "their launches do not say what they cost (`Launcher::costs`): {silent:?}");
    let mut all = kernels(UNITS, |needs| machine.meets(needs));
    for (unit, name) in NOT_IN_F32 {
        assert!(all.remove(&(unit, name, Elem::F32)), "{name} of {unit}, in NOT_IN_F32, is no kernel");
    }
    let [missed, unknown] = [all.difference(&launched), launched.difference(&all)].map(Vec::from_iter);
    assert!(missed.is_empty(), "no check in tests/parity/main.rs launches {missed:?}");
    assert!(unknown.is_empty(), "of no unit in gpu::launch::UNITS, or in NOT_IN_F32: {unknown:?}");
}

/// What is wrong with a list of kernels that are not emulated.
fn faults(units: &[&'static Unit], list: &[(&'static str, &str)]) -> Vec<String> {
    let wanting = kernels(units, |needs| !Emulator::new().meets(needs));
    let wanting: BTreeSet<&str> = wanting.into_iter().map(|(_, name, _)| name).collect();
    let listed: BTreeSet<&str> = list.iter().map(|(name, _)| *name).collect();
    let mut all: Vec<String> = wanting.difference(&listed).map(|name| format!("{name} is missing")).collect();
    all.extend(listed.difference(&wanting).map(|name| format!("{name} is emulated, or is no kernel")));
    all.extend(
        list.iter().filter(|(_, why)| why.is_empty()).map(|(name, _)| format!("{name} has no reason")),
    );
    if listed.len() < list.len() {
        all.push("a kernel is listed twice".into());
    }
    all
}

#[test]
fn what_is_not_emulated_is_listed() {
    assert_eq!(faults(UNITS, NOT_EMULATED), [""; 0]);
}

#[test]
fn faults_of_the_list_are_seen() {
    static NEW: Unit =
        Unit { name: "new", source: "", entries: &["a", "b"], elems: &Elem::ALL, needs: Needs::Hopper };
    static OLD: Unit = Unit { name: "old", entries: &["c"], needs: Needs::Ampere, ..NEW };
    let faults = |list: &[(&'static str, &str)]| faults(&[&NEW, &OLD], list);
    assert_eq!(faults(&[("a", "wgmma"), ("b", "wgmma")]), [""; 0]);
    assert_eq!(faults(&[("a", "")]), ["b is missing", "a has no reason"]);
    let unknown = ["c is emulated, or is no kernel", "d is emulated, or is no kernel"];
    assert_eq!(faults(&[("a", "x"), ("b", "x"), ("c", "x"), ("d", "x")]), unknown);
    assert_eq!(faults(&[("a", "x"), ("b", "x"), ("b", "x")]), ["a kernel is listed twice"]);
}

#[test]
#[should_panic(expected = "(\"rmsnorm\", \"rmsnorm_backward\", Bf16)")]
fn a_kernel_without_a_check_is_seen() {
    every_kernel(&Emulator::new(), &[("rmsnorm::forward", crate::rmsnorm::forward)]);
}
