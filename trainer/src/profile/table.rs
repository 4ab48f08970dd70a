//! Sums by seam and kernel.

use std::collections::BTreeMap;

use chronicals_kernels::gpu::Limits;
use serde::Serialize;

use super::{Profile, Span};

/// What all calls of one kind took, a step in the mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Seam, `gemm`, `embedding`, or `memory` for copies and fills.
    pub seam: String,
    /// Variant of the seam; `library`, or `device`.
    pub variant: String,
    /// The kernel, the product with its extents, or the operation; `all` for a seam.
    pub name: String,
    /// Calls.
    pub calls: f64,
    /// µs.
    pub us: f64,
    /// µs over those of the step.
    pub share: f64,
    /// Bytes read and written; of the calls that say so.
    pub bytes: f64,
    /// Floating-point operations; of the calls that say so.
    pub flops: f64,
    /// µs at the limits of the device; of the calls that say what they cost.
    pub limit_us: f64,
    /// µs of those.
    pub costed_us: f64,
}

impl Row {
    /// Sums of so many steps as those of one.
    fn mean(self, steps: f64, step_us: f64) -> Self {
        let Row { calls, us, bytes, flops, limit_us, costed_us, .. } = self;
        let [calls, us, bytes, flops, limit_us, costed_us] =
            [calls, us, bytes, flops, limit_us, costed_us].map(|sum| sum / steps);
        Self { calls, us, share: us / step_us, bytes, flops, limit_us, costed_us, ..self }
    }

    /// Terabytes a second, if it moves any.
    pub fn terabytes_a_second(&self) -> Option<f64> {
        (self.bytes > 0.0 && self.costed_us > 0.0).then(|| self.bytes / self.costed_us / 1e6)
    }

    /// Teraflops, if it computes any.
    pub fn teraflops(&self) -> Option<f64> {
        (self.flops > 0.0 && self.costed_us > 0.0).then(|| self.flops / self.costed_us / 1e6)
    }

    /// The limit's time over that taken; None where nobody says what any call costs.
    pub fn of_limit(&self) -> Option<f64> {
        (self.limit_us > 0.0 && self.costed_us > 0.0).then(|| self.limit_us / self.costed_us)
    }
}

/// Where a step goes, in the mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// µs of a step, from the end of the one before to its own.
    pub step_us: f64,
    /// µs in which nothing ran.
    pub idle_us: f64,
    /// µs in which two ran, one of them a second time in the rows.
    pub overlap_us: f64,
    /// Seams, those that take most first; each with its kernels.
    pub seams: Vec<(Row, Vec<Row>)>,
    /// Kernels with calls that say no cost, where there are any.
    pub without_cost: Vec<String>,
}

impl Table {
    /// Of a profile.
    pub fn of(p: &Profile) -> Self {
        let per_step = |ns: u64| ns as f64 / 1e3 / p.steps.len() as f64;
        let step_ns: u64 = p.steps.iter().map(|s| s.end_ns - s.start_ns).sum();
        let mut seams: BTreeMap<&str, (Row, BTreeMap<[&str; 2], Row>)> = BTreeMap::new();
        for s in p.spans.iter().filter(|s| s.occupies) {
            let (all, rows) =
                seams.entry(&s.seam).or_insert_with(|| (empty(&s.seam, &s.variant, "all"), BTreeMap::new()));
            if all.variant != s.variant {
                all.variant = "several".into();
            }
            let own = rows.entry([&s.variant, &s.name]);
            add(own.or_insert_with(|| empty(&s.seam, &s.variant, &s.name)), s, &p.limits);
            add(all, s, &p.limits);
        }
        let mean = |row: Row| row.mean(p.steps.len() as f64, per_step(step_ns));
        let sorted = |rows: BTreeMap<_, Row>| {
            let mut rows: Vec<Row> = rows.into_values().map(mean).collect();
            rows.sort_by(|a, b| b.us.total_cmp(&a.us));
            rows
        };
        let mut seams: Vec<_> = seams.into_values().map(|(all, rows)| (mean(all), sorted(rows))).collect();
        seams.sort_by(|(a, _), (b, _)| b.us.total_cmp(&a.us));
        let busy_ns: u64 = p.steps.iter().map(|step| busy_ns(&p.spans, step.start_ns, step.end_ns)).sum();
        let all_ns: u64 = p.spans.iter().filter(|s| s.occupies).map(Span::ns).sum();
        Self {
            step_us: per_step(step_ns),
            idle_us: per_step(step_ns - busy_ns),
            overlap_us: per_step(all_ns - busy_ns),
            seams,
            without_cost: without_cost(&p.spans),
        }
    }
}

fn empty(seam: &str, variant: &str, name: &str) -> Row {
    let [seam, variant, name] = [seam, variant, name].map(String::from);
    Row {
        seam,
        variant,
        name,
        calls: 0.0,
        us: 0.0,
        share: 0.0,
        bytes: 0.0,
        flops: 0.0,
        limit_us: 0.0,
        costed_us: 0.0,
    }
}

/// Adds a span to the sums of all steps.
fn add(row: &mut Row, s: &Span, limits: &Limits) {
    let us = s.ns() as f64 / 1e3;
    row.us += us;
    row.calls += if s.part { 0.0 } else { 1.0 };
    if let Some(cost) = s.cost {
        row.bytes += cost.bytes as f64;
        row.flops += cost.flops as f64;
        row.limit_us += 1e6 * limits.seconds(cost);
    }
    // A part's time is that of the call that says the cost.
    if s.cost.is_some() || s.part {
        row.costed_us += us;
    }
}

/// ns between two times in which something ran; spans are in the order of starts.
fn busy_ns(spans: &[Span], begin: u64, end: u64) -> u64 {
    let (mut busy, mut until) = (0, begin);
    for s in spans.iter().filter(|s| s.occupies && s.end_ns > begin && s.start_ns < end) {
        let (from, to) = (s.start_ns.max(until), s.end_ns.min(end));
        busy += to.saturating_sub(from);
        until = until.max(to);
    }
    busy
}

/// Kernels with calls that say no cost, and how many where it is not all.
fn without_cost(spans: &[Span]) -> Vec<String> {
    let mut calls: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for s in spans.iter().filter(|s| !s.part) {
        let (silent, all) = calls.entry(format!("{}.{}.{}", s.seam, s.variant, s.name)).or_default();
        *silent += usize::from(s.cost.is_none());
        *all += 1;
    }
    let named = calls.into_iter().filter(|(_, (silent, _))| *silent > 0);
    named
        .map(|(name, (silent, all))| if silent == all { name } else { format!("{name} ({silent} of {all})") })
        .collect()
}
