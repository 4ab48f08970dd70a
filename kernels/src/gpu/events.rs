//! Events: points in the order of a stream, which other streams and the host wait for; and the time between two of them.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::{Gpu, GpuError, machine::Wait};

/// A point in the order of a stream.
pub struct Event {
    event: sys::CUevent,
    context: Arc<CudaContext>,
}

// SAFETY: an event may be waited for and destroyed by any thread; the calls bind the context first.
unsafe impl Send for Event {}

impl Event {
    /// Right behind what is on the stream. Who waits for it on the host polls, or sleeps.
    pub(super) fn behind(stream: &CudaStream, sleeps: bool) -> Result<Self, GpuError> {
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
    pub(super) fn ahead_of(&self, stream: &CudaStream) -> Result<(), GpuError> {
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
    GpuError::driver("event", e)
}

/// An event that has the time.
pub(super) struct Timer(sys::CUevent);

impl Timer {
    pub(super) fn new() -> Result<Self, DriverError> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map(Self)
    }

    pub(super) fn record(&self, stream: &CudaStream) -> Result<(), DriverError> {
        // SAFETY: event and stream are alive and of the current context.
        unsafe { result::event::record(self.0, stream.cu_stream()) }
    }

    /// Seconds up to a later event; both were recorded, and have passed.
    pub(super) fn until(&self, later: &Timer) -> Result<f64, DriverError> {
        // SAFETY: both events are alive; that they have passed is checked by the driver.
        let milliseconds = unsafe { result::event::elapsed(self.0, later.0) }?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: created in `new` and destroyed here only.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

impl Gpu {
    /// A point behind every launch so far.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn mark(&self) -> Result<Event, GpuError> {
        self.bind()?;
        Event::behind(self.launches(), false)
    }

    /// Later launches wait for it.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn follow(&self, event: &Event) -> Result<(), GpuError> {
        self.bind()?;
        event.ahead_of(self.launches())
    }

    /// Seconds between the start of `work`'s first launch and the end of its last, by device events.
    pub fn time(&self, work: impl FnOnce() -> Result<(), GpuError>) -> Result<f64, GpuError> {
        self.bind()?;
        let (begin, end) = (Timer::new().map_err(failed)?, Timer::new().map_err(failed)?);
        begin.record(self.launches()).map_err(failed)?;
        work()?;
        end.record(self.launches()).map_err(failed)?;
        self.synchronise()?;
        begin.until(&end).map_err(failed)
    }
}
