//! When the calls of some steps ran on the processor: each lasts until the next one begins, or the work ends.

use std::time::Instant;

use chronicals_kernels::{
    gemm::linear_forward,
    gpu::{Cost, Limits},
};
use rayon::prelude::*;

use super::CpuBackend;
use crate::{
    error::Error,
    profile::{self, By, Call, CallKind, Parts, Profile, Span},
};

/// Laps of the steps that are kept.
pub(super) struct Laps {
    options: profile::Options,
    limits: Limits,
    clock: Instant,
    step: u32,
    open: Option<(Call, u64)>,
    spans: Vec<Span>,
}

impl Laps {
    fn new(options: &profile::Options) -> Self {
        let (options, limits) = (*options, limits());
        Self { options, limits, clock: Instant::now(), step: 0, open: None, spans: Vec::new() }
    }

    fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }
}

impl CpuBackend {
    pub(super) fn start_laps(&mut self, options: &profile::Options) -> Result<(), Error> {
        if let Some(by @ (By::Cupti | By::Events)) = options.by {
            let what = format!("times by {by} are those of a GPU");
            return Err(
                Error::new(what, "--profile-by").hint("leave it out: the processor has wall time alone")
            );
        }
        self.laps = Some(Laps::new(options));
        Ok(())
    }

    pub(super) fn begin_laps(&mut self, step: u32) {
        self.laps.iter_mut().for_each(|laps| laps.step = step);
    }

    /// A call begins, and the one before it ends.
    pub(super) fn lap(&mut self, seam: &'static str, variant: &str, name: &str, cost: Cost) {
        self.end_lap();
        if let Some(laps) = self.laps.as_mut().filter(|laps| laps.options.keeps(laps.step)) {
            let (name, variant, cost, step) = (name.into(), variant.into(), Some(cost), laps.step);
            let call = Call { kind: CallKind::Kernel, seam, variant, name, cost, step };
            laps.open = Some((call, laps.now_ns()));
        }
    }

    /// What was begun ends.
    pub(super) fn end_lap(&mut self) {
        if let Some(laps) = &mut self.laps
            && let Some((call, start_ns)) = laps.open.take()
        {
            let times = (start_ns, laps.now_ns());
            laps.spans.push(Span::of(&call, times));
        }
    }

    pub(super) fn take_laps(&mut self) -> Result<Option<Profile>, Error> {
        let Some(laps) = self.laps.take() else { return Ok(None) };
        let Laps { options, limits, spans, .. } = laps;
        let (clock, device) = ("the processor's clock".into(), "cpu".into());
        let (notes, copies) = (Vec::new(), Vec::new());
        Profile::new(&options, Parts { by: By::Wall, clock, device, limits, notes, spans, copies }).map(Some)
    }
}

/// Side of the product that is the processor's limit, and floats of the copy.
const SIDE: usize = 1024;
const COPIED: usize = 16 << 20;

/// What all threads can do at best: the fastest of a few copies and products.
fn limits() -> Limits {
    let fastest = |run: &mut dyn FnMut()| {
        let time = |_| {
            let begin = Instant::now();
            run();
            begin.elapsed().as_secs_f64()
        };
        (0..5).map(time).fold(f64::INFINITY, f64::min)
    };
    let (from, mut to) = (vec![1.0f32; COPIED], vec![0.0f32; COPIED]);
    let part = COPIED.div_ceil(4 * rayon::current_num_threads());
    let copy = fastest(&mut || {
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
    });
    let (x, w) = (&from[..SIDE * SIDE], &from[SIDE * SIDE..2 * SIDE * SIDE]);
    let product = fastest(&mut || linear_forward(&mut to[..SIDE * SIDE], x, w, SIDE, SIDE, SIDE, 0.0));
    Limits {
        bytes_a_second: 8.0 * COPIED as f64 / copy,
        flops_a_second: 2.0 * SIDE.pow(3) as f64 / product,
        product: "f32 product of 1024³",
    }
}
