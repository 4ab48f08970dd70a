//! The calls of some steps: what was asked of the device, what that costs, and when it ran.
//!
//! Calls are kept when they are launched. Those of a graph are kept once, with the graph, and count again whenever it is run, on the
//! documents of that batch. The device's own list of what ran is then matched with them; or, by events, every launch has a stamp
//! before and behind it.

use std::cell::{Cell, RefCell};

use chronicals_kernels::{
    KernelPlan, Seam,
    gpu::{Cost, Entry, GpuError, Limits, Machine, Product, Tracer},
};

use super::{
    CudaBackend, failure,
    submit::{Logged, seam_of},
};
use crate::{
    device::lacking,
    error::Error,
    profile::{self, By, Call, CallKind, Parts, Profile, Span},
};

/// What is asked of a device.
pub(super) enum Asked<'a> {
    Kernel(Entry),
    Product(&'a Product),
    Fill,
}

/// A record, or that none is wanted.
#[derive(Default)]
pub(super) struct Record(Option<Recording>);

struct Recording {
    options: profile::Options,
    by: By,
    clock: String,
    limits: Limits,
    /// Step that is handed over.
    step: u32,
    active: bool,
    calls: RefCell<Vec<Call>>,
    /// Of what is being captured.
    captured: RefCell<Option<Vec<Call>>>,
    next: Cell<Option<Cost>>,
    /// Whose products come next.
    within: Cell<Option<Seam>>,
    /// What came of it.
    done: Option<Result<Profile, Error>>,
}

/// Where the calls of a seam are recorded.
#[derive(Clone, Copy)]
pub(super) struct Calls<'a> {
    record: &'a Recording,
    tracer: &'a dyn Tracer,
    pairs: u64,
}

impl Record {
    /// For the calls of one seam on a batch of so many pairs; None where they are not recorded.
    pub(super) fn calls_of<'a>(&'a self, device: &'a impl Machine, pairs: u64) -> Option<Calls<'a>> {
        let record = self.0.as_ref()?;
        record.within.set(None);
        Some(Calls { record, tracer: device.tracer(), pairs })
    }

    /// Whether launches are stamped, which those of a graph cannot be.
    pub(super) fn stamps(&self) -> bool {
        self.0.as_ref().is_some_and(|r| r.active && r.by == By::Events)
    }

    pub(super) fn begin_capture(&self) {
        if let Some(r) = &self.0 {
            *r.captured.borrow_mut() = Some(Vec::new());
        }
    }

    pub(super) fn end_capture(&self) -> Vec<Call> {
        self.0.as_ref().and_then(|r| r.captured.take()).unwrap_or_default()
    }

    pub(super) fn replayed(&self, calls: &[Call], pairs: u64) {
        if let Some(r) = self.0.as_ref().filter(|r| r.active) {
            r.calls.borrow_mut().extend(calls.iter().cloned().map(|c| r.now(c, pairs)));
        }
    }
}

impl Recording {
    /// A call in this step, on this batch.
    fn now(&self, call: Call, pairs: u64) -> Call {
        Call { step: self.step, cost: call.cost.map(|c| c.on(pairs)), ..call }
    }

    fn begin(&mut self, step: u32, tracer: &dyn Tracer) -> Result<(), Error> {
        self.step = step;
        if step == self.options.lead() {
            match self.by {
                By::Cupti => tracer.forget(),
                _ => tracer.stamps().map(drop),
            }
            .map_err(failure)?;
        }
        self.active = self.options.keeps(step);
        Ok(())
    }

    fn profile(&mut self, device: String, tracer: &dyn Tracer) -> Result<Profile, Error> {
        self.active = false;
        let calls = self.calls.take();
        let (spans, copies, notes) = match self.by {
            By::Cupti => {
                let seen = profile::attribute(&calls, tracer.seen().map_err(failure)?)?;
                (seen.spans, seen.copies, seen.notes)
            }
            _ => (stamped(&calls, &tracer.stamps().map_err(failure)?), Vec::new(), Vec::new()),
        };
        let (by, clock, limits) = (self.by, self.clock.clone(), self.limits);
        Profile::new(&self.options, Parts { by, clock, device, limits, notes, spans, copies })
    }
}

fn stamped(calls: &[Call], stamps: &[u64]) -> Vec<Span> {
    assert_eq!(stamps.len(), 2 * calls.len(), "a stamp before every call and one behind it");
    let times = stamps.as_chunks::<2>().0;
    calls.iter().zip(times).map(|(call, [start, end])| Span::of(call, (*start, *end))).collect()
}

impl Calls<'_> {
    /// Whether launches are stamped, which they can be in order alone.
    pub(super) fn stamps(&self) -> bool {
        self.record.active && self.record.by == By::Events
    }

    pub(super) fn costs(&self, next: Cost) {
        self.record.next.set(Some(next));
    }

    pub(super) fn cost(&self, last: Cost) {
        let fix = |calls: &mut Vec<Call>, pairs| {
            if let Some(call) = calls.last_mut() {
                call.cost = Some(last.on(pairs));
            }
        };
        match (self.record.captured.borrow_mut().as_mut(), self.record.active) {
            (Some(captured), _) => fix(captured, 0),
            (None, true) => fix(&mut self.record.calls.borrow_mut(), self.pairs),
            (None, false) => {}
        }
    }

    /// Keeps a call, if it is of a graph or a step that is kept.
    fn keep(
        &self,
        asked: &Asked,
        plan: KernelPlan,
        run: impl FnOnce() -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let r = self.record;
        let cost = r.next.take();
        let call = || call(asked, cost, r.within.get(), plan);
        if let Some(captured) = r.captured.borrow_mut().as_mut() {
            captured.push(call());
        } else if r.active {
            return self.time(call(), run);
        }
        run()
    }

    fn time(&self, call: Call, run: impl FnOnce() -> Result<(), GpuError>) -> Result<(), GpuError> {
        let r = self.record;
        let stamp = || if r.by == By::Events { self.tracer.stamp() } else { Ok(()) };
        stamp()?;
        run()?;
        stamp()?;
        r.calls.borrow_mut().push(r.now(call, self.pairs));
        Ok(())
    }
}

fn call(asked: &Asked, cost: Option<Cost>, within: Option<Seam>, plan: KernelPlan) -> Call {
    let made = |kind, (seam, variant): (&'static str, &str), name: String, cost| Call {
        kind,
        seam,
        variant: variant.into(),
        name,
        cost,
        step: 0,
    };
    match asked {
        Asked::Kernel(entry) => {
            made(CallKind::Kernel, seam_of(entry.unit.name, plan), entry.name.into(), cost)
        }
        Asked::Product(p) => {
            let of = within.map_or(("gemm", "library"), |s| (s.name(), plan.get(s).name()));
            let batch = if p.batch.count > 1 { format!("{} × ", p.batch.count) } else { String::new() };
            let adds = if p.accumulate { " +=" } else { "" };
            let name = format!("product {batch}{}x{}x{} {}{adds}", p.m, p.n, p.k, p.elem.name());
            made(
                CallKind::Product,
                of,
                name,
                Some(Cost { bytes: p.bytes(), flops: p.flops(), flops_a_pair: 0 }),
            )
        }
        Asked::Fill => made(CallKind::Fill, ("memory", "device"), "fill".into(), cost),
    }
}

impl Logged<'_> {
    /// Runs a call, and records it.
    pub(super) fn recorded(
        &self,
        asked: Asked<'_>,
        run: impl FnOnce() -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        match &self.record {
            Some(calls) => calls.keep(&asked, self.plan, run),
            None => run(),
        }
    }

    /// Fills so many bytes.
    pub(super) fn fill(
        &self,
        bytes: usize,
        run: impl FnOnce() -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        self.record.iter().for_each(|calls| calls.costs(Cost::bytes(bytes as u64)));
        self.recorded(Asked::Fill, run)
    }

    /// Products until the end of the call are of a seam.
    pub(super) fn within(&self, seam: Seam) {
        self.record.iter().for_each(|calls| calls.record.within.set(Some(seam)));
    }

    /// But for those of `work`.
    pub(super) fn without(&self, work: impl FnOnce() -> Result<(), GpuError>) -> Result<(), GpuError> {
        let Some(calls) = &self.record else { return work() };
        let seam = calls.record.within.take();
        let worked = work();
        calls.record.within.set(seam);
        worked
    }
}

impl<D: Machine> CudaBackend<D> {
    pub(super) fn start_record(&mut self, options: &profile::Options) -> Result<(), Error> {
        assert!(
            self.own.is_none() && self.buffers.is_empty(),
            "limits take memory, and calls are kept from the beginning"
        );
        let tracer = self.device.tracer();
        let watcher = match options.by {
            Some(By::Events) => None,
            Some(_) => Some(tracer.watcher().map_err(lacking)?),
            None => tracer.watcher().ok(),
        };
        let (by, clock) = watcher.map_or((By::Events, "device events".into()), |clock| (By::Cupti, clock));
        let limits = tracer.limits().map_err(lacking)?;
        self.record = Record(Some(Recording {
            options: *options,
            by,
            clock,
            limits,
            step: 0,
            active: false,
            calls: RefCell::default(),
            captured: RefCell::default(),
            next: Cell::default(),
            within: Cell::default(),
            done: None,
        }));
        Ok(())
    }

    /// A step begins. What fails of the record later on does not end the training: it is told when the record is asked for.
    pub(super) fn begin_recording(&mut self, step: u32) {
        if self.failed.is_none() {
            self.finish_record(step);
            let Some(r) = self.record.0.as_mut().filter(|r| r.done.is_none()) else { return };
            if step == r.options.first && r.by == By::Cupti {
                // Not before: a rehearsal would tune products by other times. Not later: graphs that were captured before are not
                // seen. Nothing is lost yet, so that this failure does end the training.
                self.failed = self.device.tracer().watch().err();
            }
            if let Err(e) = r.begin(step, self.device.tracer()) {
                (r.active, r.done) = (false, Some(Err(e)));
            }
        }
    }

    /// Closes the record where `step` is behind its last one.
    fn finish_record(&mut self, step: u32) {
        if let Some(r) = self.record.0.as_mut().filter(|r| r.active && step >= r.options.end()) {
            r.done = Some(r.profile(self.device.name(), self.device.tracer()));
        }
    }

    pub(super) fn end_record(&mut self) -> Result<Option<Profile>, Error> {
        self.check()?;
        let Some(r) = &self.record.0 else { return Ok(None) };
        self.finish_record(r.step + 1);
        self.record.0.as_mut().and_then(|r| r.done.take()).transpose()
    }
}
