//! The memory that a backend takes is the plan's, and what it has no kernels for is an error before anything runs.

use chronibench_protocol::spec::{Dtype, PrecisionArgs, States};
use chronicals::{
    KernelPlan, Seam, Trainer, Variant,
    backend::{
        Backend,
        cuda::{
            CudaBackend, Formats, Options,
            plan::{self, Gpu},
        },
    },
    checkpoint,
    config::ModelConfig,
    fit::evaluate,
    model::Level,
};
use chronicals_emulator::Training;
use chronicals_kernels::{attention::cuda::Path, gpu::Machine};
use chronicals_tests::{
    golden::{Case, Geometry, Golden},
    synthetic::Model,
};

fn each(check: impl Fn(&Model, &Case)) {
    for family in ["qwen2", "qwen3"] {
        for (dtype, head_dim) in [(Dtype::F32, 16), (Dtype::Bf16, 64)] {
            let model = Model::new(family, head_dim);
            for states in [States::F32, States::Bf16, States::Eight] {
                for of in [Case::full(), Case::adapters(8)] {
                    let precision = PrecisionArgs { dtype: Some(dtype), states: Some(states) };
                    let fused = Case { precision, ..of };
                    check(&model, &fused);
                    check(&model, &Case { recompute: Level::Block, ..fused.clone() });
                    check(&model, &Case { offload: true, ..fused.clone() });
                    if states != States::Eight {
                        check(&model, &fused.with(KernelPlan::uniform(Variant::Eager)));
                    }
                }
            }
        }
    }
}

/// Counted without a device, for one like this.
pub fn as_planned<D: Machine>(machine: &dyn Fn() -> D) {
    let batches = Golden::load("qwen3").batches(Geometry::Padded, 1);
    each(|model, case| {
        let device = machine();
        let gpu =
            Gpu { processors: device.launcher().processors(), workspace_bytes: device.workspace_bytes() };
        let setup = case.setup(&model.config, &batches);
        let planned = plan::bytes(&setup, case.loss, Formats::from(case.precision), gpu).unwrap();
        let backend = case.on(device, &model.config, &batches);
        let trainer = model.trainer_on(case, &batches, backend);
        assert_eq!(trainer.backend().planned_bytes(), planned.bytes, "{:?}", case.precision);
        assert_eq!(trainer.backend().planned_host_bytes(), planned.host_bytes);
    });
}

/// Nothing is taken that is not in the plan, and nothing after the first step began; every product was tuned before.
pub fn taken(_: &dyn Fn() -> Training) {
    let batches = Golden::load("qwen3").batches(Geometry::Accumulated, 3);
    each(|model, case| {
        let backend = case.on(Training::new(), &model.config, &batches);
        let mut trainer = model.trainer_on(case, &batches, backend);
        let planned: u64 = trainer.backend().planned_bytes().values().sum();
        assert_eq!(trainer.backend().device().taken() as u64, planned);
        trainer.rehearse(&batches).unwrap();
        assert!(trainer.backend().launches().is_empty(), "a rehearsal runs nothing");
        let device = trainer.backend().device();
        assert_eq!(device.taken() as u64, planned, "what a rehearsal borrows is there again");
        assert!(device.peak_of_tuning() as u64 <= planned, "operands lie in memory of the steps");
        (0..3).for_each(|s| drop(trainer.train_step(&batches.step(s).unwrap()).unwrap()));
        assert_eq!(trainer.backend().device().taken() as u64, planned, "a step takes nothing");
    });
}

/// Batches that are evaluated are ready too, whatever their shapes; and a rehearsal without room says what the machine lacks.
pub fn evaluated(_: &dyn Fn() -> Training) {
    let golden = Golden::load("qwen3");
    let (batches, held_out) = (golden.batches(Geometry::Padded, 1), golden.batches(Geometry::Accumulated, 2));
    let (model, case) = (Model::new("qwen2", 64), Case::adapters(8));
    let new = || model.trainer_on(&case, &batches, case.on(Training::new(), &model.config, &batches));
    let mut trainer = new();
    trainer.rehearse(&batches).unwrap();
    trainer.rehearse_evaluation(&held_out).unwrap();
    assert!(trainer.backend().launches().is_empty(), "a rehearsal runs nothing");
    let peak = trainer.backend().device().peak_of_tuning();
    assert!(evaluate(&mut trainer, &held_out).unwrap().loss() > 0.0);
    assert_eq!(trainer.backend().device().peak_of_tuning(), peak, "nothing is tuned in an evaluation");

    let mut narrow = new();
    narrow.backend().device().leave(1);
    let e = narrow.rehearse_evaluation(&held_out).unwrap_err();
    assert!(e.is_environment() && e.to_string().contains("out of memory"), "{e}");
}

/// A training that goes on chooses as it did, whatever lies in the cache of tuned products.
pub fn adopted(_: &dyn Fn() -> Training) {
    let batches = Golden::load("qwen3").batches(Geometry::Packed, 3);
    let (model, case, dir) = (Model::new("qwen2", 64), Case::full(), tempfile::tempdir().unwrap());
    let new = || model.trainer_on(&case, &batches, case.on(Training::new(), &model.config, &batches));
    let (mut first, identity) = (new(), checkpoint::Identity::new());
    first.rehearse(&batches).unwrap();
    let choices = first.backend().choices().unwrap();
    assert!(choices.lines().count() > 10, "{choices}");
    first.train_step(&batches.step(0).unwrap()).unwrap();
    let (progress, keep) = Default::default();
    let saved = checkpoint::save(&first, dir.path(), &identity, &progress, keep, |_| Ok(())).unwrap();
    let mut second = new();
    assert!(checkpoint::load(&mut second, &saved, &identity).unwrap().same_products);
    assert_eq!(second.backend().choices().as_ref(), Some(&choices), "also before anything is planned");
    second.rehearse(&batches).unwrap();
    assert_eq!(second.backend().device().peak_of_tuning(), 0, "nothing is timed");
    assert_eq!(second.backend().choices(), Some(choices.clone()));
    // Those of another device are left alone, which is told; and so it is where the file is lost.
    let foreign = choices.replacen("emulator", "another GPU", 1);
    std::fs::write(saved.join("products.txt"), foreign).unwrap();
    let mut third = new();
    assert!(!checkpoint::load(&mut third, &saved, &identity).unwrap().same_products);
    assert_eq!(third.backend().choices().unwrap().lines().count(), 1, "nothing was taken over");
    std::fs::remove_file(saved.join("products.txt")).unwrap();
    assert!(!checkpoint::load(&mut new(), &saved, &identity).unwrap().same_products);
}

fn refused(config: &ModelConfig, plan: KernelPlan, dtype: Dtype, states: Option<States>) -> String {
    let options = Options {
        config,
        capacity: Golden::load("qwen3").batches(Geometry::Packed, 1).capacity(),
        plan,
        loss: Default::default(),
        precision: PrecisionArgs { dtype: Some(dtype), states },
        seed: 0,
    };
    CudaBackend::new(Training::new(), &options).err().map_or("accepted".into(), |e| e.to_string())
}

pub fn refusals(_: &dyn Fn() -> Training) {
    let fused = KernelPlan::default();
    let config = |family| Golden::load(family).config;
    let wide = Model::new("llama", 64).config;
    let narrow = ModelConfig { intermediate_size: 44, ..wide.clone() };
    for (config, plan, dtype, words) in [
        (&config("qwen2"), fused, Dtype::F32, "head_dim 8"),
        (&config("qwen3"), fused, Dtype::Bf16, "[64, 128]"),
        (&wide, fused.with_path(Path::Hopper), Dtype::Bf16, "sm_90a"),
        (&wide, fused.with_path(Path::Plain), Dtype::Bf16, "runs in f32"),
        (&narrow, fused, Dtype::Bf16, "intermediate_size 44"),
        (&wide, fused.with(Seam::Graph, Variant::Eager), Dtype::Bf16, "accepted"),
        (&wide, fused.with_path(Path::Mma), Dtype::Bf16, "accepted"),
    ] {
        let e = refused(config, plan, dtype, None);
        assert!(e.contains(words), "{words} in: {e}");
    }
    let eager = KernelPlan::uniform(Variant::Eager);
    let e = refused(&wide, eager, Dtype::Bf16, Some(States::Eight));
    assert!(e.contains("eager optimizer has no 8-bit moments"), "{e}");
    // Eager attention has kernels where its paths have none.
    assert_eq!(refused(&config("qwen3"), eager, Dtype::Bf16, None), "accepted");

    let (model, case) = (Model::new("qwen2", 16), Case::adapters(4).with(eager));
    let batches = Golden::load("qwen3").batches(Geometry::Packed, 1);
    let backend = case.on(Training::new(), &model.config, &batches);
    let setup = case.setup(&model.config, &batches);
    let e = Trainer::new(backend, &setup, &case.args, 1).err().expect("rank 4 has no eager kernels");
    assert!(e.to_string().contains("an adapter of rank 4"), "{e}");
}
