//! The same models, batches and settings on the processor, which goldens hold to Hugging Face: for families and widths that
//! have no goldens here.

use chronibench_protocol::spec::{Dtype, Method, PrecisionArgs};
use chronicals::{
    KernelPlan, Seam, Target, Trainer, Variant, backend::Backend, backend::cuda::Buckets, fit::Batches,
};
use chronicals_kernels::gpu::Machine;
use chronicals_tests::{
    golden::{Case, FAMILIES, Geometry, Golden, assert_close, wide},
    synthetic::Model,
};

const GEOMETRIES: [Geometry; 3] = [Geometry::Packed, Geometry::Padded, Geometry::Accumulated];

/// An element type, with its widest error over the largest value: of losses, gradients, ten losses and ten norms.
struct Format {
    dtype: Dtype,
    head_dim: usize,
    loss: f64,
    gradient: f64,
    ten_losses: f64,
    ten_norms: f64,
}

/// Rounding of sums in another order, and of an accumulation over ten steps.
const F32: Format =
    Format { dtype: Dtype::F32, head_dim: 16, loss: 2e-6, gradient: 5e-5, ten_losses: 1e-4, ten_norms: 5e-3 };

/// Half a unit of bf16 is 2⁻⁹ = 2e-3. Some thirty roundings of activations and of their gradients lie between a loss and the
/// gradients of the first layer, where they add up as random errors do: √30 · 2e-3 = 1.1e-2 of a typical value, and a few times
/// that where one element is compared with the largest. Ten steps multiply it, as steps of AdamW have the size of the rate
/// whatever the gradient's.
const BF16: Format = Format {
    dtype: Dtype::Bf16,
    head_dim: 64,
    loss: 4e-3,
    gradient: 4e-2,
    ten_losses: 3e-2,
    ten_norms: 5e-2,
};

impl Format {
    fn precision(&self) -> PrecisionArgs {
        PrecisionArgs { dtype: Some(self.dtype), states: None }
    }
}

/// Full fine-tuning and LoRA at a rate that moves the weights without leaving the region where rounding stays rounding.
fn cases(format: &Format) -> [Case; 2] {
    let of = |case: Case, learning_rate: f64| {
        let mut case = Case { precision: format.precision(), ..case };
        case.args.learning_rate = learning_rate;
        case
    };
    [of(Case::full(), 1e-3), of(Case::lora(), 1e-3)]
}

fn gradients<D: Machine>(machine: &dyn Fn() -> D, format: &Format) {
    let golden = Golden::load("qwen3");
    for family in FAMILIES {
        let model = Model::new(family, format.head_dim);
        for case in cases(format) {
            for geometry in GEOMETRIES {
                let (batches, fused) = (golden.batches(geometry, 1), [KernelPlan::default()]);
                compare(machine, &model, &case, &batches, format, &fused);
            }
        }
    }
}

/// Loss and every gradient at each of the plans against the processor's.
fn compare<D: Machine>(
    machine: &dyn Fn() -> D,
    model: &Model,
    case: &Case,
    batches: &Batches,
    format: &Format,
    plans: &[KernelPlan],
) {
    let step = batches.step(0).unwrap();
    let (loss, expected) = model.trainer(case, batches).gradients(&step.micro_batches).unwrap();
    for plan in plans {
        let case = case.clone().with(*plan);
        let mut trainer = model.trainer_on(&case, batches, case.on(machine(), &model.config, batches));
        let (got, grads) = trainer.gradients(&step.micro_batches).unwrap();
        let (micro, plan) = (step.micro_batches.len(), plan.names(Target::Cuda));
        let what = |name: &str| format!("{:?} {micro} {plan:?} {name}", model.config.family);
        assert_close(&what("loss"), &[got], &[loss], format.loss);
        for (name, grad) in &grads {
            let expected = wide(&expected[name]);
            assert!(expected.iter().any(|&g| g != 0.0), "{name} learns");
            assert_close(&what(name), &wide(grad), &expected, format.gradient);
        }
    }
}

/// Ranks that fill no pack of 8, alone and together, on all projections and on few.
pub fn odd_adapters<D: Machine>(machine: &dyn Fn() -> D) {
    let golden = Golden::load("qwen3");
    let batches = golden.batches(Geometry::Accumulated, 4);
    let few: [(usize, &[&str]); 6] = [
        (1, &[]),
        (17, &[]),
        (3, &["q_proj", "v_proj"]),
        (17, &["k_proj"]),
        (5, &["up_proj", "o_proj"]),
        (1, &["down_proj"]),
    ];
    // In bf16 a gradient of rank 1 is a sum of few rounded terms: the same mean error as at larger ranks (1.2 % of the largest, by
    // either path of SwiGLU), and a longer tail.
    for format in [&F32, &Format { gradient: 2.0 * BF16.gradient, ..BF16 }] {
        for (family, (r, targets)) in ["qwen2", "qwen3"].into_iter().flat_map(|f| few.map(|few| (f, few))) {
            let model = Model::new(family, format.head_dim);
            let mut case = Case { precision: format.precision(), ..Case::adapters(r) };
            case.args.learning_rate = 1e-3;
            if let Method::Lora(lora) = &mut case.method
                && !targets.is_empty()
            {
                lora.target_modules = targets.iter().map(|t| t.to_string()).collect();
            }
            compare(machine, &model, &case, &batches, format, &[KernelPlan::default()]);
            let (losses, norms) = run(model.trainer(&case, &batches), &batches);
            let backend = case.on(machine(), &model.config, &batches);
            let (got, got_norms) = run(model.trainer_on(&case, &batches, backend), &batches);
            let what = |name: &str| format!("{family} r = {r} {targets:?} {name}");
            assert_close(&what("losses"), &got, &losses, format.ten_losses);
            assert_close(&what("norms"), &got_norms, &norms, format.ten_norms);
        }
    }
}

/// Each seam's eager variant alone, and all of them. Rows and capacities of every kind matter to attention alone.
fn eager<D: Machine>(machine: &dyn Fn() -> D, format: &Format) {
    let golden = Golden::load("qwen3");
    let with = |seam| KernelPlan::default().with(seam, Variant::Eager);
    let plans: Vec<KernelPlan> =
        Target::Cuda.seams().iter().map(|s| with(*s)).chain([KernelPlan::uniform(Variant::Eager)]).collect();
    for family in FAMILIES {
        let model = Model::new(family, format.head_dim);
        // Ranks of eager LoRA are multiples of 8.
        for of in [Case::full(), Case::adapters(8)] {
            let case = Case { precision: format.precision(), ..of };
            compare(machine, &model, &case, &golden.batches(Geometry::Packed, 1), format, &plans);
            for geometry in [Geometry::Padded, Geometry::Accumulated] {
                let batches = golden.batches(geometry, 1);
                compare(machine, &model, &case, &batches, format, &[with(Seam::Attention)]);
            }
        }
    }
}

pub fn eager_f32<D: Machine>(machine: &dyn Fn() -> D) {
    eager(machine, &F32);
}

pub fn eager_bf16<D: Machine>(machine: &dyn Fn() -> D) {
    eager(machine, &BF16);
}

pub fn gradients_f32<D: Machine>(machine: &dyn Fn() -> D) {
    gradients(machine, &F32);
}

pub fn gradients_bf16<D: Machine>(machine: &dyn Fn() -> D) {
    gradients(machine, &BF16);
}

fn run<B: Backend>(mut trainer: Trainer<B>, batches: &Batches) -> (Vec<f64>, Vec<f64>) {
    let reports = (0..batches.steps()).map(|s| trainer.train_step(&batches.step(s).unwrap()).unwrap());
    reports.map(|r| (r.loss, r.grad_norm)).unzip()
}

fn ten_steps<D: Machine>(machine: &dyn Fn() -> D, format: &Format) {
    let golden = Golden::load("qwen3");
    for family in FAMILIES {
        let model = Model::new(family, format.head_dim);
        for case in cases(format) {
            let batches = golden.batches(Geometry::Accumulated, 10);
            let (losses, norms) = run(model.trainer(&case, &batches), &batches);
            let backend = case.on(machine(), &model.config, &batches);
            let (got, got_norms) = run(model.trainer_on(&case, &batches, backend), &batches);
            let what = |name: &str| format!("{family} {}{name}", case.prefix());
            assert!(losses[9] < losses[0], "{}: {losses:?}", what("learns"));
            assert_close(&what("losses"), &got, &losses, format.ten_losses);
            assert_close(&what("norms"), &got_norms, &norms, format.ten_norms);
        }
    }
}

pub fn ten_steps_f32<D: Machine>(machine: &dyn Fn() -> D) {
    ten_steps(machine, &F32);
}

pub fn ten_steps_bf16<D: Machine>(machine: &dyn Fn() -> D) {
    ten_steps(machine, &BF16);
}

/// Documents in one row, in rows of their own, and alone: the same loss and gradients, in tensor-core kernels too.
pub fn packed_as_alone<D: Machine>(machine: &dyn Fn() -> D) {
    let golden = Golden::load("qwen3");
    for (format, tolerance) in [(&F32, 2e-6), (&BF16, 2e-2)] {
        let model = Model::new("qwen2", format.head_dim);
        let [full, _] = cases(format);
        let of = |geometry: Geometry, buckets| {
            let batches = golden.batches(geometry, 1);
            let case = Case { buckets, ..full.clone() };
            let backend = case.on(machine(), &model.config, &batches);
            let mut trainer = model.trainer_on(&case, &batches, backend);
            trainer.gradients(&batches.step(0).unwrap().micro_batches).unwrap()
        };
        let (alone, expected) = of(Geometry::Accumulated, None);
        for geometry in GEOMETRIES {
            let (loss, grads) = of(geometry, Some(Buckets { tokens: 8, rows: 4 }));
            assert_close(&format!("{geometry:?} loss"), &[loss], &[alone], tolerance);
            for (name, grad) in &grads {
                assert_close(&format!("{geometry:?} {name}"), &wide(grad), &wide(&expected[name]), tolerance);
            }
        }
    }
}
