//! Runs CUDA kernels on the CPU: g++ compiles the same text behind a shim that makes each CUDA thread a fiber.
//!
//! | file | what |
//! |---|---|
//! | `fibers.h` | threads of a block, barriers, collectives of warps, deadlocks |
//! | `shim.h`, `tensor.h` | what the device gives to a kernel |
//! | `launch.h` | calls by name |
//! | `source.rs`, `module.rs` | the text of a unit, its library |
//! | `probes.rs`, `faults.rs` | tests of all this |
//!
//! With `CHRONICALS_SANITIZE=1`, and AddressSanitizer's runtime preloaded, kernels run under AddressSanitizer and
//! UndefinedBehaviorSanitizer, which end the process at a fault; the test `sanitized` does so.

mod faults;
mod module;
mod probes;
mod source;

use std::{alloc::Layout, ptr::NonNull};

use chronicals_kernels::gpu::{Arg, Elem, Entry, GpuError, Grid, Launcher, Needs, Product, Products, Ptr};

use crate::{
    machine::{Machine, Memory},
    products::multiply,
};

/// Multiprocessors: few, so that persistent kernels go round more than once.
const PROCESSORS: u32 = 3;

/// A machine without a GPU. Launches run at once.
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

impl Machine for Emulator {
    fn launcher(&self) -> &dyn Launcher {
        self
    }

    fn meets(&self, needs: Needs) -> bool {
        needs == Needs::Ampere
    }

    fn upload(&self, bytes: &[u8]) -> Memory {
        Memory::Host(Block::new(bytes))
    }

    fn products(&self) -> &dyn Products {
        self
    }

    fn download(&self, memory: &Memory) -> Vec<u8> {
        let Memory::Host(block) = memory else { panic!("memory of another machine") };
        block.bytes()
    }
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

    /// A copy of what is there.
    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: as many bytes were allocated and written; launches, which may change them, end before they return.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }.to_vec()
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
