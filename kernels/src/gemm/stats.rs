//! Process-wide account of the time spent in matrix products.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

static NS: AtomicU64 = AtomicU64::new(0);
static FLOPS: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);
static DEPTH: AtomicUsize = AtomicUsize::new(0);

/// Time and work of the matrix products since the last [`reset_stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GemmStats {
    /// Wall nanoseconds during which at least the product that was entered first was running: products that overlap
    /// it on other threads add work but no time.
    pub ns: u64,
    /// Floating-point operations, 2·m·n·k each.
    pub flops: u64,
    /// Products.
    pub calls: u64,
}

/// The account of the whole process.
pub fn stats() -> GemmStats {
    GemmStats { ns: NS.load(Relaxed), flops: FLOPS.load(Relaxed), calls: CALLS.load(Relaxed) }
}

/// Sets the account to zero.
pub fn reset_stats() {
    for counter in [&NS, &FLOPS, &CALLS] {
        counter.store(0, Relaxed);
    }
}

/// Runs a product of `flops` operations and accounts for it.
pub(super) fn counted(flops: u64, product: impl FnOnce()) {
    let outermost = DEPTH.fetch_add(1, Relaxed) == 0;
    let start = Instant::now();
    product();
    DEPTH.fetch_sub(1, Relaxed);
    if outermost {
        NS.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
    }
    FLOPS.fetch_add(flops, Relaxed);
    CALLS.fetch_add(1, Relaxed);
}
