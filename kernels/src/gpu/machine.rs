//! What a training needs of a device: memory, launches, products, and work that is kept and run again.

use std::{collections::BTreeMap, ops::DerefMut};

use super::{
    Activity, Buffer, Entry, Gpu, GpuError, Graph, Launcher, Limits, Needs, Pinned, Product, Products, Ptr,
    Tracer,
    bench::{Ceiling, Device, ceilings},
    compile::Cache,
    cupti,
    events::Event,
    matmul::{Matmul, WORKSPACE_BYTES},
    stamps::Stamps,
};

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

/// A GPU with cuBLASLt.
pub struct Cuda {
    gpu: &'static Gpu,
    products: Matmul<'static>,
    stamps: Stamps,
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
        Ok(Self { gpu, products: Matmul::new(gpu, Cache::folder("products"))?, stamps: Stamps::default() })
    }

    /// The GPU.
    pub fn gpu(&self) -> &'static Gpu {
        self.gpu
    }
}

impl Machine for Cuda {
    type Memory = Buffer;
    type Host = Pinned;
    type Mark = Event;
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

    fn free_bytes(&self) -> Result<usize, GpuError> {
        Ok(self.gpu.memory()?.0)
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

    fn host(&self, bytes: usize) -> Result<Pinned, GpuError> {
        self.gpu.pinned(bytes)
    }

    fn mark(&self) -> Result<Event, GpuError> {
        self.gpu.mark()
    }

    unsafe fn send(
        &self,
        from: &Pinned,
        to: &Buffer,
        bytes: usize,
        after: Option<&Event>,
    ) -> Result<Event, GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.gpu.send(from, to, bytes, after) }
    }

    fn follow(&self, mark: &Event) -> Result<(), GpuError> {
        self.gpu.follow(mark)
    }

    fn copy(&self, from: &Buffer, to: &Buffer, bytes: usize) -> Result<(), GpuError> {
        self.gpu.copy_bytes(from, to, bytes)
    }

    unsafe fn receive(&self, from: &Buffer, at: usize, to: &mut Pinned) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.gpu.receive(from, at, to) }
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Graph<'static>, GpuError> {
        self.gpu.capture(work)
    }

    unsafe fn replay(&self, graph: &Graph<'static>) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe { graph.launch() }
    }

    fn tracer(&self) -> &dyn Tracer {
        self
    }

    fn kernels<'g>(&self, graph: &'g Graph<'static>) -> &'g BTreeMap<String, u64> {
        graph.kernels()
    }
}

impl Tracer for Cuda {
    fn limits(&self) -> Result<Limits, GpuError> {
        let measured = ceilings(&Device::new(self.gpu), 10)?;
        let rate = |amount: fn(&Ceiling) -> u64| {
            let rates = measured.iter().flat_map(|c| c.seconds.iter().map(move |s| amount(c) as f64 / s));
            rates.fold(0.0, f64::max)
        };
        Ok(Limits {
            bytes_a_second: rate(|c| c.bytes),
            flops_a_second: rate(|c| c.flops),
            product: "bf16 product of 8192³",
        })
    }

    fn watcher(&self) -> Result<String, GpuError> {
        cupti::version()
    }

    fn watch(&self) -> Result<(), GpuError> {
        self.gpu.synchronise()?;
        cupti::start()
    }

    fn forget(&self) -> Result<(), GpuError> {
        self.gpu.synchronise()?;
        cupti::forget()
    }

    fn seen(&self) -> Result<Vec<Activity>, GpuError> {
        self.gpu.synchronise()?;
        cupti::stop()
    }

    fn stamp(&self) -> Result<(), GpuError> {
        self.stamps.stamp(self.gpu)
    }

    fn stamps(&self) -> Result<Vec<u64>, GpuError> {
        self.stamps.read(self.gpu)
    }
}
