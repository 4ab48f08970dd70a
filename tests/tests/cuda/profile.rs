//! Where steps go: what is recorded of them against what ran.

use std::collections::{BTreeMap, BTreeSet};

use chronibench_protocol::spec::{Dtype, PrecisionArgs, States};
use chronicals::{
    KernelPlan, Seam, Variant,
    backend::{Backend, cuda::Buckets},
    checkpoint,
    fit::{Batches, fit},
    profile::{By, Options, Profile, Row, Table},
};
use chronicals_emulator::Training;
use chronicals_kernels::gpu::Machine;
use chronicals_tests::{
    golden::{Case, Geometry, Golden},
    synthetic::Model,
};

const STEPS: u32 = 7;

fn batches(geometry: Geometry) -> Batches {
    Golden::load("qwen3").batches(geometry, STEPS as usize)
}

/// The profile of the last two of seven steps, and the losses of all.
fn profiled<D: Machine>(
    machine: D,
    model: &Model,
    of: &Case,
    batches: &Batches,
    by: Option<By>,
) -> (Profile, Vec<u64>) {
    let mut backend = of.on(machine, &model.config, batches);
    backend.profile(&Options::fit(None, 2, by, 0..STEPS).unwrap()).unwrap();
    let mut trainer = model.trainer_on(of, batches, backend);
    trainer.rehearse(batches).unwrap();
    let mut losses = Vec::new();
    fit(&mut trainer, batches, STEPS, |_, report| {
        losses.push(report.loss.to_bits());
        Ok(())
    })
    .unwrap();
    (trainer.profiled().unwrap().expect("steps were profiled"), losses)
}

/// Steps follow one another, and what runs lies in its step, but for copies beside the launches.
fn check_nesting(p: &Profile) {
    let numbers: Vec<u32> = p.steps.iter().map(|s| s.step).collect();
    assert_eq!(numbers, [5, 6]);
    assert_eq!(p.steps[0].end_ns, p.steps[1].start_ns);
    for s in p.spans.iter().filter(|s| s.occupies) {
        let step = p.steps.iter().find(|step| step.step == s.step).expect("of a step that is there");
        assert!(
            step.start_ns <= s.start_ns && s.start_ns <= s.end_ns && s.end_ns <= step.end_ns,
            "{s:?} in {step:?}"
        );
    }
}

fn rows(t: &Table) -> impl Iterator<Item = &Row> {
    t.seams.iter().flat_map(|(_, rows)| rows)
}

/// Rows, what nothing ran in and what ran twice make a step; files hold the same numbers.
fn check_sums(p: &Profile) {
    let t = Table::of(p);
    let whole = rows(&t).map(|r| r.us).sum::<f64>() + t.idle_us - t.overlap_us;
    assert!((whole - t.step_us).abs() < 1e-6 * t.step_us, "{whole} of {}", t.step_us);
    assert!(t.idle_us > 0.0 && t.idle_us < t.step_us, "{}", t.idle_us);

    let trace = p.trace();
    let events = trace["traceEvents"].as_array().unwrap();
    let mut of_trace: BTreeMap<String, f64> = BTreeMap::new();
    for e in events.iter().filter(|e| e["ph"] == "X" && e["cat"] != "step") {
        let part = e["args"]["cost"] == "that of the kernel before";
        assert!(
            part || e["args"]["bytes"].as_u64().is_some() && e["args"]["percent_of_limit"].as_f64().is_some(),
            "{e}"
        );
        *of_trace.entry(e["cat"].as_str().unwrap().to_string()).or_default() += e["dur"].as_f64().unwrap();
    }
    // Copies from and to the host are in the trace alone.
    of_trace.remove("memory");
    for (all, _) in t.seams.iter().filter(|(all, _)| all.seam != "memory") {
        let us = of_trace.remove(&all.seam).unwrap_or_default() / p.steps.len() as f64;
        assert!(
            (us - all.us).abs() < 1e-6 * all.us,
            "{}: {us} in the trace, {} in the table",
            all.seam,
            all.us
        );
    }
    assert!(of_trace.is_empty(), "{of_trace:?} in the trace alone");

    let dir = tempfile::tempdir().unwrap();
    let files = p.write(&dir.path().join("new/folder")).unwrap();
    let read = |i: usize| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(&files[i]).unwrap()).unwrap()
    };
    assert_eq!(read(0), trace);
    assert_eq!(read(3)["kernels"].as_array().unwrap().len(), rows(&t).count());
}

/// Every launch says what it costs, and every seam that the plan has is there.
fn check_complete(p: &Profile, of: &Case) {
    let t = Table::of(p);
    assert!(t.without_cost.is_empty(), "no model of {:?}", t.without_cost);
    assert!(
        p.spans.iter().all(|s| s.cost.is_some() || s.part),
        "{:?}",
        p.spans.iter().find(|s| s.cost.is_none())
    );
    let seams: BTreeSet<&str> = p.spans.iter().map(|s| s.seam.as_str()).collect();
    for seam in
        Seam::ALL.iter().filter(|s| **s != Seam::Graph && (**s != Seam::Lora || !of.prefix().is_empty()))
    {
        assert!(seams.contains(seam.name()), "{seam:?} in {seams:?}");
        let variant = of.kernels.get(*seam).name();
        let of_seam = || p.spans.iter().filter(|s| s.seam == seam.name());
        assert!(of_seam().all(|s| s.variant == variant), "{seam:?} is {variant}: {:?}", of_seam().next());
    }
    for other in ["gemm", "embedding", "memory"] {
        assert!(seams.contains(other), "{other} in {seams:?}");
    }
}

fn cases() -> Vec<(Model, Case)> {
    let of = |dtype, states| PrecisionArgs { dtype: Some(dtype), states };
    let case = |case: Case, precision| Case { precision, ..case };
    let eager = KernelPlan::uniform(Variant::Eager).with(Seam::Graph, Variant::Fused);
    let (full, lora) = (Case::full(), Case::adapters(8));
    vec![
        (Model::new("qwen3", 16), case(full.clone(), of(Dtype::F32, None))),
        (Model::new("qwen2", 64), case(full.clone(), of(Dtype::Bf16, Some(States::Eight)))),
        (Model::new("qwen2", 64), case(full.clone(), of(Dtype::Bf16, Some(States::Bf16)))),
        (Model::new("llama", 64), case(lora.clone(), of(Dtype::Bf16, None))),
        (Model::new("qwen3", 16), case(full.with(eager), of(Dtype::F32, None))),
        (Model::new("qwen2", 64), case(lora.with(eager), of(Dtype::Bf16, None))),
    ]
}

/// Of every kind of training, by the machine's own clock and by events.
pub fn complete<D: Machine>(machine: &dyn Fn() -> D) {
    for (model, of) in cases() {
        for by in [By::Cupti, By::Events] {
            let (p, _) = profiled(machine(), &model, &of, &batches(Geometry::Packed), Some(by));
            assert_eq!(p.by, by);
            check_nesting(&p);
            check_sums(&p);
            check_complete_by(&p, &of);
        }
    }
}

fn check_complete_by(p: &Profile, of: &Case) {
    check_complete(p, of);
    let launches: Vec<_> = p.spans.iter().filter(|s| s.seam != "memory").collect();
    let in_graphs = launches.iter().filter(|s| s.in_graph).count();
    match p.by {
        By::Cupti => {
            assert_eq!(in_graphs, launches.len(), "shapes that came again are replayed; {:?}", p.notes)
        }
        _ => assert_eq!(in_graphs, 0),
    }
}

/// A profile changes nothing of the training, and is the same whenever it is made.
pub fn the_same(machine: &dyn Fn() -> Training) {
    let (model, of) = (Model::new("qwen3", 16), &cases()[0].1);
    let batches = batches(Geometry::Accumulated);
    let buckets = Some(Buckets { tokens: 8, rows: 4 });
    let of = &Case { buckets, ..of.clone() };
    let mut plain = model.trainer_on(of, &batches, of.on(machine(), &model.config, &batches));
    let step = |s| plain.train_step(&batches.step(s).unwrap()).unwrap().loss.to_bits();
    let losses: Vec<u64> = (0..STEPS).map(step).collect();
    let run = |by| profiled(machine(), &model, of, &batches, by);
    let [(a, of_a), (b, of_b), (events, of_events)] = [None, Some(By::Cupti), Some(By::Events)].map(run);
    assert!(of_a == losses && of_b == losses && of_events == losses);
    // But for copies: whether a batch arrives before a step or in it depends on the thread that prepares it.
    let told = |p: &Profile| -> Vec<_> {
        let own = p.spans.iter().filter(|s| !s.name.starts_with("copy"));
        own.map(|s| (s.step, s.name.clone(), s.in_graph, s.stream, s.end_ns - s.start_ns)).collect()
    };
    let steps = |p: &Profile| p.steps.iter().map(|s| s.step).collect::<Vec<_>>();
    assert_eq!((a.by, steps(&a)), (b.by, steps(&b)));
    assert!(told(&a) == told(&b), "another profile");
    // What was asked for is the same, in the same order, however the times are taken.
    let asked = |p: &Profile| -> Vec<_> {
        let own = p.spans.iter().filter(|s| !s.name.starts_with("copy"));
        own.map(|s| (s.step, s.seam.clone(), s.name.clone(), s.cost)).collect()
    };
    assert_eq!(asked(&a), asked(&events));
}

/// As many kernels as the backend's log counts.
pub fn as_logged(machine: &dyn Fn() -> Training) {
    for (model, of) in cases() {
        let count = |profile: bool| {
            let batches = batches(Geometry::Packed);
            let mut backend = of.on(machine(), &model.config, &batches);
            if profile {
                backend.profile(&Options::fit(Some(0), STEPS, Some(By::Cupti), 0..STEPS).unwrap()).unwrap();
            }
            let mut trainer = model.trainer_on(&of, &batches, backend);
            trainer.rehearse(&batches).unwrap();
            fit(&mut trainer, &batches, STEPS, |_, _| Ok(())).unwrap();
            let mut log = trainer.backend().launches();
            log.retain(|name, _| !name.starts_with("graph."));
            (log, trainer.profiled().unwrap())
        };
        let (log, profile) = count(true);
        assert_eq!((log.clone(), true), (count(false).0, profile.is_some()));
        let mut seen: BTreeMap<String, u64> = BTreeMap::new();
        for s in profile.unwrap().spans.iter().filter(|s| s.seam != "memory") {
            let name = if s.name.starts_with("product") {
                "gemm.library.product".into()
            } else {
                format!("{}.{}.{}", s.seam, s.variant, s.name)
            };
            *seen.entry(name).or_default() += 1;
        }
        assert_eq!(seen, log);
    }
}

/// Of a training that goes on: what watches begins with the first step of the process, and warm-up counts from there.
pub fn resumed(machine: &dyn Fn() -> Training) {
    let (model, of) = (Model::new("qwen3", 16), cases().swap_remove(0).1);
    let (batches, dir) = (batches(Geometry::Packed), tempfile::tempdir().unwrap());
    let on = || of.on(machine(), &model.config, &batches);
    let mut first = model.trainer_on(&of, &batches, on());
    fit(&mut first, &batches, 3, |_, _| Ok(())).unwrap();
    let (identity, progress, keep) = Default::default();
    let saved = checkpoint::save(&first, dir.path(), &identity, &progress, keep, |_| Ok(())).unwrap();
    for by in [By::Cupti, By::Events] {
        let mut backend = on();
        backend.profile(&Options::fit(None, 2, Some(by), 3..STEPS).unwrap()).unwrap();
        let mut second = model.trainer_on(&of, &batches, backend);
        checkpoint::load(&mut second, &saved, &identity).unwrap();
        second.rehearse(&batches).unwrap();
        fit(&mut second, &batches, STEPS, |_, _| Ok(())).unwrap();
        let p = second.profiled().unwrap().expect("steps were profiled");
        check_nesting(&p);
        check_sums(&p);
        check_complete_by(&p, &of);
    }
}

/// Without CUPTI: events, or an error where it was asked for.
pub fn without_cupti(_: &dyn Fn() -> Training) {
    let (model, of) = (Model::new("qwen3", 16), cases().swap_remove(0).1);
    let (p, _) = profiled(Training::blind(), &model, &of, &batches(Geometry::Packed), None);
    assert_eq!((p.by, p.clock.as_str()), (By::Events, "device events"));
    assert!(p.markdown().contains("Times by events"), "{}", p.markdown());
    let batches = batches(Geometry::Packed);
    let mut backend = of.on(Training::blind(), &model.config, &batches);
    let options = Options::fit(None, 2, Some(By::Cupti), 0..STEPS).unwrap();
    let e = backend.profile(&options).unwrap_err();
    assert!(e.is_environment() && e.to_string().contains("nothing watches"), "{e}");
}

/// Attention's operations are those of the documents of the very batch that a graph is run on.
pub fn documents(machine: &dyn Fn() -> Training) {
    let (model, of) = (Model::new("qwen3", 16), cases().swap_remove(0).1);
    let packed = batches(Geometry::Packed);
    let mut plan = packed.plan().clone();
    // Of 7, 7 and 1 tokens in place of 7, 1 and 12: as many slots, so that one graph runs both.
    plan.steps.iter_mut().step_by(2).for_each(|step| step.micro_batches[0].rows = vec![vec![0, 0, 1]]);
    let batches = Batches::new(packed.tokens().clone(), plan, &model.config, "two batches").unwrap();
    let (p, _) = profiled(machine(), &model, &of, &batches, Some(By::Cupti));
    assert!(p.spans.iter().filter(|s| s.seam == "attention").all(|s| s.in_graph));
    let c = &model.config;
    let mut all = BTreeSet::new();
    for step in &p.steps {
        let of_step = batches.step(step.step).unwrap();
        let pairs: u64 = of_step
            .micro_batches
            .iter()
            .flat_map(|b| b.cu_seqlens.windows(2))
            .map(|w| u64::from(w[1] - w[0]).pow(2) / 2)
            .sum();
        let forward = p.spans.iter().filter(|s| s.step == step.step && s.name == "attention_plain_forward");
        let flops: u64 = forward.map(|s| s.cost.unwrap().flops).sum();
        assert_eq!(flops, 2 * 4 * pairs * (c.heads * c.head_dim) as u64, "two layers, step {}", step.step);
        all.insert(flops);
    }
    assert_eq!(all.len(), 2, "the steps have other documents");
}
