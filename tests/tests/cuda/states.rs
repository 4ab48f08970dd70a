//! What the optimizer keeps, in every format.

use chronibench_protocol::spec::{Dtype, PrecisionArgs, States};
use chronicals::{
    Trainer,
    backend::{
        Backend,
        cuda::{CudaBackend, Formats},
    },
    checkpoint,
    fit::fit,
};
use chronicals_kernels::gpu::Machine;
use chronicals_tests::{
    golden::{Case, Geometry, Golden},
    synthetic::Model,
};

const STATES: [States; 3] = [States::F32, States::Bf16, States::Eight];

fn precisions() -> Vec<PrecisionArgs> {
    let of = |states| {
        [Dtype::F32, Dtype::Bf16].map(|dtype| PrecisionArgs { dtype: Some(dtype), states: Some(states) })
    };
    STATES.into_iter().flat_map(of).collect()
}

fn head_dim(precision: PrecisionArgs) -> usize {
    if precision.dtype == Some(Dtype::F32) { 16 } else { 64 }
}

fn case(of: Case, precision: PrecisionArgs) -> Case {
    let mut case = Case { precision, ..of };
    case.args.learning_rate = 3e-3;
    case
}

pub fn losses_fall<D: Machine>(machine: &dyn Fn() -> D) {
    let golden = Golden::load("qwen3");
    let batches = golden.batches(Geometry::Packed, 10);
    for precision in precisions() {
        let model = Model::new("qwen2", head_dim(precision));
        for of in [Case::full(), Case::lora()] {
            let case = case(of, precision);
            let backend = case.on(machine(), &model.config, &batches);
            let mut trainer = model.trainer_on(&case, &batches, backend);
            let losses: Vec<f64> =
                (0..10).map(|s| trainer.train_step(&batches.step(s).unwrap()).unwrap().loss).collect();
            assert!(losses[9] < 0.9 * losses[0], "{precision:?} {}: {losses:?}", case.prefix());
            assert!(losses.windows(2).filter(|w| w[1] < w[0]).count() >= 8, "{precision:?}: {losses:?}");
        }
    }
}

/// A training taken up from a checkpoint continues to the bit, whatever the optimizer keeps; with a batch cut in two.
pub fn resumed<D: Machine>(machine: &dyn Fn() -> D) {
    let golden = Golden::load("qwen3");
    for (precision, geometry) in
        precisions().into_iter().flat_map(|p| [Geometry::Packed, Geometry::Accumulated].map(|g| (p, g)))
    {
        let (model, batches) = (Model::new("qwen2", head_dim(precision)), golden.batches(geometry, 6));
        for of in [Case::full(), Case::lora()] {
            let (case, dir) = (case(of, precision), tempfile::tempdir().unwrap());
            let new = || model.trainer_on(&case, &batches, case.on(machine(), &model.config, &batches));
            let (mut whole, mut first, mut second) = (new(), new(), new());
            let identity = checkpoint::Identity::new();
            let (mut losses, mut resumed) = (Vec::new(), Vec::new());
            fit(&mut whole, &batches, 6, |_, r| {
                losses.push(r);
                Ok(())
            })
            .unwrap();
            let mut keep = |_, r| {
                resumed.push(r);
                Ok(())
            };
            fit(&mut first, &batches, 4, &mut keep).unwrap();
            let saved = checkpoint::save(
                &first,
                dir.path(),
                &identity,
                &Default::default(),
                Default::default(),
                |_| Ok(()),
            )
            .unwrap();
            checkpoint::load(&mut second, &saved, &identity).unwrap();
            fit(&mut second, &batches, 6, &mut keep).unwrap();
            assert_eq!(second.backend().choices(), first.backend().choices());
            assert!(losses == resumed, "{precision:?} {}", case.prefix());
            let trained = |t: &Trainer<CudaBackend<D>>| {
                t.backend().read(t.model().adapters.unwrap_or(t.model().weights)).unwrap()
            };
            assert!(trained(&whole) == trained(&second), "{precision:?} {}", case.prefix());
        }
    }
}

/// What is written is read back whole where there are f32 masters, rounded where there are none; frozen weights never move.
pub fn masters<D: Machine>(machine: &dyn Fn() -> D) {
    let golden = Golden::load("qwen3");
    let batches = golden.batches(Geometry::Packed, 3);
    for precision in precisions() {
        let model = Model::new("qwen2", head_dim(precision));
        let case = case(Case::lora(), precision);
        let mut backend = case.on(machine(), &model.config, &batches);
        assert_eq!(backend.about().precision, Formats::from(precision).record());
        let setup = case.setup(&model.config, &batches);
        let laid_out = chronicals::model::Model::build(&mut backend, &setup).unwrap();
        backend.prepare(&laid_out).unwrap();
        let adapters = laid_out.adapters.unwrap();
        let fine = vec![1.0 + f32::EPSILON; adapters.len];
        backend.write(adapters, &fine).unwrap();
        let whole = precision.dtype == Some(Dtype::F32) || precision.states != Some(States::Bf16);
        assert_eq!(backend.read(adapters.slice(8, 4)).unwrap() == fine[..4], whole, "{precision:?}");

        let mut trainer = model.trainer_on(&case, &batches, case.on(machine(), &model.config, &batches));
        let frozen = |t: &Trainer<CudaBackend<D>>| t.backend().read(t.model().weights).unwrap();
        let before = frozen(&trainer);
        (0..3).for_each(|s| drop(trainer.train_step(&batches.step(s).unwrap()).unwrap()));
        assert!(frozen(&trainer) == before, "{precision:?}: frozen weights moved");
    }
}

/// Stochastic rounding is reproduced, and is no rounding to nearest: most weights move under updates far below half a unit.
pub fn seeds<D: Machine>(machine: &dyn Fn() -> D) {
    let golden = Golden::load("qwen3");
    let batches = golden.batches(Geometry::Packed, 4);
    let precision = PrecisionArgs { dtype: Some(Dtype::Bf16), states: Some(States::Bf16) };
    let model = Model::new("qwen2", 64);
    let mut case = case(Case::full(), precision);
    case.args.learning_rate = 1e-5;
    case.args.weight_decay = 0.0;
    let run = || {
        let mut trainer = model.trainer_on(&case, &batches, case.on(machine(), &model.config, &batches));
        let weights = |t: &Trainer<CudaBackend<D>>| t.backend().read(t.model().weights).unwrap();
        let before = weights(&trainer);
        (0..4).for_each(|s| drop(trainer.train_step(&batches.step(s).unwrap()).unwrap()));
        let after = weights(&trainer);
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        (after, moved as f64 / before.len() as f64)
    };
    let (after, moved) = run();
    // Weights are about 0.1 with a unit of 5e-4: four updates of 1e-5 move one of a dozen.
    assert!((0.01..0.9).contains(&moved), "{moved} of the weights moved");
    assert!(run().0 == after, "other bits the second time");
}

/// A rate of 0 in one step leaves the weights, whatever rate the captured step before had.
pub fn scalars<D: Machine>(machine: &dyn Fn() -> D) {
    let golden = Golden::load("qwen3");
    let batches = golden.batches(Geometry::Packed, 6);
    let precision = PrecisionArgs { dtype: Some(Dtype::F32), states: None };
    let case = case(Case::full(), precision);
    let mut trainer = golden.trainer_on(&case, &batches, case.on(machine(), &golden.config, &batches));
    let rates: Vec<f64> =
        (0..6).map(|s| trainer.train_step(&batches.step(s).unwrap()).unwrap().lr["all"]).collect();
    let weights = trainer.backend().read(trainer.model().weights).unwrap();
    // The same rates on the processor give the same weights: each step took its own.
    let mut on_cpu = golden.trainer(&case, &batches);
    (0..6).for_each(|s| drop(on_cpu.train_step(&batches.step(s).unwrap()).unwrap()));
    let expected = on_cpu.backend().read(on_cpu.model().weights).unwrap();
    let largest = weights.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(rates.windows(2).all(|w| w[1] < w[0]), "{rates:?}");
    assert!(largest < 2e-4, "weights differ by {largest} after rates {rates:?}");
}
