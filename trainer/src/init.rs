//! Fresh parameters, the same for a seed whatever the layout.

use std::path::Path;

use chronibench_protocol::spec::{LoraArgs, Method};
use chronicals_kernels::gpu::Elem;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    backend::{Backend, View},
    config::ModelConfig,
    error::Error,
    formats::{
        self,
        write::{self, Entry, Stored},
    },
    params::{Layout, Tensor},
    weights,
};

/// Values that one thread draws at a time.
const PIECE: usize = 1 << 16;

/// Draws a tensor: norms are one, biases and LoRA's B zero, DoRA's magnitudes too until weights are there, LoRA's A uniform in ±1/√inputs (PEFT's Kaiming), other
/// matrices normal with the config's `initializer_range`. Each tensor has a stream of its own.
fn draw(t: &Tensor, seed: u64, std: f64) -> Vec<f32> {
    let n = t.len();
    if t.name.ends_with("norm.weight") {
        vec![1.0; n]
    } else if t.name.ends_with(".bias") || matches!(t.group, "lora_B" | "lora_magnitude") {
        vec![0.0; n]
    } else if t.group == "lora_A" {
        let bound = 1.0 / (t.shape[1] as f64).sqrt();
        drawn(t, seed, 1, |rng| ((2.0 * uniform(rng) - 1.0) * bound) as f32)
    } else {
        drawn(t, seed, 2, |rng| (normal(rng) * std) as f32)
    }
}

/// Values of a tensor's stream, each of so many of its draws, in pieces side by side: where a piece begins in the stream is known.
fn drawn(t: &Tensor, seed: u64, draws: usize, value: impl Fn(&mut ChaCha8Rng) -> f32 + Sync) -> Vec<f32> {
    let key = Sha256::digest(format!("{seed}/{}", t.name)).into();
    let mut values = vec![0.0; t.len()];
    values.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| {
        let mut rng = ChaCha8Rng::from_seed(key);
        // A draw takes two words of 32 bits.
        rng.set_word_pos((i * PIECE * draws * 2) as u128);
        piece.iter_mut().for_each(|v| *v = value(&mut rng));
    });
    values
}

/// A tensor of standard normal values, of its name's stream.
pub(crate) fn normal_values(t: &Tensor, seed: u64) -> Vec<f32> {
    drawn(t, seed, 2, |rng| normal(rng) as f32)
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

/// Writes fresh model weights as f32; under `bf16` rounded to what that format holds.
///
/// # Errors
/// The config cannot be read or the file cannot be written.
pub fn write_initial_weights(config: &Path, seed: u64, bf16: bool, out: &Path) -> Result<(), Error> {
    let c = ModelConfig::load(config)?;
    write_drawn(&c, &Layout::model(&c), seed, bf16, out)
}

/// Writes the weights of a model that there is, as [`write_initial_weights`] does.
///
/// # Errors
/// As [`write_initial_weights`], and when these are no weights of such a model; the tensor is named.
pub fn write_given_weights(config: &Path, model: &Path, bf16: bool, out: &Path) -> Result<(), Error> {
    let layout = Layout::model(&ModelConfig::load(config)?);
    let file = formats::open(model)?;
    weights::check(&*file, &layout)?;
    write_values(&layout, bf16, out, |t| weights::read(&*file, &t.name))
}

/// Writes fresh adapters under PEFT names, as [`write_initial_weights`] does.
///
/// # Errors
/// As [`write_initial_weights`], and when the LoRA settings make no sense.
pub fn write_initial_adapter(
    config: &Path,
    lora: &LoraArgs,
    seed: u64,
    bf16: bool,
    out: &Path,
) -> Result<(), Error> {
    let c = ModelConfig::load(config)?;
    if lora.use_dora {
        return Err(Error::new(
            "magnitudes begin as those of weights, and none are given",
            "method.use_dora",
        )
        .hint("leave use_dora out"));
    }
    write_drawn(&c, &Layout::adapters(&c, lora)?, seed, bf16, out)
}

fn write_drawn(c: &ModelConfig, layout: &Layout, seed: u64, bf16: bool, out: &Path) -> Result<(), Error> {
    write_values(layout, bf16, out, |t| Ok(draw(t, seed, c.initializer_range)))
}

/// Every tensor is made when it is written: a model need not fit into memory.
fn write_values(
    layout: &Layout,
    bf16: bool,
    out: &Path,
    values: impl Fn(&Tensor) -> Result<Vec<f32>, Error>,
) -> Result<(), Error> {
    let values = &values;
    let rounded = move |t: &Tensor| {
        let exact = values(t)?;
        Ok(if bf16 { Elem::Bf16.decode(&Elem::Bf16.encode(&exact)) } else { exact })
    };
    let tensors = layout.tensors.iter();
    let entries: Vec<Entry<'_>> =
        tensors.map(|t| Entry::new(&t.name, &t.shape, move || rounded(t))).collect();
    write::tensors(&entries, Stored::F32, out)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_of_one_stream() {
        let n = 2 * PIECE + 77;
        let t = Tensor { name: "model.x.weight".into(), shape: vec![n, 1], offset: 0, group: "all" };
        let mut rng = ChaCha8Rng::from_seed(Sha256::digest("5/model.x.weight").into());
        let expected: Vec<f32> = (0..n).map(|_| (normal(&mut rng) * 0.02) as f32).collect();
        assert!(draw(&t, 5, 0.02) == expected);
    }
}
