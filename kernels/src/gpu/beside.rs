//! Copies beside the launches: host memory that a GPU reads and writes by itself, a second stream, and the events that order
//! the two.

use std::{
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::Arc,
};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::{Buffer, Gpu, GpuError, machine::Wait};

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

/// A point in the order of a stream.
pub struct Event {
    event: sys::CUevent,
    context: Arc<CudaContext>,
}

// SAFETY: an event may be waited for and destroyed by any thread; the calls bind the context first.
unsafe impl Send for Event {}

impl Event {
    /// Right behind what is on the stream. Who waits for it on the host polls, or sleeps.
    fn behind(stream: &CudaStream, sleeps: bool) -> Result<Self, GpuError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32
            | if sleeps { sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32 } else { 0 };
        let mut event = std::ptr::null_mut();
        // SAFETY: the context is current, and `event` outlives the call.
        unsafe { sys::cuEventCreate(&mut event, flags) }.result().map_err(failed)?;
        let event = Self { event, context: stream.context().clone() };
        // SAFETY: event and stream are alive and of the current context.
        unsafe { result::event::record(event.event, stream.cu_stream()) }.map_err(failed)?;
        Ok(event)
    }

    /// Lets what comes on the stream wait.
    fn ahead_of(&self, stream: &CudaStream) -> Result<(), GpuError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as above.
        unsafe { result::stream::wait_event(stream.cu_stream(), self.event, flags) }.map_err(failed)
    }
}

impl Wait for Event {
    fn wait(&self) -> Result<(), GpuError> {
        self.context.bind_to_thread().map_err(failed)?;
        // SAFETY: the event is alive, and was recorded when it was made.
        unsafe { sys::cuEventSynchronize(self.event) }.result().map_err(failed)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: created in `behind` and destroyed here only; the driver keeps what it still needs.
            let _ = unsafe { result::event::destroy(self.event) };
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

    /// A point behind every launch so far.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn mark(&self) -> Result<Event, GpuError> {
        self.bind()?;
        Event::behind(self.launches(), false)
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

    /// Later launches wait for it.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn follow(&self, event: &Event) -> Result<(), GpuError> {
        self.bind()?;
        event.ahead_of(self.launches())
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
