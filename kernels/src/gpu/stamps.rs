//! Times of points between launches, by device events.

use std::cell::RefCell;

use super::{Gpu, GpuError, events::Timer};

/// Points whose times are not read yet.
#[derive(Default)]
pub struct Stamps(RefCell<Vec<Timer>>);

impl Stamps {
    /// Puts a point behind the launches so far.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn stamp(&self, on: &Gpu) -> Result<(), GpuError> {
        on.bind()?;
        let failed = |e| GpuError::driver("stamp", e);
        let timer = Timer::new().map_err(failed)?;
        timer.record(on.launches()).map_err(failed)?;
        self.0.borrow_mut().push(timer);
        Ok(())
    }

    /// Waits for all; their times, ns since the first.
    ///
    /// # Errors
    /// A launch before failed.
    pub fn read(&self, on: &Gpu) -> Result<Vec<u64>, GpuError> {
        on.synchronise()?;
        on.bind()?;
        let timers = self.0.take();
        let mut times = Vec::with_capacity(timers.len());
        let mut now = 0.0;
        for (i, timer) in timers.iter().enumerate() {
            // From one to the next: a float of milliseconds is exact enough for that.
            if let Some(before) = i.checked_sub(1) {
                now += timers[before].until(timer).map_err(|e| GpuError::driver("stamp", e))?;
            }
            times.push((now * 1e9).round() as u64);
        }
        Ok(times)
    }
}
