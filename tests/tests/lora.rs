//! LoRA that begins elsewhere, and whose outputs have magnitudes.

use chronibench_protocol::{
    init::InitLora,
    spec::{Dtype, LoraArgs, Method, PrecisionArgs},
};
use chronicals::{
    Trainer,
    backend::{
        Backend, View,
        cpu::CpuBackend,
        cuda::{
            Formats,
            plan::{self, Gpu},
        },
    },
    data::batch::Batch,
    fit::Batches,
    formats::peft::AdapterConfig,
    params::Layout,
};
use chronicals_tests::golden::{Case, DOCUMENTS, Geometry, Golden, assert_close, wide};

/// The largest singular values were found in f32 by PEFT; ours are, in f64, of the same weights.
const UPDATE: f64 = 1e-5;
/// As those of LoRA+ in `goldens.rs`.
const LOSSES: f64 = 2e-4;
/// Ten steps of LoRA+ multiply rounding; PEFT itself in f32: 7e-6.
const LOGITS: f64 = 5e-4;

fn lora(case: &Case) -> LoraArgs {
    let Method::Lora(lora) = &case.method else { unreachable!("a case of LoRA") };
    lora.clone()
}

/// A trainer whose adapters are the largest part of its weights.
fn begun(golden: &Golden, batches: &Batches, niter: Option<u32>) -> (Trainer<CpuBackend>, Case) {
    let mut case = Case::lora();
    case.method = Method::Lora(LoraArgs { init_lora_weights: InitLora::Pissa { niter }, ..lora(&case) });
    let mut trainer = golden.fresh_adapters(&case, batches, 3);
    trainer.init_pissa(&golden.config, &lora(&case), niter, 3).unwrap();
    (trainer, case)
}

/// `s·B·A` on a projection, `[N, K]`, and its weight.
fn parts(golden: &Golden, trainer: &Trainer<CpuBackend>, module: &str, scale: f64) -> (Vec<f64>, Vec<f64>) {
    let (b, m) = (trainer.backend(), trainer.model());
    let read = |layout: &Layout, values: View, name: &str| {
        let t = layout.get(name).unwrap();
        (wide(&b.read(values.slice(t.offset, t.len())).unwrap()), t.shape.clone())
    };
    let of = |ab: char| {
        let name = format!("base_model.model.{module}.lora_{ab}.weight");
        read(trainer.trainable(), m.adapters.unwrap(), &name)
    };
    let ((a, a_shape), (up, b_shape)) = (of('A'), of('B'));
    let (r, k, n) = (a_shape[0], a_shape[1], b_shape[0]);
    let element = |j: usize, c: usize| (0..r).map(|i| up[j * r + i] * a[i * k + c]).sum::<f64>() * scale;
    let update = (0..n * k).map(|i| element(i / k, i % k)).collect();
    (update, read(&Layout::model(&golden.config), m.weights, &format!("{module}.weight")).0)
}

const MODULES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

#[test]
fn pissa_takes_the_largest_part_out_of_every_weight() {
    let golden = Golden::pissa();
    let batches = golden.batches(Geometry::Packed, 10);
    let plain = golden.fresh_adapters(&Case::lora(), &batches, 3);
    for niter in [None, Some(16), Some(2)] {
        let (trainer, _) = begun(&golden, &batches, niter);
        for (layer, module) in (0..2).flat_map(|l| MODULES.map(|m| (l, format!("model.layers.{l}.{m}")))) {
            let (update, rest) = parts(&golden, &trainer, &module, 2.0);
            let (_, whole) = parts(&golden, &plain, &module, 2.0);
            let sum: Vec<f64> = update.iter().zip(&rest).map(|(u, r)| u + r).collect();
            assert_close(&format!("{module} {niter:?}"), &sum, &whole, 2e-7);
            if layer == 0 && niter.is_none() {
                let expected = golden.get(&format!("update.base_model.model.{module}"));
                assert_close(&format!("update of {module}"), &update, &expected, UPDATE);
            }
        }
    }
}

fn logits(trainer: &mut Trainer<CpuBackend>, batch: &Batch, hidden: usize) -> Vec<f64> {
    trainer.evaluate(std::slice::from_ref(batch)).unwrap();
    let (b, m) = (trainer.backend(), trainer.model());
    let (y, head) = (wide(&b.read(m.y).unwrap()), wide(&b.read(m.head.value).unwrap()));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let rows = y.chunks(hidden).take(batch.ids.len());
    rows.flat_map(|row| head.chunks(hidden).map(|w| dot(row, w)).collect::<Vec<_>>()).collect()
}

#[test]
fn pissa_trains_as_peft_and_its_adapter_is_for_the_base_that_it_began_with() {
    let golden = Golden::pissa();
    let batches = golden.batches(Geometry::Packed, 10);
    let (mut trainer, case) = begun(&golden, &batches, None);
    let reports = (0..10).map(|s| trainer.train_step(&batches.step(s).unwrap()).unwrap());
    let losses: Vec<f64> = reports.map(|r| r.loss).collect();
    assert_close("losses", &losses, &golden.get("lora.train.losses"), LOSSES);

    let dir = tempfile::tempdir().unwrap();
    trainer.save_update(&dir.path().join("adapter_model.safetensors")).unwrap();
    let settings = trainer.update_settings(&lora(&case));
    assert_eq!((settings.r, settings.lora_alpha), (8, 16.0));
    AdapterConfig::new(&settings, None).save(dir.path()).unwrap();
    let read = AdapterConfig::load(dir.path()).unwrap().lora(dir.path()).unwrap();
    let plain = Case { method: Method::Lora(read), ..Case::lora() };
    let alone = golden.batches(Geometry::Accumulated, 1);
    for (document, batch) in alone.step(0).unwrap().micro_batches.iter().enumerate().take(DOCUMENTS) {
        let mut other = golden.fresh_adapters(&plain, &alone, 0);
        other.load_adapters(dir.path()).unwrap();
        let got = logits(&mut other, batch, golden.config.hidden_size);
        assert_close("logits", &got, &golden.get(&format!("final.doc{document}.logits")), LOGITS);
    }
}

/// Where B is zero, outputs have the lengths that they had.
#[test]
fn fresh_magnitudes_change_nothing() {
    let golden = Golden::load("qwen3");
    let batches = golden.batches(Geometry::Packed, 1);
    let mut case = Case::lora();
    case.method = Method::Lora(LoraArgs { use_dora: true, ..lora(&case) });
    let mut trainer = golden.fresh_adapters(&case, &batches, 5);
    let (loss, grads) = trainer.gradients(&batches.step(0).unwrap().micro_batches).unwrap();
    assert_close("loss", &[loss], &golden.get("loss"), 2e-6);
    let magnitudes = || grads.iter().filter(|(name, _)| name.ends_with("lora_magnitude_vector"));
    assert_eq!(magnitudes().count(), 14);
    assert!(magnitudes().all(|(_, g)| g.iter().any(|v| *v != 0.0)), "magnitudes learn at once");
}

#[test]
fn a_gpu_without_kernels_for_magnitudes_says_so() {
    let (golden, case) = Golden::variant("dora");
    let batches = golden.batches(Geometry::Packed, 1);
    let setup = case.setup(&golden.config, &batches);
    let formats = Formats::from(PrecisionArgs { dtype: Some(Dtype::F32), states: None });
    let e = plan::bytes(&setup, Default::default(), formats, Gpu::HOPPER).unwrap_err().to_string();
    assert!(e.contains("DoRA has no kernels on a GPU") && e.contains("use_dora: false"), "{e}");
}
