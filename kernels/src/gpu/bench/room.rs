//! What an unfused variant needs besides the operands of the fused one, and what its products move.

use std::cell::Cell;

use super::{Operand, Testbed};
use crate::gpu::{Arg, Elem, Entry, GpuError, Grid, Launcher, Product, Products, Ptr, eager::Memory};

/// Memory of an eager variant, if there was room for it: without, its runs fail and nothing else does.
pub struct Room<M> {
    held: Result<[Operand<M>; 2], GpuError>,
}

impl<M> Room<M> {
    /// Saved tensors and scratch of so many bytes.
    pub fn new<B: Testbed<Memory = M>>(on: &B, saved_bytes: usize, scratch_bytes: usize) -> Self {
        let room = |bytes: usize| Operand::output(on, Elem::F32, bytes.div_ceil(4));
        Self { held: room(saved_bytes).and_then(|saved| Ok([saved, room(scratch_bytes)?])) }
    }

    /// Where it lies.
    ///
    /// # Errors
    /// There was none.
    pub fn at<B: Testbed<Memory = M>>(&self, on: &B) -> Result<Memory, GpuError> {
        let [saved, scratch] = self.held.as_ref().map_err(Clone::clone)?.each_ref().map(|m| m.ptr(on));
        Ok(Memory { saved, scratch })
    }

    /// Runs what fills it before a measurement, if it is there.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn fill<B: Testbed<Memory = M>>(
        &self,
        on: &B,
        run: impl FnOnce(Memory) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        self.at(on).map_or(Ok(()), run)
    }
}

/// A machine that runs nothing and adds up what products would move.
#[derive(Default)]
struct Count(Cell<u64>);

impl Launcher for Count {
    unsafe fn launch(&self, _: Entry, _: Grid, _: &[Arg]) -> Result<(), GpuError> {
        Ok(())
    }

    fn processors(&self) -> u32 {
        1
    }

    fn shared_bytes(&self) -> usize {
        48 << 10
    }
}

impl Products for Count {
    unsafe fn product(&self, product: &Product, _: Ptr, _: Ptr, _: Ptr, _: Ptr) -> Result<(), GpuError> {
        self.0.set(self.0.get() + product.bytes());
        Ok(())
    }
}

/// Bytes that the products of `run` read and write, each operand once. Neither they nor the launches run.
///
/// # Errors
/// Those of `run`.
pub fn product_bytes(
    run: impl FnOnce(&dyn Launcher, &dyn Products) -> Result<(), GpuError>,
) -> Result<u64, GpuError> {
    let count = Count::default();
    run(&count, &count)?;
    Ok(count.0.get())
}
