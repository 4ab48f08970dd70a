//! Our kernels, checked and timed one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use chronibench_protocol::{
    Event,
    event::{Done, Failure, Hello, Precision},
    kernels::{Ceiling, KernelCase, KernelCheck, KernelCompared, KernelRow, KernelSpec},
    record::GpuSample,
    spec::PROTOCOL,
};
use chronicals_kernels::gpu::{
    Gpu, GpuError,
    bench::{self, Bench, Compared, Device, FLUSH_BYTES, Testbed},
    compile::Cache,
};

use crate::runner::gpu::Gpu as Nvml;

/// Where events go.
type Emit<'e> = dyn FnMut(Event) -> io::Result<()> + 'e;

fn failure(e: GpuError) -> Failure {
    Failure { what: e.what, at: e.at, hint: e.hint }
}

fn unwritten(e: io::Error) -> Failure {
    Failure { what: e.to_string(), at: "the event file".into(), hint: "free some space".into() }
}

/// Runs every case of a specification that is there.
pub fn run(spec: &KernelSpec, emit: &mut Emit) -> Result<(), Failure> {
    if spec.protocol != PROTOCOL || spec.flush_bytes != FLUSH_BYTES as u64 {
        let what = format!("{} with a flush of {} bytes is not spoken here", spec.protocol, spec.flush_bytes);
        let hint = "let the harness of the same build write the specification".into();
        return Err(Failure { what, at: "the specification".into(), hint });
    }
    let gpu = Gpu::open(0, Cache::of_user()).map_err(failure)?;
    let device = Device::new(&gpu);
    let mut arm = Arm { spec, device: &device, nvml: Nvml::open().ok(), emit, said: BTreeSet::new() };
    arm.say(Event::Hello(arm.hello()))?;
    arm.ceilings("before")?;
    let ops: Vec<&str> = distinct(&spec.cases);
    let count = ops.len();
    for (i, op) in ops.into_iter().enumerate() {
        eprintln!("{op} ({} of {count})", i + 1);
        arm.operation(op)?;
    }
    arm.ceilings("after")?;
    if arm.said.is_empty() {
        let asked = spec.variant.as_deref().unwrap_or("any variant");
        return Err(Failure {
            what: "none of our kernels is what was asked for".into(),
            at: asked.into(),
            hint: "leave --variant out to see those that this GPU has".into(),
        });
    }
    arm.say(Event::Done(Done::default()))
}

/// Operations in order of appearance.
fn distinct(cases: &[KernelCase]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    cases.iter().map(|c| c.op.as_str()).filter(|op| seen.insert(*op)).collect()
}

struct Arm<'a, 'g, 'e> {
    spec: &'a KernelSpec,
    device: &'a Device<'g>,
    nvml: Option<Nvml>,
    emit: &'a mut Emit<'e>,
    /// Operations and shapes of which there is a row.
    said: BTreeSet<(String, String)>,
}

impl Arm<'_, '_, '_> {
    fn say(&mut self, event: Event) -> Result<(), Failure> {
        (self.emit)(event).map_err(unwritten)
    }

    fn hello(&self) -> Hello {
        let bf16 = || "bf16".to_string();
        let settings = BTreeMap::from([
            ("arch".to_string(), self.device.gpu().arch().into()),
            ("l2_bytes".to_string(), self.device.l2_bytes().into()),
        ]);
        Hello {
            protocol: PROTOCOL.into(),
            name: "chronicals-kernels".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            device: self.device.gpu().name(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            pid: std::process::id(),
            precision: Precision {
                weights: bf16(),
                master: "f32".into(),
                moments: "f32".into(),
                grads: bf16(),
            },
            settings,
            kernel_plan: BTreeMap::new(),
            chosen: Default::default(),
        }
    }

    fn ceilings(&mut self, at: &str) -> Result<(), Failure> {
        let all = bench::ceilings(self.device, self.spec.repetitions as usize).map_err(failure)?;
        all.into_iter().try_for_each(|c| {
            let (name, at, bench::Ceiling { bytes, flops, seconds, .. }) = (c.name.into(), at.into(), c);
            self.say(Event::Ceiling(Ceiling { name, at, bytes, flops, seconds }))
        })
    }

    fn look(&self) -> Option<GpuSample> {
        self.nvml.as_ref().and_then(|g| g.look(&[std::process::id()]))
    }

    /// Every case of one operation. A failure costs what it hits: the next operation is tried as long as the GPU answers.
    fn operation(&mut self, op: &str) -> Result<(), Failure> {
        let (device, mut told) = (self.device, Ok(()));
        let ran = bench::each(device, &|name| name == op, &mut |bench| {
            if told.is_ok() && self.wants(&bench) {
                told = self.bench(&bench);
            }
            Ok(())
        });
        told?;
        let Err(e) = ran else { return Ok(()) };
        // Their operands could not be made: rows that are missing say so.
        let cases: Vec<KernelCase> = self.spec.cases.iter().filter(|c| c.op == op).cloned().collect();
        for case in cases {
            if !self.said.contains(&(case.op.clone(), case.case.clone())) {
                let error = Some(failure(e.clone()));
                let KernelCase { op, case, bytes, flops, .. } = case;
                let variant = "operands".into();
                let row = KernelRow { op, case, variant, bytes, flops, error, ..KernelRow::default() };
                self.say(Event::Kernel(Box::new(row)))?;
            }
        }
        device.gpu().synchronise().map_err(failure)
    }

    fn wants(&self, bench: &Bench<Device>) -> bool {
        let (op, case) = (bench.work().op, &bench.work().case);
        let variant = self.spec.variant.as_ref().is_none_or(|v| v == bench.variant.name);
        variant && self.spec.cases.iter().any(|c| c.op == op && c.case == *case)
    }

    fn bench(&mut self, bench: &Bench<Device>) -> Result<(), Failure> {
        let (work, (sets, set_bytes)) = (bench.work().clone(), bench.sets());
        let mut row = KernelRow {
            op: work.op.into(),
            case: work.case,
            variant: bench.variant.name.into(),
            bytes: work.bytes,
            flops: work.flops,
            warm_bytes: sets as u64 * set_bytes,
            l2_bytes: self.device.l2_bytes() as u64,
            memory_bytes: Some(bench.memory_bytes()).filter(|b| *b > 0),
            moved_bytes: bench.moved_bytes,
            before: self.look(),
            ..KernelRow::default()
        };
        let error = self.fill(bench, &mut row).err();
        row.error = error.clone().map(failure);
        row.after = self.look();
        eprintln!("  {} {}", row.case, row.variant);
        self.said.insert((row.op.clone(), row.case.clone()));
        self.say(Event::Kernel(Box::new(row)))?;
        // A fault inside a kernel ends the context, and every row after it would say the same.
        match error {
            Some(_) => self.device.gpu().synchronise().map_err(failure),
            None => Ok(()),
        }
    }

    fn fill(&self, bench: &Bench<Device>, row: &mut KernelRow) -> Result<(), GpuError> {
        let checked = bench.check()?;
        row.check = KernelCheck {
            compared: checked.compared.iter().map(compared).collect(),
            failure: checked.failure,
        };
        if row.check.failure.is_none() {
            let measured = bench.measure(self.spec.repetitions as usize)?;
            (row.cold_s, row.warm_s, row.copy_s) = (measured.cold, measured.warm, measured.copy);
        }
        Ok(())
    }
}

fn compared(c: &Compared) -> KernelCompared {
    let finite = |x: f64| Some(x).filter(|x| x.is_finite());
    KernelCompared {
        what: c.what.clone(),
        values: c.values as u64,
        error: finite(c.error),
        tolerance: c.tolerance,
        index: c.index as u64,
        got: finite(c.got),
        want: finite(c.want),
    }
}
