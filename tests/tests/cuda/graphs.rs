//! Captured work against launches, and what the log says of both.

use std::collections::BTreeMap;

use chronibench_protocol::spec::{Dtype, PrecisionArgs};
use chronicals::{
    KernelPlan, Seam, Trainer, Variant,
    backend::{
        Backend,
        cuda::{Buckets, CudaBackend},
    },
    fit::Batches,
};
use chronicals_kernels::gpu::Machine;
use chronicals_tests::{
    golden::{Case, Geometry, Golden},
    synthetic::Model,
};

fn case(variant: Variant, of: Case) -> Case {
    Case {
        precision: PrecisionArgs { dtype: Some(Dtype::F32), states: None },
        kernels: of.kernels.with(Seam::Graph, variant),
        buckets: Some(Buckets { tokens: 8, rows: 4 }),
        ..of
    }
}

fn trainer<D: Machine>(
    machine: &dyn Fn() -> D,
    model: &Model,
    case: &Case,
    batches: &Batches,
) -> Trainer<CudaBackend<D>> {
    model.trainer_on(case, batches, case.on(machine(), &model.config, batches))
}

fn model() -> Model {
    Model::new("qwen3", 16)
}

/// Losses and norms to the bit; every step has other batches in other shapes, another rate and another seed of rounding.
pub fn replays<D: Machine>(machine: &dyn Fn() -> D) {
    as_launched(machine, [Case::full(), Case::lora()]);
}

/// The same of the eager variants of all else.
pub fn eager_replays<D: Machine>(machine: &dyn Fn() -> D) {
    let plan = KernelPlan::uniform(Variant::Eager);
    as_launched(machine, [Case::full(), Case::adapters(8)].map(|case| case.with(plan)));
}

fn as_launched<D: Machine>(machine: &dyn Fn() -> D, cases: [Case; 2]) {
    let (golden, model) = (Golden::load("qwen3"), model());
    for of in cases {
        let batches = golden.batches(Geometry::Accumulated, 8);
        let run = |variant| {
            let case = case(variant, of.clone());
            let mut trainer = trainer(machine, &model, &case, &batches);
            let step = |s| {
                let report = trainer.train_step(&batches.step(s).unwrap()).unwrap();
                [report.loss, report.grad_norm].map(f64::to_bits)
            };
            let steps: Vec<_> = (0..8).map(step).collect();
            let m = trainer.model();
            let weights = trainer.backend().read(m.adapters.unwrap_or(m.weights)).unwrap();
            (steps, weights.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        assert!(run(Variant::Fused) == run(Variant::Eager), "{}: a replay differs", of.prefix());
    }
}

fn graph(launches: &BTreeMap<String, u64>) -> [u64; 3] {
    ["launched", "captured", "replayed"]
        .map(|how| launches.get(&format!("graph.fused.{how}")).copied().unwrap_or(0))
}

/// Work of a shape is launched once, captured once and replayed from then on.
pub fn one_graph_a_shape<D: Machine>(machine: &dyn Fn() -> D) {
    let (golden, model) = (Golden::load("qwen3"), model());
    let batches = golden.batches(Geometry::Accumulated, 5);
    let mut trainer = trainer(machine, &model, &case(Variant::Fused, Case::full()), &batches);
    let mut step = |s| {
        trainer.train_step(&batches.step(s).unwrap()).unwrap();
        graph(&trainer.backend().launches())
    };
    // Documents of 7, 1 and 12 tokens: 8, 8 and 12 as the device has them, with 4 or 8 rows that have a loss.
    let [launched, captured, replayed] = step(0);
    assert!(launched >= 3, "two shapes and the update: {launched}");
    assert_eq!(replayed, 4 - launched, "the rest of the step");
    let second = step(1);
    assert_eq!(second, [launched, launched, replayed + 4], "{captured} were captured before");
    assert_eq!(step(2), [launched, launched, replayed + 8]);
}

/// Evaluation has graphs of its own and leaves training's alone.
pub fn evaluation_between<D: Machine>(machine: &dyn Fn() -> D) {
    let (golden, model) = (Golden::load("qwen3"), model());
    let batches = golden.batches(Geometry::Packed, 6);
    let case = case(Variant::Fused, Case::full());
    let run = |evaluates: bool| {
        let mut trainer = trainer(machine, &model, &case, &batches);
        let losses = (0..6).map(|s| {
            let step = batches.step(s).unwrap();
            let before = evaluates.then(|| trainer.evaluate(&step.micro_batches).unwrap());
            let loss = trainer.train_step(&step).unwrap().loss;
            if let Some(before) = before {
                assert!((before - loss).abs() < 1e-6 * loss, "step {s}: {before} is not {loss}");
            }
            loss.to_bits()
        });
        losses.collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}

/// As many kernels in the log whether they were launched or replayed, and every seam under its variant.
pub fn log<D: Machine>(machine: &dyn Fn() -> D) {
    logged(machine, KernelPlan::default());
    for seam in [Seam::QkRope, Seam::Norm, Seam::Optimizer] {
        logged(machine, KernelPlan::default().with(seam, Variant::Eager));
    }
    logged(machine, KernelPlan::uniform(Variant::Eager));
}

fn logged<D: Machine>(machine: &dyn Fn() -> D, plan: KernelPlan) {
    let (golden, model) = (Golden::load("qwen3"), model());
    let batches = golden.batches(Geometry::Packed, 5);
    let kernels = |variant, of: Case| {
        let mut trainer = trainer(machine, &model, &case(variant, of), &batches);
        (0..5).for_each(|s| drop(trainer.train_step(&batches.step(s).unwrap()).unwrap()));
        let mut all = trainer.backend().launches();
        all.retain(|name, _| !name.starts_with("graph."));
        all
    };
    for of in [Case::full(), Case::adapters(8)].map(|case| case.with(plan)) {
        let launched = kernels(Variant::Eager, of.clone());
        assert_eq!(kernels(Variant::Fused, of.clone()), launched);
        let seams = Seam::ALL.iter().filter(|s| **s != Seam::Graph);
        for seam in seams.filter(|s| **s != Seam::Lora || !of.prefix().is_empty()) {
            let of_seam = launched.keys().filter(|name| name.starts_with(&format!("{}.", seam.name())));
            let names: Vec<&String> = of_seam.collect();
            let planned = format!("{}.{}.", seam.name(), plan.get(*seam));
            assert!(!names.is_empty() && names.iter().all(|n| n.starts_with(&planned)), "{names:?}");
        }
        if plan.get(Seam::Norm) == Variant::Fused {
            assert_eq!(launched["norm.fused.rmsnorm_forward"], 5, "{launched:?}");
            assert_eq!(launched["norm.fused.rmsnorm_add_forward"], 5 * 4, "{launched:?}");
        }
    }
}
