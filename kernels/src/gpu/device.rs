//! One GPU: its streams, and the launches on them.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ffi::{CString, c_void},
    sync::Arc,
};

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use super::{
    Arg, Elem, Entry, GpuError, Grid, Launcher,
    args::{Value, value},
    compile::Cache,
    events::Event,
    launch::LANES,
    library,
};

/// Dynamic shared memory that a kernel gets without asking.
const DEFAULT_SHARED: u32 = 48 << 10;

/// UUID of the GPU that programs on this machine see first, as NVML writes it; none without one. NVML counts all GPUs of a
/// machine, CUDA those alone that `CUDA_VISIBLE_DEVICES` shows and in an order of its own: only the UUID is common to both.
pub fn first_uuid() -> Option<String> {
    library::require(&["libcuda"]).ok()?;
    result::init().ok()?;
    let uuid = result::device::get_uuid(result::device::get(0).ok()?).ok()?;
    let hex: String = uuid.bytes.iter().map(|b| format!("{:02x}", *b as u8)).collect();
    Some(format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// A GPU with a stream of its own. Launches and copies run in the order in which they are given, but for those
/// [beside the launches](Self::send), and for launches that are put [beside others](Launcher::beside).
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    lanes: [Arc<CudaStream>; LANES],
    /// The lane that launches go to, if not `stream`.
    lane: Cell<Option<usize>>,
    /// Lanes that were not joined since they had work: a capture knows no others.
    apart: Cell<[bool; LANES]>,
    copies: Arc<CudaStream>,
    cache: Cache,
    arch: String,
    processors: u32,
    l2_bytes: usize,
    shared_bytes: usize,
    /// Whether a kernel can begin while the one before it ends.
    overlaps: bool,
    modules: RefCell<HashMap<(&'static str, Elem), sys::CUmodule>>,
    functions: RefCell<HashMap<Entry, sys::CUfunction>>,
}

impl Gpu {
    /// Opens a GPU.
    ///
    /// # Errors
    /// A library is missing, there is no such GPU, or it is older than sm_80.
    pub fn open(ordinal: usize, cache: Cache) -> Result<Self, GpuError> {
        library::require(&["libcuda", "libnvrtc"])?;
        let failed = |e| GpuError::driver(&format!("GPU {ordinal}"), e);
        let context = CudaContext::new(ordinal).map_err(failed)?;
        // SAFETY: nothing of cudarc's safe layer that would need its events is used: what runs beside the launches has its own.
        unsafe { context.disable_event_tracking() };
        let (major, minor) = context.compute_capability().map_err(failed)?;
        if major < 8 {
            let name = context.name().unwrap_or_default();
            let what = format!("{name} has compute capability {major}.{minor}; the kernels need 8.0");
            return Err(GpuError::new(
                what,
                format!("GPU {ordinal}"),
                "use an Ampere GPU or a newer one, or the CPU",
            ));
        }
        // sm_90a has the instructions of Hopper alone, which the plan may ask for.
        let arch = if (major, minor) == (9, 0) { "sm_90a".into() } else { format!("sm_{major}{minor}") };
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let processors = context.attribute(count).map_err(failed)? as u32;
        let cache_bytes = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        let l2_bytes = context.attribute(cache_bytes).map_err(failed)? as usize;
        let shared = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared_bytes = context.attribute(shared).map_err(failed)? as usize;
        let stream = context.new_stream().map_err(failed)?;
        let [one, other] = [context.new_stream(), context.new_stream()];
        let lanes = [one.map_err(failed)?, other.map_err(failed)?];
        let copies = context.new_stream().map_err(failed)?;
        Ok(Self {
            context,
            stream,
            lanes,
            lane: Cell::default(),
            apart: Cell::default(),
            copies,
            cache,
            arch,
            processors,
            l2_bytes,
            shared_bytes,
            overlaps: major >= 9,
            modules: RefCell::default(),
            functions: RefCell::default(),
        })
    }

    /// Name of the device.
    pub fn name(&self) -> String {
        self.context.name().unwrap_or_default()
    }

    /// Architecture that kernels are compiled for, e.g. `sm_90a`.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// Size of the L2 cache, bytes.
    pub fn l2_bytes(&self) -> usize {
        self.l2_bytes
    }

    /// Free and total memory, bytes.
    pub fn memory(&self) -> Result<(usize, usize), GpuError> {
        self.bind()?;
        result::mem_get_info().map_err(|e| GpuError::driver("memory", e))
    }

    /// Waits for everything before.
    ///
    /// # Errors
    /// A kernel failed.
    pub fn synchronise(&self) -> Result<(), GpuError> {
        self.stream.synchronize().map_err(|e| GpuError::driver("synchronisation", e))
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    /// The lane that launches go to, if not their own stream.
    pub(super) fn lane(&self) -> Option<usize> {
        self.lane.get()
    }

    /// Where launches and products go now.
    pub(super) fn current(&self) -> sys::CUstream {
        self.lane().map_or(&self.stream, |lane| &self.lanes[lane]).cu_stream()
    }

    pub(super) fn launches(&self) -> &CudaStream {
        &self.stream
    }

    pub(super) fn copies(&self) -> &CudaStream {
        &self.copies
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(super) fn bind(&self) -> Result<(), GpuError> {
        self.context.bind_to_thread().map_err(|e| GpuError::driver("context", e))
    }

    /// Compiles and loads a kernel.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub fn load(&self, entry: Entry) -> Result<(), GpuError> {
        self.bind()?;
        self.function(entry).map(drop)
    }

    fn function(&self, entry: Entry) -> Result<sys::CUfunction, GpuError> {
        if let Some(f) = self.functions.borrow().get(&entry) {
            return Ok(*f);
        }
        let failed = |e| GpuError::driver(&format!("{} of {}", entry.name, entry.unit.name), e);
        let module = self.module(entry)?;
        let name = CString::new(entry.name).expect("no NUL in a name");
        // SAFETY: the module is loaded and stays so as long as this GPU lives.
        let function = unsafe { result::module::get_function(module, name) }.map_err(failed)?;
        self.functions.borrow_mut().insert(entry, function);
        Ok(function)
    }

    fn module(&self, entry: Entry) -> Result<sys::CUmodule, GpuError> {
        let key = (entry.unit.name, entry.elem);
        if let Some(module) = self.modules.borrow().get(&key) {
            return Ok(*module);
        }
        let cubin = self.cache.get(entry.unit, entry.elem, &self.arch)?;
        // SAFETY: the image is a whole CUBIN: the compiler's own, or the cache's with its checksum right.
        let module = unsafe { result::module::load_data(cubin.image.as_ptr().cast()) };
        let module = module.map_err(|e| GpuError::driver(entry.unit.name, e))?;
        self.modules.borrow_mut().insert(key, module);
        Ok(module)
    }
}

impl Gpu {
    /// # Safety
    /// As [`Launcher::launch`], or as [`Launcher::launch_early`] where `early`.
    unsafe fn submit(&self, entry: Entry, grid: Grid, args: &[Arg], early: bool) -> Result<(), GpuError> {
        self.bind()?;
        let failed = |e| GpuError::driver(&format!("launch of {}", entry.name), e);
        let function = self.function(entry)?;
        if grid.shared > DEFAULT_SHARED {
            let wanted = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a loaded module.
            unsafe { result::function::set_function_attribute(function, wanted, grid.shared as i32) }
                .map_err(failed)?;
        }
        let mut values: Vec<Value> = args.iter().map(value).collect::<Result<_, _>>().map_err(failed)?;
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| (v as *mut Value).cast()).collect();
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks.0,
            gridDimY: grid.blocks.1,
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.current(),
            attrs: &raw mut overlap,
            numAttrs: u32::from(early && self.overlaps),
        };
        // SAFETY: the caller answers for the arguments; each lies in the low bytes of its value, where a little-endian
        // host has them, and the driver copies them and the configuration before the call returns.
        unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(failed)
    }
}

impl Launcher for Gpu {
    unsafe fn launch(&self, entry: Entry, grid: Grid, args: &[Arg]) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.submit(entry, grid, args, false) }
    }

    unsafe fn launch_early(&self, entry: Entry, grid: Grid, args: &[Arg]) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.submit(entry, grid, args, true) }
    }

    fn beside(&self, lane: usize, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<(), GpuError> {
        assert!(self.lane().is_none(), "a lane of lane {lane}");
        self.bind()?;
        Event::behind(&self.stream, false)?.ahead_of(&self.lanes[lane])?;
        let mut apart = self.apart.get();
        apart[lane] = true;
        self.apart.set(apart);
        self.lane.set(Some(lane));
        let worked = work();
        self.lane.set(None);
        worked
    }

    fn join(&self) -> Result<(), GpuError> {
        self.bind()?;
        for (lane, _) in self.lanes.iter().zip(self.apart.take()).filter(|(_, apart)| *apart) {
            Event::behind(lane, false)?.ahead_of(&self.stream)?;
        }
        Ok(())
    }

    fn processors(&self) -> u32 {
        self.processors
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let _ = self.synchronise();
        let _ = self.copies.synchronize();
        let _ = self.lanes.each_ref().map(|lane| lane.synchronize());
        if self.bind().is_ok() {
            for module in self.modules.borrow().values() {
                // SAFETY: loaded by this GPU, whose launches have ended.
                let _ = unsafe { result::module::unload(*module) };
            }
        }
    }
}
