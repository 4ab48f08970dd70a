//! What the backward pass makes again changes no bit of any gradient, and shows in the log.

use std::collections::BTreeMap;

use chronibench_protocol::spec::{Dtype, PrecisionArgs};
use chronicals::{KernelPlan, Trainer, Variant, backend::Backend, backend::cuda::CudaBackend, model::Level};
use chronicals_kernels::gpu::Machine;
use chronicals_tests::{
    golden::{Case, Geometry, Golden},
    synthetic::Model,
};

/// Loss and gradients, of the second of two passes: it has nothing that the first left behind.
type Gradients = (f64, BTreeMap<String, Vec<f32>>);

struct Run {
    gradients: Gradients,
    launches: BTreeMap<String, u64>,
    planned: u64,
}

fn run<D: Machine>(machine: D, model: &Model, case: &Case) -> Run {
    let batches = Golden::load("qwen3").batches(Geometry::Packed, 1);
    let backend = case.on(machine, &model.config, &batches);
    let mut trainer = model.trainer_on(case, &batches, backend);
    let micro_batches = batches.step(0).unwrap().micro_batches;
    trainer.gradients(&micro_batches).unwrap();
    let gradients = trainer.gradients(&micro_batches).unwrap();
    let (launches, planned) = (trainer.backend().launches(), trainer.backend().planned_bytes());
    Run { gradients, launches, planned: planned.values().sum() }
}

/// The bf16 kernels' heads are 64 wide at least.
fn model(family: &str, dtype: Dtype) -> Model {
    Model::new(family, if dtype == Dtype::F32 { 16 } else { 64 })
}

fn check<D: Machine>(machine: &dyn Fn() -> D, family: &str, dtype: Dtype, case: &Case) {
    let (model, precision) = (model(family, dtype), PrecisionArgs { dtype: Some(dtype), states: None });
    let at = |recompute| run(machine(), &model, &Case { precision, recompute, ..case.clone() });
    let kept = at(Level::None);
    assert!(kept.gradients.1.values().flatten().any(|g| *g != 0.0));
    let mut before = (kept.launches.values().sum::<u64>(), kept.planned);
    for level in Level::ALL.into_iter().skip(1) {
        let made = at(level);
        assert!(made.gradients == kept.gradients, "{family} {dtype:?} {level} {}", case.prefix());
        let now = (made.launches.values().sum::<u64>(), made.planned);
        assert!(now.0 > before.0, "{level}: what runs again is in the log");
        assert!(now.1 < before.1, "{level}: {} bytes after {}", now.1, before.1);
        before = now;
    }
}

/// bf16 with adapters is where SwiGLU adds the updates of the projections next to it.
pub fn levels<D: Machine>(machine: &dyn Fn() -> D) {
    for family in ["qwen2", "llama", "qwen3"] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for case in [Case::full(), Case::adapters(8)] {
                check(machine, family, dtype, &case);
            }
        }
    }
}

/// What eager kernels keep is shared like the rest.
pub fn eager_levels<D: Machine>(machine: &dyn Fn() -> D) {
    let eager = KernelPlan::uniform(Variant::Eager);
    for case in [Case::full(), Case::adapters(8)] {
        check(machine, "qwen3", Dtype::Bf16, &case.with(eager));
    }
}

fn losses<D: Machine>(mut trainer: Trainer<CudaBackend<D>>, steps: u32) -> Vec<(f64, f64)> {
    let batches = Golden::load("qwen3").batches(Geometry::Accumulated, steps as usize);
    let step = |s| trainer.train_step(&batches.step(s).unwrap()).unwrap();
    (0..steps).map(step).map(|r| (r.loss, r.grad_norm)).collect()
}

/// Captured and replayed, step after step.
pub fn replayed<D: Machine>(machine: &dyn Fn() -> D) {
    let model = model("qwen2", Dtype::Bf16);
    let batches = Golden::load("qwen3").batches(Geometry::Accumulated, 4);
    for of in [Case::full(), Case::adapters(8)] {
        let at = |recompute| {
            let case = Case { recompute, ..of.clone() };
            let backend = case.on(machine(), &model.config, &batches);
            losses(model.trainer_on(&case, &batches, backend), 4)
        };
        let kept = at(Level::None);
        for level in [Level::Norm, Level::Block] {
            assert_eq!(at(level), kept, "{level}");
        }
    }
}
