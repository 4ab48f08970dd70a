//! Where a parity test runs: a GPU or the emulator, with the same launch code on both.

use std::cell::RefCell;

use chronicals_kernels::gpu::{
    Buffer, Elem, Gpu, GpuError, Launcher, Needs, Products, Ptr, compile::Cache, eager, matmul::Matmul,
};

use crate::products::OnHost;

/// A launcher and its memory.
pub trait Machine {
    /// Runs launches.
    fn launcher(&self) -> &dyn Launcher;
    /// Runs matrix products, in order with the launches.
    fn products(&self) -> &dyn Products;
    /// Whether it has what a unit needs.
    fn meets(&self, needs: Needs) -> bool;
    /// Memory that holds a copy of `bytes`, 16-byte aligned.
    fn upload(&self, bytes: &[u8]) -> Memory;
    /// A copy of memory, after every launch before; panics if one of them failed.
    fn download(&self, memory: &Memory) -> Vec<u8>;
    /// Whether checks are to be short: see [`cases`].
    fn reduced(&self) -> bool {
        false
    }
}

/// All cases of a check; where checks are to be short, those at `few`, which launch the same kernels.
pub fn cases<T: Copy>(machine: &dyn Machine, all: &[T], few: &[usize]) -> Vec<T> {
    if machine.reduced() { few.iter().map(|at| all[*at]).collect() } else { all.to_vec() }
}

/// Memory of a machine; freed when dropped.
pub enum Memory {
    /// Of a GPU.
    Gpu(Buffer),
    /// Of the emulator: the process's own heap, so that AddressSanitizer sees its ends.
    Host(crate::emulator::Block),
}

impl Memory {
    /// Where it begins.
    pub fn ptr(&self) -> Ptr {
        match self {
            Memory::Gpu(buffer) => buffer.ptr(),
            Memory::Host(block) => block.ptr(),
        }
    }
}

/// The first GPU.
pub struct Device {
    gpu: &'static Gpu,
    products: Box<dyn Products>,
}

impl Device {
    /// Opens it, until the process ends; a test that asks for a GPU fails without one.
    pub fn open() -> Self {
        Self::with(|gpu| Ok(Box::new(Matmul::new(gpu, None)?)))
    }

    /// With products on the host: no kernels run but this crate's, and cuBLASLt is not opened.
    pub fn without_cublas() -> Self {
        Self::with(|gpu| Ok(Box::new(OnHost(gpu))))
    }

    fn with(products: impl FnOnce(&'static Gpu) -> Result<Box<dyn Products>, GpuError>) -> Self {
        let opened = Gpu::open(0, Cache::of_user()).and_then(|gpu| {
            let gpu: &'static Gpu = Box::leak(Box::new(gpu));
            Ok(Self { gpu, products: products(gpu)? })
        });
        opened.unwrap_or_else(|e| panic!("{e}; {}", e.hint))
    }
}

impl Machine for Device {
    fn launcher(&self) -> &dyn Launcher {
        self.gpu
    }

    fn products(&self) -> &dyn Products {
        &*self.products
    }

    fn meets(&self, needs: Needs) -> bool {
        needs.met_by(self.gpu.arch())
    }

    fn upload(&self, bytes: &[u8]) -> Memory {
        Memory::Gpu(self.gpu.upload(bytes).unwrap())
    }

    fn download(&self, memory: &Memory) -> Vec<u8> {
        let Memory::Gpu(buffer) = memory else { panic!("memory of another machine") };
        self.gpu.download(buffer).unwrap()
    }
}

/// Operands in an element type.
pub struct Operands<'a> {
    /// Where they go.
    pub machine: &'a dyn Machine,
    /// What they are there.
    pub elem: Elem,
}

impl Operands<'_> {
    /// `values`, which the element type must represent: see [`rounded`].
    pub fn input(&self, values: &[f32]) -> Memory {
        self.machine.upload(&self.elem.encode(values))
    }

    /// Room for `len` elements, filled with NaN: what a kernel does not write shows.
    pub fn output(&self, len: usize) -> Memory {
        self.input(&vec![f32::NAN; len])
    }

    /// Elements back as f32.
    pub fn read(&self, memory: &Memory) -> Vec<f32> {
        self.elem.decode(&self.machine.download(memory))
    }

    /// As `self`, for operands that are f32 whatever the element type.
    pub fn f32(&self) -> Operands<'_> {
        Operands { machine: self.machine, elem: Elem::F32 }
    }
}

/// What an eager variant needs besides its operands, filled with NaN of any width.
pub struct EagerMemory<'a> {
    machine: &'a dyn Machine,
    saved: Memory,
    scratch_bytes: usize,
    /// Of every call so far: launches may be under way.
    scratch: RefCell<Vec<Memory>>,
}

impl<'a> EagerMemory<'a> {
    /// Of so many bytes.
    pub fn new(machine: &'a dyn Machine, saved_bytes: usize, scratch_bytes: usize) -> Self {
        let saved = machine.upload(&vec![0xff; saved_bytes]);
        Self { machine, saved, scratch_bytes, scratch: RefCell::default() }
    }

    /// For one call: what is saved stays, the scratch is NaN again.
    pub fn ptrs(&self) -> eager::Memory {
        let scratch = self.machine.upload(&vec![0xff; self.scratch_bytes]);
        let at = scratch.ptr();
        self.scratch.borrow_mut().push(scratch);
        eager::Memory { saved: self.saved.ptr(), scratch: at }
    }
}

/// `values` as `elem` represents them: what the reference must start from.
pub fn rounded(elem: Elem, values: Vec<f32>) -> Vec<f32> {
    elem.decode(&elem.encode(&values))
}

/// As f64, for the reference.
pub fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|x| f64::from(*x)).collect()
}

/// Asserts |a − b| ≤ tolerance · scale for all elements, where `scale` is the largest |b|, and says where it failed worst.
/// NaN anywhere fails.
pub fn assert_close(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    let scale = expected.iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()));
    let off = |i: usize| (f64::from(got[i]) - expected[i]).abs() / scale;
    // NaN is the worst of all.
    let worse = |&a: &usize, &b: &usize| {
        off(a).partial_cmp(&off(b)).unwrap_or_else(|| off(a).is_nan().cmp(&off(b).is_nan()))
    };
    let Some(worst) = (0..got.len()).max_by(worse) else { return };
    assert!(
        off(worst) <= tolerance,
        "{what}[{worst}]: {} is not {} (off by {:.2e} of the largest, {tolerance:.0e} allowed)",
        got[worst],
        expected[worst],
        off(worst)
    );
}
