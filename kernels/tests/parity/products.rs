//! Matrix products on the host, for machines that have no library for them, or are to run no kernels of one.

use chronicals_emulator::multiply;
use chronicals_kernels::gpu::{Elem, Gpu, GpuError, Product, Products, Ptr};
use cudarc::driver::{DriverError, result};

/// Products of a GPU's memory: operands come down, and C goes up again.
pub struct OnHost(pub &'static Gpu);

impl Products for OnHost {
    unsafe fn product(&self, p: &Product, a: Ptr, b: Ptr, bias: Ptr, c: Ptr) -> Result<(), GpuError> {
        // What came before has written the operands; the context is this thread's from here on.
        self.0.synchronise()?;
        let spans = p.spans();
        // SAFETY: the caller's promise: that many elements are there, and nobody else has C.
        let [left, right, mut out, bias] = unsafe {
            let bias = read(bias, if p.bias { p.n } else { 0 }, p.out)?;
            [read(a, spans[0], p.elem)?, read(b, spans[1], p.elem)?, read(c, spans[2], p.out)?, bias]
        };
        multiply(p, &left, &right, &bias, &mut out);
        // SAFETY: as above; the copy has the length that was read.
        unsafe { result::memcpy_htod_sync(c.0, &p.out.encode(&out)) }.map_err(failed)?;
        // Copied so far is what a copy from pageable memory waits for, not that it has arrived; and the launches' stream does not wait
        // for such copies.
        result::ctx::synchronize().map_err(failed)
    }
}

/// # Safety
/// `len` elements lie there, and nothing writes them.
unsafe fn read(at: Ptr, len: usize, elem: Elem) -> Result<Vec<f32>, GpuError> {
    let mut bytes = vec![0u8; len * elem.bytes()];
    if len > 0 {
        // SAFETY: the caller's promise; the copy ends before this call does.
        unsafe { result::memcpy_dtoh_sync(&mut bytes, at.0) }.map_err(failed)?;
    }
    Ok(elem.decode(&bytes))
}

fn failed(e: DriverError) -> GpuError {
    GpuError {
        what: format!("{e:?}"),
        at: "a product on the host".into(),
        hint: "a launch before it failed".into(),
    }
}
