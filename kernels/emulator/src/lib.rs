//! Runs CUDA kernels on the CPU: g++ compiles the same text behind a shim that makes each CUDA thread a fiber.
//!
//! | file | what |
//! |---|---|
//! | `fibers.h` | threads of a block, barriers, collectives of warps, deadlocks |
//! | `shim.h`, `tensor.h` | what the device gives to a kernel |
//! | `launch.h` | calls by name |
//! | `source.rs`, `module.rs` | the text of a unit, its library |
//! | `machine.rs` | memory, and captures that run again |
//! | `streams.rs` | launches and copies beside them, in the order that marks give |
//! | `clock.rs` | a time that depends on what ran alone, for traces |
//! | `sanitizer.rs` | a test binary once more, under sanitizers |
//!
//! Tests of all this are beside those of the kernels. With `CHRONICALS_SANITIZE=1`, and AddressSanitizer's runtime preloaded, kernels run under AddressSanitizer and
//! UndefinedBehaviorSanitizer, which end the process at a fault; the test `sanitized` does so.

mod capture;
mod clock;
mod machine;
mod memory;
mod module;
pub mod sanitizer;
mod source;
mod streams;

use std::{alloc::Layout, ptr::NonNull};

use chronicals_kernels::gpu::{Arg, Elem, Entry, GpuError, Grid, Launcher, Product, Products, Ptr};

pub use capture::Replay;
pub use machine::Training;
pub use memory::{Host, Mark, Memory};
pub use streams::{Arrival, Counter};

/// Multiprocessors: few, so that persistent kernels go round more than once.
const PROCESSORS: u32 = 3;

/// A machine without a GPU. Launches run at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Emulator;

impl Emulator {
    /// Compiles nothing yet.
    pub fn new() -> Self {
        Self
    }
}

impl Launcher for Emulator {
    unsafe fn launch(&self, entry: Entry, grid: Grid, args: &[Arg]) -> Result<(), GpuError> {
        let at = || format!("{} of {}, {}, emulated", entry.name, entry.unit.name, entry.elem.name());
        let failed =
            |what: String| GpuError { what, at: at(), hint: "the kernel is wrong, or its launch".into() };
        check(grid).map_err(failed)?;
        // SAFETY: the caller's promise is the same.
        unsafe { module::launch(entry.unit, entry.elem, entry.name, grid, args) }.map_err(failed)
    }

    fn processors(&self) -> u32 {
        PROCESSORS
    }

    /// That of an A100.
    fn shared_bytes(&self) -> usize {
        163 << 10
    }
}

impl Products for Emulator {
    unsafe fn product(&self, p: &Product, a: Ptr, b: Ptr, bias: Ptr, c: Ptr) -> Result<(), GpuError> {
        let spans = p.spans();
        // SAFETY: the caller's promise: that many elements are there, and nobody else has C.
        let [left, right, mut out, bias] = unsafe {
            let bias = read(bias, if p.bias { p.n } else { 0 }, p.out);
            [read(a, spans[0], p.elem), read(b, spans[1], p.elem), read(c, spans[2], p.out), bias]
        };
        multiply(p, &left, &right, &bias, &mut out);
        let bytes = p.out.encode(&out);
        // SAFETY: as above; the copy has the length that was read.
        unsafe {
            std::ptr::with_exposed_provenance_mut::<u8>(c.0 as usize).copy_from(bytes.as_ptr(), bytes.len())
        };
        Ok(())
    }
}

/// C of a product whose operands have the lengths of [`Product::spans`], and the bias n elements where there is one: sums in
/// f64, rounded once.
pub fn multiply(p: &Product, a: &[f32], b: &[f32], bias: &[f32], c: &mut [f32]) {
    let places = (0..p.m).flat_map(|i| (0..p.n).map(move |j| (i, j)));
    for (batch, (i, j)) in (0..p.batch.count).flat_map(|b| places.clone().map(move |at| (b, at))) {
        let [first_a, first_b, first_c] = p.batch.strides.map(|stride| batch * stride);
        let term = |l| f64::from(a[first_a + p.a.at(i, l)]) * f64::from(b[first_b + p.b.at(l, j)]);
        let sum: f64 = f64::from(p.factor.value()) * (0..p.k).map(term).sum::<f64>();
        let at = first_c + i * p.ldc + j;
        let kept = if p.accumulate { f64::from(c[at]) } else { 0.0 };
        let bias = if p.bias { f64::from(bias[j]) } else { 0.0 };
        c[at] = (sum + kept + bias) as f32;
    }
}

/// # Safety
/// `len` elements lie there.
unsafe fn read(at: Ptr, len: usize, elem: Elem) -> Vec<f32> {
    if len == 0 {
        return Vec::new();
    }
    let from = std::ptr::with_exposed_provenance::<u8>(at.0 as usize);
    // SAFETY: the caller's promise.
    elem.decode(unsafe { std::slice::from_raw_parts(from, len * elem.bytes()) })
}

/// What the driver would refuse.
fn check(grid: Grid) -> Result<(), String> {
    let (x, y) = grid.blocks;
    let well =
        (1..=i32::MAX as u32).contains(&x) && (1..=65535).contains(&y) && (1..=1024).contains(&grid.threads);
    if well && grid.shared <= 227 << 10 { Ok(()) } else { Err(format!("{grid:?} is refused")) }
}

/// Memory of the heap, of exactly the length asked for.
pub struct Block {
    at: NonNull<u8>,
    len: usize,
}

impl Block {
    const ALIGN: usize = 16;

    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let len = bytes.len();
        let at = if len == 0 {
            // Nothing may be read there.
            std::ptr::without_provenance_mut(Self::ALIGN)
        } else {
            // SAFETY: the length is not 0.
            unsafe { std::alloc::alloc(Self::layout(len)) }
        };
        let at = NonNull::new(at).unwrap_or_else(|| std::alloc::handle_alloc_error(Self::layout(len)));
        // SAFETY: `len` bytes were allocated.
        unsafe { at.copy_from_nonoverlapping(NonNull::from(bytes).cast(), len) };
        Self { at, len }
    }

    /// Where it begins.
    pub fn ptr(&self) -> Ptr {
        Ptr(self.at.as_ptr().expose_provenance() as u64)
    }

    /// Its length.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy of what is there.
    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: as many bytes were allocated and written; launches, which may change them, end before they return.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }.to_vec()
    }

    /// Overwrites bytes from byte `at`.
    ///
    /// # Panics
    /// If they end beyond it.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len, "{} bytes from byte {at} of {}", bytes.len(), self.len);
        // SAFETY: that many bytes are there; launches, which may read them, end before they return.
        unsafe { self.at.add(at).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, Self::ALIGN).expect("a length of memory")
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated by `new` with this layout, and freed here only.
            unsafe { std::alloc::dealloc(self.at.as_ptr(), Self::layout(self.len)) }
        }
    }
}
