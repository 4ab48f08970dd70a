//! AdamW with 8-bit moments on the processor.

use chronibench_protocol::spec::{PrecisionArgs, States};
use chronicals::{
    Trainer,
    backend::{
        Backend,
        cpu::{CpuBackend, Formats},
    },
    checkpoint,
    error::Error,
    fit::{Batches, fit},
    memory::{cpu_bytes, elements},
};
use chronicals_kernels::{KernelPlan, Target};
use chronicals_tests::golden::{Case, Geometry, Golden};

const EIGHT: PrecisionArgs = PrecisionArgs { dtype: None, states: Some(States::Eight) };

fn backend(golden: &Golden, case: &Case, batches: &Batches, seed: u32) -> Result<CpuBackend, Error> {
    let of = CpuBackend::new(&golden.config, batches.capacity(), case.kernels, case.loss);
    of.with(EIGHT, "precision", seed)
}

fn trainer(golden: &Golden, case: &Case, batches: &Batches) -> Trainer<CpuBackend> {
    golden.trainer_on(case, batches, backend(golden, case, batches, 7).unwrap())
}

fn cases() -> [Case; 2] {
    let mut cases = [Case::full(), Case::lora()];
    cases.iter_mut().for_each(|c| c.args.learning_rate = 3e-3);
    cases
}

/// As the loss with f32 moments does, which it stays close to.
#[test]
fn losses_fall() {
    for (family, case) in ["qwen2", "llama", "qwen3"].into_iter().flat_map(|f| cases().map(|c| (f, c))) {
        let golden = Golden::load(family);
        let batches = golden.batches(Geometry::Packed, 10);
        let losses = |mut trainer: Trainer<CpuBackend>| -> Vec<f64> {
            let steps = batches.steps();
            (0..steps).map(|s| trainer.train_step(&batches.step(s).unwrap()).unwrap().loss).collect()
        };
        let (eight, f32) =
            (losses(trainer(&golden, &case, &batches)), losses(golden.trainer(&case, &batches)));
        assert!(eight[9] < 0.9 * eight[0], "{family} {}: {eight:?}", case.prefix());
        assert_eq!(eight[0], f32[0], "before the first update there are no moments");
        let fallen = |losses: &[f64]| losses[0] - losses[9];
        let ratio = fallen(&eight) / fallen(&f32);
        assert!((0.8..1.25).contains(&ratio), "{family} {}: {eight:?} and {f32:?}", case.prefix());
    }
}

/// A training taken up from a checkpoint continues to the bit; with a batch cut in two.
#[test]
fn resumed() {
    let golden = Golden::load("qwen3");
    for (case, geometry) in
        cases().into_iter().flat_map(|c| [Geometry::Packed, Geometry::Accumulated].map(|g| (c.clone(), g)))
    {
        let (batches, dir) = (golden.batches(geometry, 6), tempfile::tempdir().unwrap());
        let [mut whole, mut first, mut second] = [(); 3].map(|()| trainer(&golden, &case, &batches));
        let (mut losses, mut resumed) = (Vec::new(), Vec::new());
        let keep = |list: &mut Vec<_>, r| {
            list.push(r);
            Ok(())
        };
        fit(&mut whole, &batches, 6, |_, r| keep(&mut losses, r)).unwrap();
        fit(&mut first, &batches, 4, |_, r| keep(&mut resumed, r)).unwrap();
        let (identity, extra) = (checkpoint::Identity::new(), Default::default());
        let saved =
            checkpoint::save(&first, dir.path(), &identity, &extra, Default::default(), |_| Ok(())).unwrap();
        checkpoint::load(&mut second, &saved, &identity).unwrap();
        fit(&mut second, &batches, 6, |_, r| keep(&mut resumed, r)).unwrap();
        assert!(losses == resumed, "{geometry:?} {}", case.prefix());
        let trained = |t: &Trainer<CpuBackend>| {
            t.backend().read(t.model().adapters.unwrap_or(t.model().weights)).unwrap()
        };
        assert!(trained(&whole) == trained(&second), "{geometry:?} {}", case.prefix());
    }
}

#[test]
fn moments_take_a_quarter_as_planned() {
    let golden = Golden::load("llama");
    let batches = golden.batches(Geometry::Packed, 1);
    for case in cases() {
        let trainer = trainer(&golden, &case, &batches);
        let elements = elements(&case.setup(&golden.config, &batches), Default::default()).unwrap();
        let [f32, eight] = [false, true].map(|eight_bit| cpu_bytes(&elements, Formats { eight_bit }));
        assert_eq!(trainer.backend().planned_bytes(), eight);
        let of = |bytes: &std::collections::BTreeMap<String, u64>| bytes["optimizer states"] as f64;
        let ratio = of(&eight) / of(&f32);
        assert!((0.25..0.27).contains(&ratio), "{ratio}");
        assert_eq!(trainer.backend().about().precision.moments, "8bit");
    }
}

/// Moments have no values to be looked at, and the eager optimizer none of 8 bits.
#[test]
fn what_there_is_not_is_refused() {
    let golden = Golden::load("llama");
    let batches = golden.batches(Geometry::Packed, 1);
    let trainer = trainer(&golden, &Case::full(), &batches);
    let e = trainer.backend().read(trainer.model().groups[0].m).unwrap_err();
    assert!(e.to_string().contains("states: f32"), "{e}");
    let settings = [("optimizer".to_string(), "eager".to_string())].into();
    let kernels = KernelPlan::resolve(&settings, Target::Cpu).unwrap();
    let e = backend(&golden, &Case { kernels, ..Case::full() }, &batches, 0).err().unwrap();
    assert!(e.to_string().contains("fused"), "{e}");
}
