//! Where benches run: a GPU, or whatever else launches kernels.

use std::cell::OnceCell;

use crate::gpu::{Buffer, Gpu, GpuError, Launcher, Needs, Products, Ptr, matmul::Matmul};

/// A launcher with memory.
pub trait Testbed {
    /// A piece of memory, freed when dropped.
    type Memory;

    /// Runs launches.
    fn launcher(&self) -> &dyn Launcher;

    /// Runs matrix products, in order with the launches.
    ///
    /// # Errors
    /// There is no library for them.
    fn products(&self) -> Result<&dyn Products, GpuError>;

    /// Memory that holds anything, 16-byte aligned.
    ///
    /// # Errors
    /// There is none left.
    fn alloc(&self, bytes: usize) -> Result<Self::Memory, GpuError>;

    /// Where it begins.
    fn ptr(&self, memory: &Self::Memory) -> Ptr;

    /// Sets every byte, in order with the launches.
    ///
    /// # Errors
    /// A launch before failed.
    fn fill(&self, memory: &Self::Memory, byte: u8) -> Result<(), GpuError>;

    /// Writes `block` again and again, the last time as far as the memory reaches, in order with the launches.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    fn repeat(&self, memory: &Self::Memory, block: &[u8]) -> Result<(), GpuError>;

    /// `len` bytes from byte `at`, after every launch before.
    ///
    /// # Errors
    /// As [`fill`](Self::fill).
    fn read(&self, memory: &Self::Memory, at: usize, len: usize) -> Result<Vec<u8>, GpuError>;

    /// Size of the L2 cache, bytes.
    fn l2_bytes(&self) -> usize;

    /// Whether it has the instructions.
    fn meets(&self, needs: Needs) -> bool;
}

/// A GPU with cuBLASLt, which is opened when the first product asks for it.
pub struct Device<'a> {
    on: &'a Gpu,
    products: OnceCell<Matmul<'a>>,
}

impl<'a> Device<'a> {
    /// On a GPU.
    pub fn new(on: &'a Gpu) -> Self {
        Self { on, products: OnceCell::new() }
    }

    /// The GPU.
    pub fn gpu(&self) -> &'a Gpu {
        self.on
    }
}

impl Testbed for Device<'_> {
    type Memory = Buffer;

    fn launcher(&self) -> &dyn Launcher {
        self.on
    }

    fn products(&self) -> Result<&dyn Products, GpuError> {
        if let Some(products) = self.products.get() {
            return Ok(products);
        }
        let opened = Matmul::new(self.on, None)?;
        Ok(self.products.get_or_init(|| opened))
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer, GpuError> {
        self.on.alloc(bytes)
    }

    fn ptr(&self, memory: &Buffer) -> Ptr {
        memory.ptr()
    }

    fn fill(&self, memory: &Buffer, byte: u8) -> Result<(), GpuError> {
        self.on.fill(memory, byte)
    }

    fn repeat(&self, memory: &Buffer, block: &[u8]) -> Result<(), GpuError> {
        self.on.refill(memory, block)
    }

    fn read(&self, memory: &Buffer, at: usize, len: usize) -> Result<Vec<u8>, GpuError> {
        self.on.read(memory, at, len)
    }

    fn l2_bytes(&self) -> usize {
        self.on.l2_bytes()
    }

    fn meets(&self, needs: Needs) -> bool {
        needs.met_by(self.on.arch())
    }
}
