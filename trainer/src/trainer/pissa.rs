//! PiSSA (arXiv 2404.02948): adapters that begin as a weight's largest singular values with their vectors, on a base that is the rest.
//!
//! `W = W_res + s·B₀·A₀`, where `A₀ = √(Σ_r/s)·V_rᵀ` and `B₀ = U_r·√(Σ_r/s)`. The base of a training is then `W_res`, which nobody else
//! has. So what is saved is the change alone, as an adapter of twice the rank on `W` itself:
//! `s·B·A − s·B₀·A₀ = s·[B −B₀]·[A; A₀]`, PEFT's own conversion.

use chronibench_protocol::spec::LoraArgs;
use rayon::prelude::*;

use super::Trainer;
use crate::{
    backend::Backend,
    config::ModelConfig,
    error::Error,
    formats::write::{self, Entry, Stored},
    init,
    lora::{self, Adapters, Size},
    params::{self, PROJECTION_GROUPS, Tensor},
    svd::{self, Matrix},
};

/// What a weight becomes.
struct Split {
    /// `[r, K]`.
    a: Vec<f32>,
    /// `[N, r]`.
    b: Vec<f32>,
    /// `[N, K]`.
    rest: Vec<f32>,
}

impl<B: Backend> Trainer<B> {
    /// Makes the adapters the largest part of the weights that are there, which become the rest. What they begin as is kept for
    /// [`save_update`](Self::save_update).
    ///
    /// # Errors
    /// A rank that exceeds a weight's, or the device fails.
    pub fn init_pissa(
        &mut self,
        c: &ModelConfig,
        lora: &LoraArgs,
        niter: Option<u32>,
        seed: u64,
    ) -> Result<(), Error> {
        let sizes = Adapters::of(c, lora)?;
        let values = self.model.adapters.expect("LoRA has adapters");
        let layout = self.adapters.clone().expect("as above");
        for layer in 0..c.layers {
            let mut weights = Vec::new();
            for name in PROJECTION_GROUPS.into_iter().flatten() {
                let Some(size) = sizes.get(layer, name) else { continue };
                let weight = format!("{}.weight", params::projection(layer, name));
                let tensor = self.layout.get(&weight).expect("every projection has a weight");
                let at = self.model.weights.slice(tensor.offset, tensor.len());
                weights.push((*name, size, tensor.clone(), at, self.backend.read(at)?));
            }
            let split =
                |(_, size, t, _, w): &(&str, Size, Tensor, _, Vec<f32>)| split(t, w, *size, niter, seed);
            let parts = weights.par_iter().map(split).collect::<Result<Vec<_>, Error>>()?;
            for ((name, _, _, at, _), part) in weights.iter().zip(parts) {
                self.backend.write(*at, &part.rest)?;
                for (ab, factor) in [('A', part.a), ('B', part.b)] {
                    let t = layout.get(&params::adapter(layer, name, ab)).expect("of the same settings");
                    self.backend.write(values.slice(t.offset, t.len()), &factor)?;
                }
            }
        }
        // As the device has them.
        self.began = Some(self.backend.read(values)?);
        Ok(())
    }

    /// Writes the adapters for the weights that training began with: as they are, or, where they began as a part of these, by what they
    /// have changed.
    ///
    /// # Errors
    /// The file cannot be written, or the device fails.
    pub fn save_update(&self, path: &std::path::Path) -> Result<(), Error> {
        let (Some(began), Some(layout), Some(values)) = (&self.began, &self.adapters, self.model.adapters)
        else {
            return self.save_trainable(path);
        };
        let doubled = layout.tensors.iter().map(|t| {
            let shape = match t.group {
                "lora_A" => [2 * t.shape[0], t.shape[1]],
                _ => [t.shape[0], 2 * t.shape[1]],
            };
            let began = &began[t.offset..t.offset + t.len()];
            let now = move || self.backend.read(values.slice(t.offset, t.len()));
            Entry::new(&t.name, &shape, move || Ok(beside(t, &now()?, began)))
        });
        write::tensors(&doubled.collect::<Vec<_>>(), Stored::F32, path)
    }

    /// The settings that go with what [`save_update`](Self::save_update) writes.
    pub fn update_settings(&self, lora: &LoraArgs) -> LoraArgs {
        if self.began.is_some() { lora::doubled(lora) } else { lora.clone() }
    }
}

/// `[A; A₀]`, or `[B −B₀]`.
fn beside(t: &Tensor, now: &[f32], began: &[f32]) -> Vec<f32> {
    if t.group == "lora_A" {
        return [now, began].concat();
    }
    let rows = now.chunks(t.shape[1]).zip(began.chunks(t.shape[1]));
    rows.flat_map(|(now, began)| now.iter().copied().chain(began.iter().map(|x| -x))).collect()
}

fn split(
    t: &Tensor,
    w: &[f32],
    Size { r, scale }: Size,
    niter: Option<u32>,
    seed: u64,
) -> Result<Split, Error> {
    let (n, k) = (t.shape[0], t.shape[1]);
    if r > n.min(k) {
        return Err(Error::new(format!("rank {r} exceeds that of a weight of {n} x {k}"), t.name.clone())
            .hint("give a smaller r, or another rank to this module by rank_pattern"));
    }
    let start = Tensor {
        name: format!("pissa/{}", t.name),
        shape: vec![svd::subspace(r, niter, (n, k)), k],
        ..t.clone()
    };
    let start = init::normal_values(&start, seed);
    let start = Matrix::from_fn(start.len() / k, k, |i| f64::from(start[i]));
    let whole = Matrix::from_fn(n, k, |i| f64::from(w[i]));
    let found = svd::largest(&whole, r, niter, &start);
    let roots: Vec<f64> = found.s.iter().map(|s| (s / f64::from(scale)).sqrt()).collect();
    let a: Vec<f32> = (0..r * k).map(|i| (roots[i / k] * found.v.data[i]) as f32).collect();
    let b: Vec<f32> = (0..n * r).map(|i| (roots[i % r] * found.u.row(i % r)[i / r]) as f32).collect();
    // In f64 from the factors as they are, so that the parts add up to the weight within one rounding.
    let mut rest = whole.data;
    for (row, b) in rest.chunks_mut(k).zip(b.chunks(r)) {
        for (b, a) in b.iter().zip(a.chunks(k)) {
            let factor = f64::from(scale) * f64::from(*b);
            row.iter_mut().zip(a).for_each(|(x, a)| *x -= factor * f64::from(*a));
        }
    }
    Ok(Split { a, b, rest: rest.into_iter().map(|x| x as f32).collect() })
}
