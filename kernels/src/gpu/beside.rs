//! Copies beside the launches, and host memory that a GPU reads and writes by itself.

use std::{
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::Arc,
};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use super::{Buffer, Gpu, GpuError, events::Event};

/// Page-locked memory of the host.
pub struct Pinned {
    at: NonNull<u8>,
    len: usize,
    context: Arc<CudaContext>,
}

// SAFETY: it is memory and nothing else, which its owner alone reaches; the driver's calls bind the context first.
unsafe impl Send for Pinned {}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as many bytes were allocated, and written at once.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `Gpu::pinned` and freed here only.
            let _ = unsafe { result::free_host(self.at.as_ptr().cast()) };
        }
    }
}

fn failed(e: DriverError) -> GpuError {
    GpuError::driver("copy beside the launches", e)
}

impl Gpu {
    /// Host memory of zeros that copies need not be staged from.
    ///
    /// # Errors
    /// There is none left.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, GpuError> {
        self.bind()?;
        let what = |e| GpuError::driver(&format!("page-locked memory, {bytes} bytes"), e);
        // SAFETY: the context is current. An allocation of nothing is an error to the driver.
        let at = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(what)?;
        let at = NonNull::new(at.cast::<u8>()).expect("the driver gave memory");
        // SAFETY: as many bytes were allocated.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Pinned { at, len: bytes, context: self.context().clone() })
    }

    /// Copies the beginning of host memory to that of a buffer beside the launches, once `after` has passed. Who waits for it on
    /// the host sleeps.
    ///
    /// # Safety
    /// The host memory is neither written nor freed until the copy has passed, and no launch that is not behind it touches those
    /// bytes of the buffer.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Panics
    /// If either is shorter.
    pub unsafe fn send(
        &self,
        from: &Pinned,
        to: &Buffer,
        bytes: usize,
        after: Option<&Event>,
    ) -> Result<Event, GpuError> {
        let address = to.span(0, bytes);
        self.bind()?;
        let stream = self.copies();
        if let Some(after) = after {
            after.ahead_of(stream)?;
        }
        // SAFETY: both are as long; the rest is the caller's promise.
        unsafe { result::memcpy_htod_async(address, &from[..bytes], stream.cu_stream()) }.map_err(failed)?;
        Event::behind(stream, true)
    }

    /// Copies from a buffer to the beginning of host memory beside later launches. Both ways can be captured: the copies' stream joins
    /// the capture by the launches' event, and is back in it once these wait for the last mark.
    ///
    /// # Safety
    /// Until the mark has passed the host memory is neither touched nor freed, and launches that write the bytes follow it.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Panics
    /// If either is shorter.
    pub unsafe fn put_aside(
        &self,
        from: &Buffer,
        at: usize,
        to: &Pinned,
        bytes: usize,
    ) -> Result<Event, GpuError> {
        let address = from.span(at, bytes);
        assert!(bytes <= to.len, "{bytes} bytes to {} of the host", to.len);
        let stream = self.behind_launches()?;
        // SAFETY: the host memory has so many bytes, which nobody else looks at until the copy has passed, as the caller promises.
        let to = unsafe { std::slice::from_raw_parts_mut(to.at.as_ptr(), bytes) };
        // SAFETY: both are as long; the rest is the caller's promise.
        unsafe { result::memcpy_dtoh_async(to, address, stream.cu_stream()) }.map_err(failed)?;
        Event::behind(stream, false)
    }

    /// The way back.
    ///
    /// # Safety
    /// As [`put_aside`](Self::put_aside); launches that touch the bytes follow the mark.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Panics
    /// As [`put_aside`](Self::put_aside).
    pub unsafe fn bring_back(
        &self,
        from: &Pinned,
        to: &Buffer,
        at: usize,
        bytes: usize,
    ) -> Result<Event, GpuError> {
        let address = to.span(at, bytes);
        let stream = self.behind_launches()?;
        // SAFETY: both are as long; the rest is the caller's promise.
        unsafe { result::memcpy_htod_async(address, &from[..bytes], stream.cu_stream()) }.map_err(failed)?;
        Event::behind(stream, false)
    }

    /// The copies' stream, which waits for every launch so far.
    fn behind_launches(&self) -> Result<&CudaStream, GpuError> {
        self.bind()?;
        Event::behind(self.launches(), false)?.ahead_of(self.copies())?;
        Ok(self.copies())
    }

    /// Copies to host memory in order with the launches; it is there when a later [`mark`](Self::mark) has passed.
    ///
    /// # Safety
    /// The host memory is neither touched nor freed until then.
    ///
    /// # Errors
    /// The driver refuses.
    ///
    /// # Panics
    /// If the buffer ends before.
    pub unsafe fn receive(&self, from: &Buffer, at: usize, to: &mut Pinned) -> Result<(), GpuError> {
        let address = from.span(at, to.len);
        self.bind()?;
        // SAFETY: the buffer has those bytes; the rest is the caller's promise.
        unsafe { result::memcpy_dtoh_async(&mut to[..], address, self.stream()) }.map_err(failed)
    }
}
