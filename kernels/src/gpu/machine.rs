//! What a training needs of a device: memory, launches, products, and work that is kept and run again.

use std::collections::BTreeMap;

use super::{
    Buffer, Entry, Gpu, GpuError, Graph, Launcher, Needs, Product, Products, Ptr,
    compile::Cache,
    matmul::{Matmul, WORKSPACE_BYTES},
};

/// A launcher with memory. Everything runs in the order in which it is given.
pub trait Machine {
    /// A piece of memory, freed when dropped.
    type Memory;
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

    /// Compiles and loads a kernel, which its first launch would do.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    fn load(&self, entry: Entry) -> Result<(), GpuError>;

    /// Whether it has the instructions.
    fn meets(&self, needs: Needs) -> bool;

    /// Memory that products keep for themselves, bytes.
    fn workspace_bytes(&self) -> usize;

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

    /// Its kernels by name, and how many of each.
    fn kernels<'g>(&self, graph: &'g Self::Graph) -> &'g BTreeMap<String, u64>;
}

/// A GPU with cuBLASLt.
pub struct Cuda {
    gpu: &'static Gpu,
    products: Matmul<'static>,
}

impl Cuda {
    /// Opens a GPU and the libraries. The GPU stays open until the process ends: graphs and products borrow it, and a
    /// process trains on one.
    ///
    /// # Errors
    /// There is no such GPU, it is older than sm_80, or a library is missing.
    pub fn open(ordinal: usize) -> Result<Self, GpuError> {
        super::library::require(&["libcuda", "libnvrtc", "libcublasLt"])?;
        let gpu: &'static Gpu = Box::leak(Box::new(Gpu::open(ordinal, Cache::of_user())?));
        Ok(Self { gpu, products: Matmul::new(gpu, Cache::folder("products"))? })
    }

    /// The GPU.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }
}

impl Machine for Cuda {
    type Memory = Buffer;
    type Graph = Graph<'static>;

    fn name(&self) -> String {
        self.gpu.name()
    }

    fn launcher(&self) -> &dyn Launcher {
        self.gpu
    }

    fn products(&self) -> &dyn Products {
        &self.products
    }

    fn tune(&self, product: &Product) -> Result<(), GpuError> {
        self.products.tune(product)
    }

    fn load(&self, entry: Entry) -> Result<(), GpuError> {
        self.gpu.load(entry)
    }

    fn meets(&self, needs: Needs) -> bool {
        needs.met_by(self.gpu.arch())
    }

    fn workspace_bytes(&self) -> usize {
        WORKSPACE_BYTES
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer, GpuError> {
        let buffer = self.gpu.alloc(bytes)?;
        self.gpu.fill(&buffer, 0)?;
        Ok(buffer)
    }

    fn ptr(&self, memory: &Buffer) -> Ptr {
        memory.ptr()
    }

    fn write(&self, memory: &Buffer, at: usize, bytes: &[u8]) -> Result<(), GpuError> {
        self.gpu.write_at(memory, at, bytes)
    }

    fn read(&self, memory: &Buffer, at: usize, len: usize) -> Result<Vec<u8>, GpuError> {
        self.gpu.read(memory, at, len)
    }

    fn zero(&self, memory: &Buffer, at: usize, len: usize) -> Result<(), GpuError> {
        self.gpu.zero(memory, at, len)
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Graph<'static>, GpuError> {
        self.gpu.capture(work)
    }

    unsafe fn replay(&self, graph: &Graph<'static>) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe { graph.launch() }
    }

    fn kernels<'g>(&self, graph: &'g Graph<'static>) -> &'g BTreeMap<String, u64> {
        graph.kernels()
    }
}
