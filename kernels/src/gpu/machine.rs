//! What a training needs of a device: memory, launches, products, and work that is kept and run again.

mod cuda;

use std::{collections::BTreeMap, ops::DerefMut};

pub use self::cuda::Cuda;
use super::{Entry, GpuError, Launcher, Needs, Product, Products, Ptr, Tracer};

/// A point in the order of what a machine does.
pub trait Wait: Send {
    /// Waits until it has passed; on any thread.
    ///
    /// # Errors
    /// Something before failed.
    fn wait(&self) -> Result<(), GpuError>;
}

/// A launcher with memory. Everything runs in the order in which it is given, but for what is [sent](Self::send).
pub trait Machine {
    /// A piece of memory, freed when dropped, behind what uses it.
    type Memory;
    /// Bytes of the host that the machine reads and writes by itself.
    type Host: DerefMut<Target = [u8]> + Send;
    /// A point in the order of the launches, or of what is sent.
    type Mark: Wait;
    /// Captured work.
    type Graph;

    /// Name of the device.
    fn name(&self) -> String;

    /// Runs launches.
    fn launcher(&self) -> &dyn Launcher;

    /// Runs matrix products, in order with the launches.
    fn products(&self) -> &dyn Products;

    /// Readies a product, so that running it neither waits nor allocates.
    ///
    /// # Errors
    /// As [`Products::product`].
    fn tune(&self, product: &Product) -> Result<(), GpuError>;

    /// Whether [`tune`](Self::tune) needs no memory for operands.
    fn is_tuned(&self, product: &Product) -> bool;

    /// What was chosen by timing for the products so far, for [`adopt`](Self::adopt).
    fn choices(&self) -> String;

    /// Chooses the same from now on, if this is such a device; whether it is.
    fn adopt(&self, choices: &str) -> bool;

    /// Compiles and loads a kernel, which its first launch would do.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    fn load(&self, entry: Entry) -> Result<(), GpuError>;

    /// Whether it has the instructions.
    fn meets(&self, needs: Needs) -> bool;

    /// Memory that products keep for themselves, bytes.
    fn workspace_bytes(&self) -> usize;

    /// Memory that is left, bytes.
    ///
    /// # Errors
    /// The device does not tell.
    fn free_bytes(&self) -> Result<usize, GpuError>;

    /// Memory of zeros, 16-byte aligned.
    ///
    /// # Errors
    /// There is none left.
    fn alloc(&self, bytes: usize) -> Result<Self::Memory, GpuError>;

    /// Where it begins.
    fn ptr(&self, memory: &Self::Memory) -> Ptr;

    /// Overwrites bytes from byte `at`, after every launch before and ahead of every later one.
    ///
    /// # Errors
    /// A launch before failed.
    ///
    /// # Panics
    /// If the memory ends before.
    fn write(&self, memory: &Self::Memory, at: usize, bytes: &[u8]) -> Result<(), GpuError>;

    /// `len` bytes from byte `at`, after every launch before.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Panics
    /// As [`write`](Self::write).
    fn read(&self, memory: &Self::Memory, at: usize, len: usize) -> Result<Vec<u8>, GpuError>;

    /// Sets `len` bytes from byte `at` to zero, in order with the launches.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Panics
    /// As [`write`](Self::write).
    fn zero(&self, memory: &Self::Memory, at: usize, len: usize) -> Result<(), GpuError>;

    /// Host memory of zeros.
    ///
    /// # Errors
    /// There is none left.
    fn host(&self, bytes: usize) -> Result<Self::Host, GpuError>;

    /// A point behind every launch so far.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn mark(&self) -> Result<Self::Mark, GpuError>;

    /// Copies the first bytes of host memory to the beginning of memory, in order with whatever else is sent and once `after`
    /// has passed, but in no order with the launches: those that [follow](Self::follow) the mark alone find the bytes there.
    ///
    /// # Safety
    /// Until the mark has passed, the host memory is neither written nor freed, and no launch touches those bytes of the memory
    /// that is neither before `after` nor follows the mark.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Panics
    /// If either is shorter.
    unsafe fn send(
        &self,
        from: &Self::Host,
        to: &Self::Memory,
        bytes: usize,
        after: Option<&Self::Mark>,
    ) -> Result<Self::Mark, GpuError>;

    /// Copies bytes from byte `at` of memory to the beginning of host memory, behind every launch so far and in order with whatever
    /// else is sent, put aside or brought back, but beside later launches: those wait that [follow](Self::follow) the mark. It can
    /// be captured; the work then follows the last of its marks before it ends.
    ///
    /// # Safety
    /// Until the mark has passed nobody looks at the host memory or frees it, and launches that write the bytes follow the mark. A
    /// mark of a capture is followed in the same capture alone.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Panics
    /// If either is shorter.
    unsafe fn put_aside(
        &self,
        from: &Self::Memory,
        at: usize,
        to: &Self::Host,
        bytes: usize,
    ) -> Result<Self::Mark, GpuError>;

    /// The way back of [`put_aside`](Self::put_aside), in the same order.
    ///
    /// # Safety
    /// As there; launches that touch the bytes follow the mark.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Panics
    /// As there.
    unsafe fn bring_back(
        &self,
        from: &Self::Host,
        to: &Self::Memory,
        at: usize,
        bytes: usize,
    ) -> Result<Self::Mark, GpuError>;

    /// Later launches wait for a mark.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn follow(&self, mark: &Self::Mark) -> Result<(), GpuError>;

    /// Copies the first bytes of memory to the beginning of other memory, in order with the launches.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Panics
    /// As [`send`](Self::send).
    fn copy(&self, from: &Self::Memory, to: &Self::Memory, bytes: usize) -> Result<(), GpuError>;

    /// Fills host memory from byte `at`, in order with the launches: it is there when a later [`mark`](Self::mark) has passed.
    ///
    /// # Safety
    /// The host memory is neither touched nor freed until then.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Panics
    /// As [`write`](Self::write).
    unsafe fn receive(&self, from: &Self::Memory, at: usize, to: &mut Self::Host) -> Result<(), GpuError>;

    /// Captures what `work` launches; none of it runs.
    ///
    /// # Errors
    /// `work` fails, or waits or allocates, which cannot be captured.
    fn capture(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Self::Graph, GpuError>;

    /// Runs captured work.
    ///
    /// # Safety
    /// Every operand of the captured work is alive, as its launches demand, until it has run.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<(), GpuError>;

    /// Its clocks.
    fn tracer(&self) -> &dyn Tracer;

    /// Its kernels by name, and how many of each.
    fn kernels<'g>(&self, graph: &'g Self::Graph) -> &'g BTreeMap<String, u64>;
}
