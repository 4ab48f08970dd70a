//! How launches reach the device: one by one, or captured and run again; and the log of them.

use std::{cell::RefCell, collections::BTreeMap};

use chronicals_kernels::{
    KernelPlan, Seam, Variant,
    attention::cuda::Path,
    gpu::{Arg, Cost, Entry, GpuError, Grid, Launcher, Machine, Product, Products, Ptr, launch::UNITS},
};

use super::{
    CudaBackend, batch,
    record::{Asked, Calls},
};
use crate::{backend::Work, profile::Call};

/// What decides the launches of a piece of work, besides the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    work: Work,
    tokens: usize,
    rows: usize,
    row_slots: usize,
    /// Bits of the norm above which gradients are clipped, an argument of the update's kernels.
    max_norm: u32,
}

/// Work that was seen before.
pub(super) enum Kept<G> {
    /// Once, and launched: its kernels are loaded and its products tuned.
    Launched,
    /// Captured; and its calls, where they are recorded.
    Graph(G, Vec<Call>),
}

/// Launches by `seam.variant.kernel`.
#[derive(Default)]
pub(super) struct Log {
    counts: RefCell<BTreeMap<String, u64>>,
    /// What is captured does not run.
    paused: bool,
}

impl Log {
    fn add(&self, name: String, count: u64) {
        if !self.paused {
            *self.counts.borrow_mut().entry(name).or_default() += count;
        }
    }

    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.borrow().clone()
    }
}

/// The seam of a unit, or the unit's own name where it is of none, and the variant that it is.
pub(super) fn seam_of(unit: &'static str, plan: KernelPlan) -> (&'static str, &'static str) {
    let (name, variant) = match unit.strip_suffix("_eager") {
        Some(name) => (name, Variant::Eager.name()),
        None => (unit, Variant::Fused.name()),
    };
    let path = Path::ALL.into_iter().find(|p| name == format!("attention_{}", p.name())).unwrap_or(Path::Mma);
    let eager = |seam| plan.get(seam) == Variant::Eager;
    let seam = match name {
        // The rotation's eager variant normalises heads by them; where both are eager they count for the norm.
        "rmsnorm" if variant == Variant::Eager.name() && !eager(Seam::Norm) && eager(Seam::QkRope) => {
            Seam::QkRope
        }
        "rmsnorm" => Seam::Norm,
        "qk_rope" => Seam::QkRope,
        "swiglu" | "swiglu_adapted" => Seam::Mlp,
        "linear_ce" => Seam::Loss,
        "lora" => Seam::Lora,
        // The norm of the gradients is one kernel in both variants.
        "adamw" if eager(Seam::Optimizer) => return (Seam::Optimizer.name(), Variant::Eager.name()),
        "adamw" => Seam::Optimizer,
        _ if name.starts_with("attention") => {
            // A path that was asked for is recorded under its own name: that of the kernels that ran.
            let named = plan.path().is_some() && variant == Variant::Fused.name();
            return (Seam::Attention.name(), if named { path.name() } else { variant });
        }
        _ => return (name, variant),
    };
    (seam.name(), variant)
}

/// A kernel's name in the log; those of no unit are the library's products.
fn label(kernel: &str, plan: KernelPlan) -> String {
    match UNITS.iter().find(|u| u.entries.contains(&kernel)) {
        Some(unit) => {
            let (seam, variant) = seam_of(unit.name, plan);
            format!("{seam}.{variant}.{kernel}")
        }
        None => format!("gemm.library.{kernel}"),
    }
}

/// What takes the place of launches where nothing is to run: kernels are loaded, and products noted.
pub(super) struct Rehearsal<'a> {
    pub load: &'a dyn Fn(Entry) -> Result<(), GpuError>,
    pub products: &'a RefCell<Vec<Product>>,
}

/// A device whose launches are logged.
pub(super) struct Logged<'a> {
    pub launcher: &'a dyn Launcher,
    pub products: &'a dyn Products,
    pub rehearsal: Option<Rehearsal<'a>>,
    pub record: Option<Calls<'a>>,
    pub log: &'a Log,
    pub plan: KernelPlan,
}

impl Launcher for Logged<'_> {
    unsafe fn launch(&self, entry: Entry, grid: Grid, args: &[Arg]) -> Result<(), GpuError> {
        if let Some(rehearsal) = &self.rehearsal {
            return (rehearsal.load)(entry);
        }
        // SAFETY: the caller's promise is the same.
        self.recorded(Asked::Kernel(entry), || unsafe { self.launcher.launch(entry, grid, args) })?;
        self.log.add(label(entry.name, self.plan), 1);
        Ok(())
    }

    unsafe fn launch_early(&self, entry: Entry, grid: Grid, args: &[Arg]) -> Result<(), GpuError> {
        if let Some(rehearsal) = &self.rehearsal {
            return (rehearsal.load)(entry);
        }
        // SAFETY: the caller's promise is the same.
        self.recorded(Asked::Kernel(entry), || unsafe { self.launcher.launch_early(entry, grid, args) })?;
        self.log.add(label(entry.name, self.plan), 1);
        Ok(())
    }

    fn beside(&self, lane: usize, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<(), GpuError> {
        if self.rehearsal.is_some() || self.record.is_some_and(|r| r.stamps()) {
            return work();
        }
        self.launcher.beside(lane, work)
    }

    fn join(&self) -> Result<(), GpuError> {
        self.launcher.join()
    }

    fn costs(&self, next: Cost) {
        self.record.iter().for_each(|r| r.costs(next));
    }

    fn cost(&self, last: Cost) {
        self.record.iter().for_each(|r| r.cost(last));
    }

    fn processors(&self) -> u32 {
        self.launcher.processors()
    }

    fn shared_bytes(&self) -> usize {
        self.launcher.shared_bytes()
    }
}

impl Products for Logged<'_> {
    unsafe fn product(&self, p: &Product, a: Ptr, b: Ptr, bias: Ptr, c: Ptr) -> Result<(), GpuError> {
        if let Some(rehearsal) = &self.rehearsal {
            rehearsal.products.borrow_mut().push(*p);
            return Ok(());
        }
        // SAFETY: the caller's promise is the same.
        self.recorded(Asked::Product(p), || unsafe { self.products.product(p, a, b, bias, c) })?;
        self.log.add(label("product", self.plan), 1);
        Ok(())
    }
}

impl<D: Machine> CudaBackend<D> {
    fn key(&self, work: Work) -> Key {
        let batch::Shape { tokens, rows, row_slots, .. } = self.shape;
        let max_norm = self.max_norm.to_bits();
        match work {
            Work::Step => Key { work, tokens, rows, row_slots, max_norm },
            Work::First | Work::More | Work::Evaluate => Key { work, tokens, rows, row_slots, max_norm: 0 },
            Work::Update => Key { work, tokens: 0, rows: 0, row_slots: 0, max_norm },
        }
    }

    /// Work is launched the first time it is seen, captured the second time, and run from the capture from then on.
    pub(super) fn submit_work(&mut self, work: Work, f: impl FnOnce(&mut Self)) {
        if self.failed.is_some() {
            return;
        }
        let count = |b: &Self, how: &str| {
            b.log.add(format!("{}.{}.{how}", Seam::Graph.name(), b.plan.get(Seam::Graph)), 1);
        };
        if self.plan.get(Seam::Graph) == Variant::Eager || self.record.stamps() {
            count(self, "launched");
            return f(self);
        }
        let key = self.key(work);
        match self.graphs.get(&key) {
            None => {
                count(self, "launched");
                f(self);
                self.graphs.insert(key, Kept::Launched);
                return;
            }
            Some(Kept::Launched) => match self.capture(f) {
                Ok((graph, calls)) => {
                    count(self, "captured");
                    self.graphs.insert(key, Kept::Graph(graph, calls));
                }
                Err(e) => return self.failed = Some(e),
            },
            Some(Kept::Graph(..)) => {}
        }
        count(self, "replayed");
        self.failed = self.replay(key).err();
    }

    fn capture(&mut self, f: impl FnOnce(&mut Self)) -> Result<(D::Graph, Vec<Call>), GpuError> {
        let device = self.device.clone();
        let mut f = Some(f);
        self.log.paused = true;
        self.record.begin_capture();
        let graph = device.capture(&mut || {
            f.take().expect("work is captured once")(self);
            self.failed.take().map_or(Ok(()), Err)
        });
        self.log.paused = false;
        let calls = self.record.end_capture();
        graph.map(|graph| (graph, calls))
    }

    fn replay(&self, key: Key) -> Result<(), GpuError> {
        let Some(Kept::Graph(graph, calls)) = self.graphs.get(&key) else {
            unreachable!("it was captured above")
        };
        // SAFETY: buffers are freed with this backend alone, which waits for the device first.
        unsafe { self.device.replay(graph)? };
        self.record.replayed(calls, self.shape.pairs);
        for (kernel, count) in self.device.kernels(graph) {
            self.log.add(label(kernel, self.plan), *count);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_belongs_to_a_seam() {
        for unit in UNITS {
            let (seam, variant) = seam_of(unit.name, KernelPlan::default());
            let of_none = ["embedding", "digest"].contains(&unit.name);
            assert!(of_none || Seam::ALL.iter().any(|s| s.name() == seam), "{}", unit.name);
            assert_eq!(variant == "eager", unit.name.ends_with("_eager"), "{}", unit.name);
        }
    }

    #[test]
    fn kernels_of_two_seams_count_for_the_one_that_is_eager() {
        let only = |seam| KernelPlan::default().with(seam, Variant::Eager);
        let copy = |plan| label("rmsnorm_eager_copy", plan);
        assert_eq!(copy(only(Seam::QkRope)), "qk_rope.eager.rmsnorm_eager_copy");
        assert_eq!(copy(only(Seam::Norm)), "norm.eager.rmsnorm_eager_copy");
        assert_eq!(copy(KernelPlan::uniform(Variant::Eager)), "norm.eager.rmsnorm_eager_copy");
        assert_eq!(label("adamw_clip", only(Seam::Optimizer)), "optimizer.eager.adamw_clip");
        assert_eq!(label("adamw_clip", only(Seam::Norm)), "optimizer.fused.adamw_clip");
    }

    #[test]
    fn a_path_that_was_asked_for_is_recorded_as_what_ran() {
        let plan = KernelPlan::default().with_path(Path::Hopper);
        assert_eq!(label("attention_hopper_dq_64", plan), "attention.hopper.attention_hopper_dq_64");
        assert_eq!(label("attention_dq_64", plan), "attention.mma.attention_dq_64");
        assert_eq!(label("attention_dq_64", KernelPlan::default()), "attention.fused.attention_dq_64");
        assert_eq!(label("sm90_xmma_gemm", plan), "gemm.library.sm90_xmma_gemm");
    }
}
