//! Times of a bench on a GPU.

use super::{Bench, Device, Operand, Testbed};
use crate::gpu::{Buffer, Elem, GpuError};

/// Larger than the L2 cache of any GPU at hand (50 MB on an H100, 60 MB on an H200).
pub const FLUSH_BYTES: usize = 256 << 20;

/// Halves of a copy are no larger: beyond this a copy is repeated, so that it needs little room beside the operands.
const COPY_BYTES: usize = 2 << 30;

/// What was measured, in seconds; the copy moves the operation's bytes, half of them read and half written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Every repetition, cold L2.
    pub cold: Vec<f64>,
    /// Every repetition right after others on the other sets of operands: in L2 as far as all sets together fit.
    pub warm: Vec<f64>,
    /// Every repetition of the copy, cold L2.
    pub copy: Vec<f64>,
}

/// Copies of a number of bytes, in turn with something else.
pub(super) struct Copy {
    from: Operand<Buffer>,
    to: Buffer,
    whole: usize,
    rest: usize,
}

impl Copy {
    /// Of random numbers, as the operands of kernels are: constant ones take less power.
    pub(super) fn new(on: &Device, bytes: u64) -> Result<Self, GpuError> {
        let half = (bytes / 2) as usize;
        let (whole, rest) = (half / COPY_BYTES, half % COPY_BYTES);
        let room = half.min(COPY_BYTES).next_multiple_of(4);
        let from = Operand::normal(on, Elem::Bf16, 3, room / 2, 1.0)?;
        Ok(Self { from, to: on.alloc(room)?, whole, rest })
    }

    pub(super) fn run(&self, on: &Device) -> Result<(), GpuError> {
        (0..self.whole).try_for_each(|_| self.from.copy_to(on.gpu(), &self.to, COPY_BYTES))?;
        if self.rest > 0 { self.from.copy_to(on.gpu(), &self.to, self.rest) } else { Ok(()) }
    }
}

impl Operand<Buffer> {
    fn copy_to(&self, on: &crate::gpu::Gpu, to: &Buffer, bytes: usize) -> Result<(), GpuError> {
        on.copy_bytes(self.memory(), to, bytes)
    }
}

impl Bench<'_, Device<'_>> {
    /// Times it `repetitions` times, after a few that are not counted.
    ///
    /// # Errors
    /// The kernel does not run, or there is no room for the copy beside its operands.
    pub fn measure(&self, repetitions: usize) -> Result<Measured, GpuError> {
        let s = self.subject;
        let (on, gpu) = (s.on, s.on.gpu());
        let flush = on.alloc(FLUSH_BYTES)?;
        let copy = Copy::new(on, s.work.bytes)?;
        let sets = s.changes.len();
        for i in 0..3 {
            (self.run)(i % sets)?;
            copy.run(on)?;
        }
        let mut out = Measured::default();
        for i in 0..repetitions {
            let set = i % sets;
            s.restore(set)?;
            gpu.fill(&flush, 0)?;
            out.cold.push(gpu.time(|| (self.run)(set))?);
            gpu.fill(&flush, 0)?;
            out.copy.push(gpu.time(|| copy.run(on))?);
        }
        (0..sets).try_for_each(|set| s.restore(set))?;
        (0..sets).try_for_each(|set| (self.run)(set))?;
        for i in 0..repetitions {
            out.warm.push(gpu.time(|| (self.run)(i % sets))?);
        }
        Ok(out)
    }
}
