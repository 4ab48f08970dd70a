//! Fresh parameters, the same for a seed whatever the layout.

use std::path::Path;

use chronibench_protocol::spec::{LoraArgs, Method};
use chronicals_kernels::KernelPlan;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::{
    backend::{Allocator, Backend, View, cpu::CpuBackend},
    config::ModelConfig,
    error::Error,
    model::Capacity,
    params::{Layout, Tensor},
    weights,
};

/// Draws a tensor: norms are one, biases and LoRA's B zero, LoRA's A uniform in ±1/√inputs (PEFT's Kaiming), other
/// matrices normal with the config's `initializer_range`. Each tensor has a stream of its own.
fn draw(t: &Tensor, seed: u64, std: f64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::from_seed(Sha256::digest(format!("{seed}/{}", t.name)).into());
    let n = t.len();
    if t.name.ends_with("norm.weight") {
        vec![1.0; n]
    } else if t.name.ends_with(".bias") || t.group == "lora_B" {
        vec![0.0; n]
    } else if t.group == "lora_A" {
        let bound = 1.0 / (t.shape[1] as f64).sqrt();
        (0..n).map(|_| ((2.0 * uniform(&mut rng) - 1.0) * bound) as f32).collect()
    } else {
        (0..n).map(|_| (normal(&mut rng) * std) as f32).collect()
    }
}

/// In [0, 1).
fn uniform(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Standard normal by Box and Muller's transform.
fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (2.0 * std::f64::consts::PI * uniform(rng)).cos()
}

/// Fills `values` with fresh parameters.
///
/// # Errors
/// The device fails.
pub fn fill<B: Backend>(
    b: &mut B,
    c: &ModelConfig,
    layout: &Layout,
    values: View,
    seed: u64,
) -> Result<(), Error> {
    layout
        .tensors
        .iter()
        .try_for_each(|t| b.write(values.slice(t.offset, t.len()), &draw(t, seed, c.initializer_range)))
}

/// Writes fresh model weights.
///
/// # Errors
/// The config cannot be read or the file cannot be written.
pub fn write_initial_weights(config: &Path, seed: u64, out: &Path) -> Result<(), Error> {
    let c = ModelConfig::load(config)?;
    write(&c, &Layout::model(&c), seed, out)
}

/// Writes fresh adapters under PEFT names.
///
/// # Errors
/// As [`write_initial_weights`], and when the LoRA settings make no sense.
pub fn write_initial_adapter(config: &Path, lora: &LoraArgs, seed: u64, out: &Path) -> Result<(), Error> {
    let c = ModelConfig::load(config)?;
    write(&c, &Layout::adapters(&c, lora)?, seed, out)
}

fn write(c: &ModelConfig, layout: &Layout, seed: u64, out: &Path) -> Result<(), Error> {
    let capacity = Capacity { tokens: 1, row_slots: 1 };
    let mut b = CpuBackend::new(c, capacity, KernelPlan::default(), Default::default());
    let values = b.alloc(crate::backend::Component::Weights, layout.len());
    fill(&mut b, c, layout, values, seed)?;
    weights::save(&b, &[(layout, values)], out)
}

/// Tensors that a method trains.
///
/// # Errors
/// The LoRA settings make no sense.
pub fn trainable(c: &ModelConfig, method: &Method) -> Result<Layout, Error> {
    match method {
        Method::Full {} => Ok(Layout::model(c)),
        Method::Lora(lora) => Layout::adapters(c, lora),
    }
}
