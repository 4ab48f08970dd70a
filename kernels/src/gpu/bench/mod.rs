//! How long kernels take on a GPU, and how near that is to moving their bytes by a plain copy.
//!
//! A kernel is checked before it is timed, on the very operands and at the very shape: outputs are poisoned with NaN, then
//! nothing of the poison may be left, sampled rows must be those of the f64 reference, and a second run must leave the same
//! bits. Only then is it timed: each repetition first writes a buffer larger than the L2 cache, so that operands come from
//! memory, then runs the kernel between two device events. A copy of as many bytes is timed in the same way, in turn with the
//! kernel.
//!
//! Where an operation has an unfused variant, both say how many bytes their passes move ([`Subject::counted`]): those of every
//! kernel and of every product, each operand once.
//!
//! Operands are normally distributed. An operation's `bench.rs` makes them, says how they are checked, and offers one
//! [`Bench`] a variant ([`Subject::variant`]): another variant is another call.

mod bed;
mod ceiling;
mod check;
mod measure;
mod operand;
mod room;

pub use bed::{Device, Testbed};
pub use ceiling::{Ceiling, ceilings};
pub use check::{Compared, Look, sample};
pub use measure::{FLUSH_BYTES, Measured};
pub use operand::{Operand, Values};
pub use room::{Room, product_bytes};

use super::{
    GpuError,
    digest::{Digest, digest},
};
use crate::cases::Workload;

/// A way to compute an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    /// Name in records.
    pub name: &'static str,
    /// Factor of the tolerances.
    pub slack: f64,
}

impl Variant {
    /// Tolerance of sums over all rows, from that of one in f32. PyTorch rounds every term to bf16, after up to four other
    /// roundings, and the sum: five times 2⁻⁸.
    pub fn of_sum(self, f32_sum: f64) -> f64 {
        if self == EAGER { 2e-2 } else { self.slack * f32_sum }
    }
}

/// As few passes over memory as the operation allows.
pub const FUSED: Variant = Variant { name: "fused", slack: 1.0 };

/// The passes that PyTorch eager makes; each rounds to the element type, which a fused kernel does once.
pub const EAGER: Variant = Variant { name: "eager", slack: 4.0 };

/// Attention on `mma.sync`.
pub const MMA: Variant = Variant { name: "mma", slack: 1.0 };

/// Attention on Hopper's wgmma.
pub const HOPPER: Variant = Variant { name: "hopper", slack: 1.0 };

/// Puts an operation on the stream, on one of the sets of operands.
type Run<'a> = Box<dyn Fn(usize) -> Result<(), GpuError> + 'a>;

/// Compares what a run of a variant on the first set of operands left, within its tolerances.
type Compare<'a> = Box<dyn Fn(Variant) -> Result<Vec<Compared>, GpuError> + 'a>;

/// What a run changes, by name.
pub type Changes<'a, M> = Vec<(&'static str, &'a Operand<M>)>;

/// An operation at a shape with its operands, whatever computes it.
pub struct Subject<'a, B: Testbed> {
    /// Where its operands are.
    pub on: &'a B,
    /// What it is.
    pub work: Workload,
    /// What a run changes, by name, of each set of operands: outputs, and inputs that it works on in place. All are restored
    /// before every timed run.
    pub changes: Vec<Changes<'a, B::Memory>>,
    /// Bytes of memory that the operation needs besides its inputs; 0 where that is not looked at.
    pub memory_bytes: u64,
    /// Compares what a run on the first set left.
    pub compare: Compare<'a>,
}

impl<'a, B: Testbed> Subject<'a, B> {
    /// Offers a way to compute it.
    ///
    /// # Errors
    /// Those of the taker.
    pub fn variant(
        &self,
        f: &mut Taker<'_, B>,
        variant: Variant,
        run: impl Fn(usize) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        f(Bench { subject: self, variant, moved_bytes: None, run: Box::new(run) })
    }

    /// The same, of a way whose passes read and write so many bytes.
    ///
    /// # Errors
    /// Those of the taker.
    pub fn counted(
        &self,
        f: &mut Taker<'_, B>,
        variant: Variant,
        moved_bytes: u64,
        run: impl Fn(usize) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        f(Bench { subject: self, variant, moved_bytes: Some(moved_bytes), run: Box::new(run) })
    }

    fn restore(&self, set: usize) -> Result<(), GpuError> {
        self.changes[set].iter().try_for_each(|(_, operand)| operand.restore(self.on))
    }

    fn digests(&self) -> Result<Vec<Digest>, GpuError> {
        self.changes[0].iter().map(|(_, operand)| digest(self.on, operand)).collect()
    }
}

/// How many sets of operands to rotate so that together they do not fit the L2 cache; one where one set does not.
pub fn sets(on: &impl Testbed, set_bytes: u64) -> usize {
    let l2 = on.l2_bytes() as u64;
    if set_bytes >= l2 { 1 } else { (2 * l2).div_ceil(set_bytes.max(1)).min(8) as usize }
}

/// Something to check and to time.
pub struct Bench<'a, B: Testbed> {
    subject: &'a Subject<'a, B>,
    /// The way it is computed.
    pub variant: Variant,
    /// Bytes that its passes read and write, products among them, where they are counted.
    pub moved_bytes: Option<u64>,
    run: Run<'a>,
}

/// The outcome of a check.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// Every output that was compared with the reference.
    pub compared: Vec<Compared>,
    /// Why its time is no result.
    pub failure: Option<String>,
}

impl<B: Testbed> Bench<'_, B> {
    /// Computes it on a set of operands.
    ///
    /// # Errors
    /// The kernel does not run.
    pub fn run(&self, set: usize) -> Result<(), GpuError> {
        (self.run)(set)
    }

    /// What is computed.
    pub fn work(&self) -> &Workload {
        &self.subject.work
    }

    /// Bytes of memory that the operation needs besides its inputs; 0 where that is not looked at.
    pub fn memory_bytes(&self) -> u64 {
        self.subject.memory_bytes
    }

    /// Sets of operands that the warm series rotates, and the bytes that a run on one of them touches.
    pub fn sets(&self) -> (usize, u64) {
        (self.subject.changes.len(), self.subject.work.bytes)
    }

    /// Whether a run leaves what it should.
    ///
    /// # Errors
    /// The kernel does not run. What it leaves is no error but a failed check.
    pub fn check(&self) -> Result<Checked, GpuError> {
        let s = self.subject;
        s.restore(0)?;
        (self.run)(0)?;
        let first = s.digests()?;
        let compared = (s.compare)(self.variant)?;
        s.restore(0)?;
        (self.run)(0)?;
        let second = s.digests()?;
        let named = || s.changes[0].iter().zip(&first).zip(&second);
        let unwritten = named()
            .find(|(((_, operand), d), _)| operand.is_output() && d.ones > 0)
            .map(|(((name, _), d), _)| format!("{} words of {name} were not written", d.ones));
        let wrong = || compared.iter().find(|c| !c.holds()).map(|c| c.to_string());
        let other = || {
            let differs = named().find(|((_, a), b)| a != b);
            differs.map(|(((name, _), _), _)| format!("a second run left other bits in {name}"))
        };
        Ok(Checked { failure: unwritten.or_else(wrong).or_else(other), compared })
    }
}

/// Takes benches, one at a time.
pub type Taker<'t, B> = dyn FnMut(Bench<B>) -> Result<(), GpuError> + 't;

/// What an operation's benches are called by: the kernels that are wanted.
pub type Wants<'w> = dyn Fn(&str) -> bool + 'w;

/// Every operation and shape that [`each`] has, without any operand.
pub fn workloads() -> Vec<Workload> {
    use crate::*;
    [
        attention::bench::workloads(),
        adamw::cases::workloads(),
        embedding::cases::workloads(),
        gemm::cases::workloads(),
        linear_ce::cases::workloads(),
        lora::cases::workloads(),
        qk_rope::cases::workloads(),
        rmsnorm::cases::workloads(),
        swiglu::cases::workloads(),
    ]
    .concat()
}

/// Calls `f` with every bench whose operation is wanted: the operands of one shape are there at a time.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(on: &B, wants: &Wants, f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    use crate::*;
    type Group<'a, B> = (Vec<Workload>, &'a dyn Fn(&mut Taker<'_, B>) -> Result<(), GpuError>);
    let groups: [Group<B>; 9] = [
        (attention::bench::workloads(), &|f| {
            attention::bench::each(on, &attention::bench::cases(), wants, f)
        }),
        (adamw::cases::workloads(), &|f| adamw::bench::each(on, &adamw::cases::GPU, wants, f)),
        (embedding::cases::workloads(), &|f| embedding::bench::each(on, &embedding::cases::GPU, f)),
        (gemm::cases::workloads(), &|f| gemm::bench::each(on, &gemm::cases::GPU, f)),
        (linear_ce::cases::workloads(), &|f| linear_ce::bench::each(on, &linear_ce::cases::GPU, wants, f)),
        (lora::cases::workloads(), &|f| lora::bench::each(on, &lora::cases::GPU, f)),
        (qk_rope::cases::workloads(), &|f| qk_rope::bench::each(on, &qk_rope::cases::GPU, f)),
        (rmsnorm::cases::workloads(), &|f| rmsnorm::bench::each(on, &rmsnorm::cases::GPU, f)),
        (swiglu::cases::workloads(), &|f| {
            swiglu::bench::each(on, &swiglu::cases::GPU, f)?;
            swiglu::bench_adapted::each(on, &swiglu::cases::ADAPTED, f)
        }),
    ];
    // Operands of what nobody wants are not made.
    for (_, each) in groups.iter().filter(|(works, _)| works.iter().any(|w| wants(w.op))) {
        each(&mut |bench| if wants(bench.work().op) { f(bench) } else { Ok(()) })?;
    }
    Ok(())
}
