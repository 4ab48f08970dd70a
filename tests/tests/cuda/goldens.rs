//! Goldens of the family whose heads have kernels (16 wide; the others' are 8), in f32.

use chronibench_protocol::spec::{Dtype, PrecisionArgs};
use chronicals::backend::cuda::Buckets;
use chronicals_kernels::gpu::Machine;
use chronicals_tests::golden::{Case, Geometry, Golden, VARIANT_FAMILY, assert_close, wide};

/// As the processor's tolerances, which see.
const LOSS: f64 = 2e-6;
const GRADIENT: f64 = 5e-5;
const TEN_LOSSES: [f64; 2] = [2e-5, 2e-4];
const TEN_NORMS: [f64; 2] = [1e-4, 1e-2];

const F32: PrecisionArgs = PrecisionArgs { dtype: Some(Dtype::F32), states: None };

/// Full fine-tuning and LoRA, with extents rounded up to more than the batch, and so little that rows without a loss are
/// left out.
fn cases() -> Vec<(usize, Case)> {
    spread([Case::full(), Case::lora()].into_iter().enumerate())
}

/// Adapters of several sizes side by side, launched as a batch each.
fn patterns() -> (Golden, Vec<(usize, Case)>) {
    let (golden, case) = Golden::variant("patterns");
    (golden, spread([(1, case)].into_iter()))
}

fn spread(each: impl Iterator<Item = (usize, Case)>) -> Vec<(usize, Case)> {
    let buckets = [None, Some(Buckets { tokens: 8, rows: 4 })];
    let with = |(i, case): (usize, Case)| {
        buckets.map(|buckets| (i, Case { precision: F32, buckets, ..case.clone() }))
    };
    each.flat_map(with).collect()
}

pub fn gradients<D: Machine>(machine: &dyn Fn() -> D) {
    gradients_of(machine, &Golden::load(VARIANT_FAMILY), cases());
    let (golden, cases) = patterns();
    gradients_of(machine, &golden, cases);
}

fn gradients_of<D: Machine>(machine: &dyn Fn() -> D, golden: &Golden, cases: Vec<(usize, Case)>) {
    for (_, case) in cases {
        for geometry in [Geometry::Packed, Geometry::Padded, Geometry::Accumulated] {
            let batches = golden.batches(geometry, 1);
            let backend = case.on(machine(), &golden.config, &batches);
            let mut trainer = golden.trainer_on(&case, &batches, backend);
            let (loss, grads) = trainer.gradients(&batches.step(0).unwrap().micro_batches).unwrap();
            let prefix = case.prefix();
            let what = |name: &str| format!("{geometry:?} {:?} {prefix}{name}", case.buckets);
            assert_close(&what("loss"), &[loss], &golden.get(&format!("{prefix}loss")), LOSS);
            assert_eq!(grads.len(), trainer.trainable().tensors.len());
            for (name, grad) in &grads {
                let expected = golden.get(&format!("{prefix}grad.{name}"));
                assert_close(&what(name), &wide(grad), &expected, GRADIENT);
            }
        }
    }
}

pub fn ten_steps<D: Machine>(machine: &dyn Fn() -> D) {
    ten_steps_of(machine, &Golden::load(VARIANT_FAMILY), cases());
    let (golden, cases) = patterns();
    ten_steps_of(machine, &golden, cases);
}

fn ten_steps_of<D: Machine>(machine: &dyn Fn() -> D, golden: &Golden, cases: Vec<(usize, Case)>) {
    for (i, case) in cases {
        for geometry in [Geometry::Packed, Geometry::Padded, Geometry::Accumulated] {
            let batches = golden.batches(geometry, 10);
            let backend = case.on(machine(), &golden.config, &batches);
            let mut trainer = golden.trainer_on(&case, &batches, backend);
            let reports = (0..10).map(|s| trainer.train_step(&batches.step(s).unwrap()).unwrap());
            let (losses, norms): (Vec<f64>, Vec<f64>) = reports.map(|r| (r.loss, r.grad_norm)).unzip();
            let expected = |n: &str| golden.get(&format!("{}train.{n}", case.prefix()));
            let what = format!("{geometry:?} {:?} {}", case.buckets, case.prefix());
            assert_close(&format!("{what}losses"), &losses, &expected("losses"), TEN_LOSSES[i]);
            assert_close(&format!("{what}norms"), &norms, &expected("grad_norms"), TEN_NORMS[i]);
        }
    }
}

/// A step says of each group what the gradients' own values say.
pub fn norms_by_group<D: Machine>(machine: &dyn Fn() -> D) {
    let golden = Golden::load(VARIANT_FAMILY);
    for (_, case) in cases() {
        let batches = golden.batches(Geometry::Packed, 2);
        let backend = case.on(machine(), &golden.config, &batches);
        let mut trainer = golden.trainer_on(&case, &batches, backend);
        // The first update moves B, without which A has no gradient.
        trainer.train_step(&batches.step(0).unwrap()).unwrap();
        let second = batches.step(1).unwrap();
        let (_, grads) = trainer.gradients(&second.micro_batches).unwrap();
        let report = trainer.train_step(&second).unwrap();
        let tensors = &trainer.trainable().tensors;
        assert!(report.grad_norm_by_group.keys().eq(report.lr.keys()), "{}", case.prefix());
        for (group, norm) in &report.grad_norm_by_group {
            let own = tensors.iter().filter(|t| t.group == group).flat_map(|t| wide(&grads[&t.name]));
            let expected = own.map(|g| g * g).sum::<f64>().sqrt();
            assert!(expected > 0.0);
            assert_close(&format!("{}{group}", case.prefix()), &[*norm], &[expected], GRADIENT);
        }
    }
}

pub fn smoothing_and_z_loss<D: Machine>(machine: &dyn Fn() -> D) {
    let golden = Golden::load("qwen3");
    let batches = golden.batches(Geometry::Packed, 1);
    for (name, smoothing, z_loss) in [("smooth", 0.1, 0.0), ("z", 0.0, 1e-3)] {
        let mut case = Case { precision: F32, ..Case::full() };
        case.loss.label_smoothing = smoothing;
        case.loss.z_loss = z_loss;
        let backend = case.on(machine(), &golden.config, &batches);
        let mut trainer = golden.trainer_on(&case, &batches, backend);
        let (loss, grads) = trainer.gradients(&batches.step(0).unwrap().micro_batches).unwrap();
        assert_close(name, &[loss], &golden.get(&format!("{name}.loss")), LOSS);
        let embed = "model.embed_tokens.weight";
        let expected = golden.get(&format!("{name}.grad.{embed}"));
        assert_close(&format!("{name} {embed}"), &wide(&grads[embed]), &expected, GRADIENT);
    }
}
