//! A GPU as a [`Machine`].

use std::collections::BTreeMap;

use super::Machine;
use crate::gpu::{
    Activity, Buffer, Entry, Gpu, GpuError, Graph, Launcher, Limits, Needs, Pinned, Product, Products, Ptr,
    Tracer,
    bench::{Ceiling, Device, ceilings},
    compile::Cache,
    cupti,
    events::Event,
    matmul::{Matmul, WORKSPACES_BYTES},
    stamps::Stamps,
};

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
        crate::gpu::library::require(&["libcuda", "libnvrtc", "libcublasLt"])?;
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

    fn is_tuned(&self, product: &Product) -> bool {
        self.products.is_tuned(product)
    }

    fn choices(&self) -> String {
        self.products.choices()
    }

    fn adopt(&self, choices: &str) -> bool {
        self.products.adopt(choices)
    }

    fn load(&self, entry: Entry) -> Result<(), GpuError> {
        self.gpu.load(entry)
    }

    fn meets(&self, needs: Needs) -> bool {
        needs.met_by(self.gpu.arch())
    }

    fn workspace_bytes(&self) -> usize {
        WORKSPACES_BYTES
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

    unsafe fn put_aside(
        &self,
        from: &Buffer,
        at: usize,
        to: &Pinned,
        bytes: usize,
    ) -> Result<Event, GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.gpu.put_aside(from, at, to, bytes) }
    }

    unsafe fn bring_back(
        &self,
        from: &Pinned,
        to: &Buffer,
        at: usize,
        bytes: usize,
    ) -> Result<Event, GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.gpu.bring_back(from, to, at, bytes) }
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
