//! What a launch is, whoever runs it.

use super::{Cost, GpuError};

/// Element type of activations, weights and their gradients. Sums and statistics are f32 in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Elem {
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// For debugging, and for comparison with the CPU.
    F32,
}

impl Elem {
    /// Every element type.
    pub const ALL: [Elem; 2] = [Elem::Bf16, Elem::F32];

    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Elem::Bf16 => 2,
            Elem::F32 => 4,
        }
    }

    /// Name in messages and records.
    pub fn name(self) -> &'static str {
        match self {
            Elem::Bf16 => "bf16",
            Elem::F32 => "f32",
        }
    }

    /// `values` as they lie in memory, rounded to nearest even.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Elem::F32 => le_bytes(values, f32::to_le_bytes),
            Elem::Bf16 => le_bytes(values, |v| half::bf16::from_f32(v).to_le_bytes()),
        }
    }

    /// Values from memory; a torn last one is left out.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Elem::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Elem::Bf16 => {
                bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
            }
        }
    }
}

/// `values` as they lie in memory, e.g. `le_bytes(&index, i32::to_le_bytes)`.
pub fn le_bytes<T: Copy, const N: usize>(values: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&v| to(v)).collect()
}

/// CUDA C++ that is compiled as one, once for each element type: `elem` is that type in it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    /// Name in messages, e.g. `rmsnorm`.
    pub name: &'static str,
    /// Text, without `prelude.cuh`, which goes before it.
    pub source: &'static str,
    /// Its `extern "C"` entry points.
    pub entries: &'static [&'static str],
    /// Element types that it is written for.
    pub elems: &'static [Elem],
    /// What it runs on.
    pub needs: Needs,
}

impl Unit {
    /// One of its entry points.
    pub fn entry(&'static self, name: &'static str, elem: Elem) -> Entry {
        Entry { unit: self, name, elem }
    }
}

/// Architectures that have a unit's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Needs {
    /// sm_80 and newer.
    Ampere,
    /// sm_90a alone: wgmma, TMA. The emulator has neither.
    Hopper,
}

impl Needs {
    /// Whether an architecture, e.g. `sm_90a`, has them.
    pub fn met_by(self, arch: &str) -> bool {
        self == Needs::Ampere || arch == "sm_90a"
    }
}

/// Every unit of this crate.
pub const UNITS: &[&Unit] = &[
    &crate::adamw::cuda::UNIT,
    &crate::adamw::cuda_eager::UNIT,
    &crate::attention::cuda::HOPPER,
    &crate::attention::cuda::MMA,
    &crate::attention::cuda::PARTS,
    &crate::attention::cuda::PLAIN,
    &crate::attention::cuda_eager::UNIT,
    &crate::embedding::cuda::UNIT,
    &super::digest::UNIT,
    &crate::linear_ce::cuda::UNIT,
    &crate::linear_ce::cuda_eager::UNIT,
    &crate::lora::cuda::UNIT,
    &crate::lora::cuda_eager::UNIT,
    &crate::qk_rope::cuda::UNIT,
    &crate::qk_rope::cuda_eager::UNIT,
    &crate::rmsnorm::cuda::UNIT,
    &crate::rmsnorm::cuda_eager::UNIT,
    &crate::swiglu::cuda::UNIT,
    &crate::swiglu::cuda_adapted::UNIT,
    &crate::swiglu::cuda_eager::UNIT,
];

/// A `__global__` function of a unit at an element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Where it stands.
    pub unit: &'static Unit,
    /// Its `extern "C"` name.
    pub name: &'static str,
    /// Element type.
    pub elem: Elem,
}

/// Blocks, threads and shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x and y.
    pub blocks: (u32, u32),
    /// Threads of a block, all in x.
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
}

/// Address in the launcher's memory; 0 where an operand is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ptr(pub u64);

impl Ptr {
    /// No operand.
    pub const NULL: Ptr = Ptr(0);

    /// So many bytes on.
    pub fn offset(self, bytes: usize) -> Ptr {
        Ptr(self.0 + bytes as u64)
    }
}

/// An argument of a kernel; its type must be that of the parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// `T*`
    Ptr(Ptr),
    /// `int`
    I32(i32),
    /// `long long`
    I64(i64),
    /// `unsigned`
    U32(u32),
    /// `float`
    F32(f32),
    /// `const __grid_constant__ TensorMap` (`hopper.cuh`): rows of bf16, one right behind the other, that the copy engine reads in
    /// boxes of 64 rows and 64 columns. The columns are a multiple of 64.
    Matrix {
        /// Where it begins, 16-byte aligned.
        at: Ptr,
        /// Its rows; those beyond read as zeros.
        rows: usize,
        /// Its columns.
        columns: usize,
    },
}

/// Lanes beside the launches.
pub const LANES: usize = 2;

/// Runs launches in order, but for what is put [beside](Self::beside) others.
pub trait Launcher {
    /// Puts a launch behind those before it.
    ///
    /// # Safety
    /// Arguments have the types of the parameters, and every pointer leads to as much of this launcher's memory as the
    /// kernel's contract says, until the launch has run.
    ///
    /// # Errors
    /// The kernel does not compile, or the launch is refused. Faults inside it show at the next synchronisation.
    unsafe fn launch(&self, entry: Entry, grid: Grid, args: &[Arg]) -> Result<(), GpuError>;

    /// As [`launch`](Self::launch), but where the device can, the kernel begins while the one before it ends (programmatic
    /// dependent launch, sm_90 and newer). Its text must call `wait_for_predecessor` before it touches what that one writes.
    ///
    /// # Safety
    /// As [`launch`](Self::launch).
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    unsafe fn launch_early(&self, entry: Entry, grid: Grid, args: &[Arg]) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.launch(entry, grid, args) }
    }

    /// What `work` launches, by this launcher and the products of its machine, may run beside what is launched after it, up to
    /// [`join`](Self::join); it follows what was launched before, and what the same of [`LANES`] lanes was given. Where a machine has no
    /// lanes, all is in order.
    ///
    /// # Errors
    /// Those of `work`; the driver refuses.
    fn beside(&self, lane: usize, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<(), GpuError> {
        let _ = lane;
        work()
    }

    /// What is launched from here on follows all that was launched in lanes.
    ///
    /// # Errors
    /// The driver refuses.
    fn join(&self) -> Result<(), GpuError> {
        Ok(())
    }

    /// Says what the next launch moves and computes, for whoever keeps an account; every launch of a step says it.
    fn costs(&self, _next: Cost) {}

    /// Corrects what was said of the last launch.
    fn cost(&self, _last: Cost) {}

    /// Multiprocessors: how many blocks of a persistent kernel are worth having, times what fits on one.
    fn processors(&self) -> u32;

    /// Most shared memory that a block may ask for, bytes.
    fn shared_bytes(&self) -> usize;
}
