//! What else went on while it was timed: a GPU that slowed down, or others on it. It is said, and held against nobody.

use super::{Audit, Audited, Check, Outcome};

/// NVML's reasons that are no choice of the user's: hardware slow-down, thermal limits, power brake.
const THROTTLED: u64 = 0x8 | 0x20 | 0x40 | 0x80;

/// Memory of other processes on the GPU, bytes, above what a driver takes.
const FOREIGN: u64 = 2 << 30;

pub(super) fn check(t: &Audited<'_>) -> Option<Check> {
    let from = t.log.steps.iter().take_while(|s| s.event.step < t.header.spec.measure.untimed_steps).last();
    let from = from.map_or(0, |s| s.recv_ns);
    let end = t.log.windows.last()?.recv_ns;
    let timed = t.log.samples.iter().filter(|s| (from..=end).contains(&s.t_ns));
    let looks: Vec<_> = timed.filter_map(|s| s.gpu.as_ref()).collect();
    let clocks = || looks.iter().map(|g| g.sm_mhz);
    let (low, high) = (clocks().min()?, clocks().max()?);
    let hot = looks.iter().map(|g| g.temp_c).max().unwrap_or(0);
    let mut figure = format!("{low}–{high} MHz, at most {hot} °C");
    let mut outcome = Outcome::Held;
    let throttled = looks.iter().filter(|g| g.throttle_mask & THROTTLED != 0).count();
    if throttled > 0 {
        figure += &format!(", throttled in {throttled} of {} looks", looks.len());
        outcome = Outcome::Unclear;
    }
    let foreign = looks.iter().map(|g| g.device_bytes.saturating_sub(g.process_bytes)).max().unwrap_or(0);
    if foreign > FOREIGN {
        figure += &format!(", {:.1} GB of other processes on the device", foreign as f64 / 1e9);
        outcome = Outcome::Unclear;
    }
    Some(Check::new(Audit::Surroundings, outcome, figure))
}
