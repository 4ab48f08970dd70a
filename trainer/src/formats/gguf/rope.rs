//! Llama 3's rotary scaling, from the factors that llama.cpp makes of it (`rope_freqs.weight`): inverse frequencies are divided by them.

use serde_json::{Value as Json, json};

use crate::config::Llama3Scaling;

/// What Meta published with every model of Llama 3.1, 3.2 and 3.3: a file has the factors that follow from it, and not these.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const ORIGINAL: f64 = 8192.0;

/// Factors are stored as f32, and computed by some in it.
const RELATIVE: f64 = 1e-4;

/// `rope_scaling` of `config.json` for heads of `2 × factors`; nothing where every factor is 1.
///
/// # Errors
/// No such scaling has these factors; what is wrong with the first that disagrees.
pub(super) fn scaling(factors: &[f32], theta: f64, head_dim: usize) -> Result<Option<Json>, String> {
    if factors.len() != head_dim / 2 {
        return Err(format!("has {} factors for heads of {head_dim}, and not a half", factors.len()));
    }
    let largest = factors.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let llama3 = Llama3Scaling { factor: f64::from(largest), low: LOW, high: HIGH, original: ORIGINAL };
    for (i, factor) in factors.iter().enumerate() {
        let plain = theta.powf(-2.0 * i as f64 / head_dim as f64);
        let expected = plain / llama3.apply(plain);
        let near = (f64::from(*factor) - expected).abs() <= RELATIVE * expected;
        if !near {
            return Err(format!(
                "has factor {i} as {factor}, where Llama 3's scaling by {largest} (low_freq_factor {LOW}, high_freq_factor {HIGH}, \
                 {ORIGINAL} original positions) has {expected:.6}"
            ));
        }
    }
    Ok((largest != 1.0).then(|| {
        json!({
            "rope_type": "llama3",
            "factor": llama3.factor,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL as u64,
        })
    }))
}
