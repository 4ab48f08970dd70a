//! A planted loss of speed, to see a gate find it. A worker that finds the variable is slower by that share; it can be used for
//! nothing else, and never makes a program faster.

use std::{io, time::Duration};

use chronibench_protocol::Event;

/// Share of a step's time that is waited after it, e.g. `0.03`.
const VARIABLE: &str = "CHRONIBENCH_PLANTED_DELAY";

/// The planted share; 0 where none is.
pub fn share() -> f64 {
    let share = std::env::var(VARIABLE).ok().and_then(|text| text.parse::<f64>().ok());
    share.filter(|s| s.is_finite() && *s > 0.0).unwrap_or(0.0)
}

/// Passes events on and waits after each step. An arm's next step begins where this one ended, so that the wait is in its time.
pub fn delayed(mut emit: impl FnMut(Event) -> io::Result<()>) -> impl FnMut(Event) -> io::Result<()> {
    let share = share();
    let mut waited_ns = 0.0;
    move |event| {
        let step_ns = match &event {
            Event::Step(step) => step.end_ns.saturating_sub(step.start_ns) as f64,
            _ => 0.0,
        };
        emit(event)?;
        if share > 0.0 && step_ns > 0.0 {
            // Of the step's own work, without the wait that lies in it.
            waited_ns = share * (step_ns - waited_ns).max(0.0);
            std::thread::sleep(Duration::from_nanos(waited_ns as u64));
        }
        Ok(())
    }
}
