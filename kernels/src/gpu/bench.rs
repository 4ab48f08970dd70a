//! How long kernels take on a GPU, and how near that is to moving their bytes by a plain copy.
//!
//! Each repetition first writes a buffer larger than the L2 cache, so that operands come from memory, then runs the kernel
//! between two device events. A copy of as many bytes is timed in the same way, in turn with the kernel.

use super::{Buffer, Elem, Gpu, GpuError, matmul::Matmul};
use crate::cases::values;

/// Larger than the L2 cache of any GPU at hand (50 MB on an H100, 60 MB on an H200).
const FLUSH_BYTES: usize = 256 << 20;

/// Something to time.
pub struct Bench<'a> {
    /// Operation, e.g. `rmsnorm_backward`.
    pub op: &'static str,
    /// Shape, e.g. `16384x896`.
    pub case: String,
    /// Fewest bytes that it reads and writes.
    pub bytes: u64,
    /// Operations outside of memory access, 0 where they do not matter.
    pub flops: u64,
    /// Puts it on the stream.
    pub run: Box<dyn Fn() -> Result<(), GpuError> + 'a>,
}

/// What was measured, in seconds; the copy moves [`Bench::bytes`], half of them read and half written.
#[derive(Clone, Debug)]
pub struct Measured {
    /// As in [`Bench`].
    pub op: &'static str,
    /// As in [`Bench`].
    pub case: String,
    /// As in [`Bench`].
    pub bytes: u64,
    /// As in [`Bench`].
    pub flops: u64,
    /// Every repetition, cold L2.
    pub cold: Vec<f64>,
    /// Every repetition right after another, operands in L2 as far as they fit.
    pub warm: Vec<f64>,
    /// Every repetition of the copy, cold L2.
    pub copy: Vec<f64>,
}

impl Bench<'_> {
    /// Times it `repetitions` times, after a few that are not counted.
    pub fn measure(&self, on: &Gpu, repetitions: usize) -> Result<Measured, GpuError> {
        let flush = on.alloc(FLUSH_BYTES)?;
        let half = (self.bytes / 2) as usize;
        // Of random bytes, as the operands of kernels are: constant ones take less power.
        let (from, to) = (on.repeat(&Elem::Bf16.encode(&values(3, 1 << 20)), half)?, on.alloc(half)?);
        for _ in 0..3 {
            (self.run)()?;
            on.copy(&from, &to)?;
        }
        let (mut cold, mut warm, mut copy) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..repetitions {
            on.fill(&flush, 0)?;
            cold.push(on.time(|| (self.run)())?);
            on.fill(&flush, 0)?;
            copy.push(on.time(|| on.copy(&from, &to))?);
            (self.run)()?;
            warm.push(on.time(|| (self.run)())?);
        }
        Ok(Measured {
            op: self.op,
            case: self.case.clone(),
            bytes: self.bytes,
            flops: self.flops,
            cold,
            warm,
            copy,
        })
    }
}

/// Takes benches, one at a time.
pub type Taker<'t> = dyn FnMut(Bench) -> Result<(), GpuError> + 't;

/// Benches of one kernel: their operations, and what makes them.
type Group<'a> = (&'static [&'static str], &'a dyn Fn(&mut Taker) -> Result<(), GpuError>);

/// Calls `f` with every bench that is wanted, operation by operation: the operands of one shape are on the GPU at a time.
pub fn each(on: &Gpu, wants: impl Fn(&str) -> bool, f: &mut Taker) -> Result<(), GpuError> {
    let groups: [Group; 9] = [
        (crate::attention::bench::OPS, &|f| crate::attention::bench::each(on, f)),
        (crate::adamw::bench::OPS, &|f| crate::adamw::bench::each(on, f)),
        (crate::embedding::bench::OPS, &|f| crate::embedding::bench::each(on, f)),
        (crate::gemm::bench::OPS, &|f| crate::gemm::bench::each(on, &Matmul::new(on, None)?, f)),
        (crate::linear_ce::bench::OPS, &|f| crate::linear_ce::bench::each(on, &Matmul::new(on, None)?, f)),
        (crate::lora::bench::OPS, &|f| crate::lora::bench::each(on, &Matmul::new(on, None)?, f)),
        (crate::qk_rope::bench::OPS, &|f| crate::qk_rope::bench::each(on, f)),
        (crate::rmsnorm::bench::OPS, &|f| crate::rmsnorm::bench::each(on, f)),
        (crate::swiglu::bench::OPS, &|f| crate::swiglu::bench::each(on, f)),
    ];
    // Operands of what nobody wants are not made.
    for (_, each) in groups.iter().filter(|(ops, _)| ops.iter().any(|op| wants(op))) {
        each(&mut |bench| if wants(bench.op) { f(bench) } else { Ok(()) })?;
    }
    Ok(())
}

/// `rows` × `columns` of bf16 on the GPU: a block of random rows again and again, random enough for the wires and quick to
/// make.
pub fn matrix(on: &Gpu, rows: usize, columns: usize) -> Result<Buffer, GpuError> {
    const BLOCK_ROWS: usize = 512;
    let block = Elem::Bf16.encode(&values(1, columns * BLOCK_ROWS.min(rows)));
    on.repeat(&block, rows * columns * Elem::Bf16.bytes())
}
