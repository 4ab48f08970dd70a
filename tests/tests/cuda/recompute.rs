//! What the backward pass makes again changes no bit of any gradient, and shows in the log.

use std::collections::BTreeMap;

use chronibench_protocol::spec::{Dtype, PrecisionArgs, Recompute};
use chronicals::{
    KernelPlan, Variant,
    backend::Backend,
    model::{Level, Setup},
    room::{Asked, choose},
};
use chronicals_emulator::{Arrival, Training};
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
    planned_host: u64,
    /// Bytes of a block's entry.
    entry: u64,
}

fn run<D: Machine>(machine: D, model: &Model, case: &Case) -> Run {
    let batches = Golden::load("qwen3").batches(Geometry::Packed, 1);
    let backend = case.on(machine, &model.config, &batches);
    let mut trainer = model.trainer_on(case, &batches, backend);
    let micro_batches = batches.step(0).unwrap().micro_batches;
    trainer.gradients(&micro_batches).unwrap();
    let gradients = trainer.gradients(&micro_batches).unwrap();
    let (launches, planned) = (trainer.backend().launches(), trainer.backend().planned_bytes());
    let planned_host = trainer.backend().planned_host_bytes();
    let elem = case.precision.dtype.map_or(2, |dtype| if dtype == Dtype::F32 { 4 } else { 2 });
    let entry = elem * (batches.capacity().tokens * model.config.hidden_size) as u64;
    Run { gradients, launches, planned: planned.values().sum(), planned_host, entry }
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

/// Losses and norms of a few steps: launched, captured and replayed, with an evaluation between them.
fn losses<D: Machine>(machine: D, model: &Model, case: &Case) -> Vec<(f64, f64)> {
    let batches = Golden::load("qwen3").batches(Geometry::Accumulated, 4);
    let backend = case.on(machine, &model.config, &batches);
    let mut trainer = model.trainer_on(case, &batches, backend);
    trainer.rehearse(&batches).unwrap();
    let step = |s| {
        let batches = batches.step(s).unwrap();
        let r = trainer.train_step(&batches).unwrap();
        let evaluated = trainer.evaluate(&batches.micro_batches).unwrap();
        (r.loss + evaluated, r.grad_norm)
    };
    (0..4).map(step).collect()
}

pub fn replayed<D: Machine>(machine: &dyn Fn() -> D) {
    let model = model("qwen2", Dtype::Bf16);
    for of in [Case::full(), Case::adapters(8)] {
        let at = |recompute| losses(machine(), &model, &Case { recompute, ..of.clone() });
        let kept = at(Level::None);
        for level in [Level::Norm, Level::Block] {
            assert_eq!(at(level), kept, "{level}");
        }
    }
}

/// Enough layers that entries leave, and that their places are written again.
const LAYERS: usize = 5;

fn offloads<D: Machine>(machine: &dyn Fn() -> D) {
    let model = Model::deep("qwen3", 16, LAYERS);
    let precision = PrecisionArgs { dtype: Some(Dtype::F32), states: None };
    for of in [Case::full(), Case::lora()] {
        let at = |recompute, offload| {
            losses(machine(), &model, &Case { precision, recompute, offload, ..of.clone() })
        };
        let kept = at(Level::None, false);
        for level in [Level::None, Level::Ffn, Level::Block] {
            assert_eq!(at(level, true), kept, "{level} {}", of.prefix());
        }
    }
}

pub fn offloaded<D: Machine>(machine: &dyn Fn() -> D) {
    offloads(machine);
    let model = Model::deep("qwen3", 16, LAYERS);
    let precision = PrecisionArgs { dtype: Some(Dtype::F32), states: None };
    let of = |offload| {
        run(machine(), &model, &Case { precision, recompute: Level::Block, offload, ..Case::full() })
    };
    let (kept, away) = (of(false), of(true));
    assert!(away.gradients == kept.gradients);
    assert_eq!(away.launches, kept.launches, "copies are no kernels");
    assert_eq!(away.planned_host, (LAYERS as u64 - 2) * away.entry);
    assert_eq!(kept.planned - away.planned, (LAYERS as u64 - 2) * away.entry);
}

/// As late as the marks allow, and as early.
pub fn whenever_entries_come(_: &dyn Fn() -> Training) {
    offloads(&|| Training::arriving(Arrival::Early));
}

/// What a limit leaves room for, with and without the host's.
pub fn limits(_: &dyn Fn() -> Training) {
    let model = Model::deep("qwen3", 16, LAYERS);
    let batches = Golden::load("qwen3").batches(Geometry::Packed, 1);
    let case = Case { precision: PrecisionArgs { dtype: Some(Dtype::F32), states: None }, ..Case::full() };
    let backend = case.on(Training::new(), &model.config, &batches);
    let setup = case.setup(&model.config, &batches);
    let total = |recompute, offload| backend.plan(&Setup { recompute, offload, ..setup }).unwrap().total();
    let chosen = |limit: u64, offload| {
        let limit_gb = Some((limit as f64 + 0.5) / 1e9);
        choose(&backend, &setup, Asked { recompute: Recompute::Auto, offload, limit_gb })
    };
    for offload in [false, true] {
        for level in Level::ALL {
            let choice = chosen(total(level, offload), offload).unwrap();
            assert_eq!((choice.level, choice.offload), (level, offload));
            assert_eq!(choice.why.contains("page-locked"), offload, "{}", choice.why);
        }
    }
    let e = chosen(total(Level::Block, true) - 1, true).unwrap_err();
    assert!(e.to_string().contains("recompute: block"), "{e}");
    let free = choose(&backend, &setup, Asked::default()).unwrap();
    assert!(free.level == Level::None && free.why.contains("free"), "{}", free.why);
}
