//! Model architecture from a Hugging Face `config.json`.

use std::{f64::consts::TAU, path::Path};

use serde::Deserialize;

use crate::error::ArmError;

/// What the forward needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `V`.
    pub vocab_size: usize,
    /// `D`.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub layers: usize,
    /// `H`.
    pub heads: usize,
    /// `G`.
    pub kv_heads: usize,
    /// `K`.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Radians per position of each of the `K/2` rotary pairs, long-context scaling applied.
    pub inv_freq: Vec<f64>,
    /// The LM head is the embedding.
    pub tied: bool,
    /// Biases on the q, k and v projections (Qwen2).
    pub qkv_bias: bool,
    /// RMSNorm on every query and key head (Qwen3).
    pub qk_norm: bool,
}

/// The part of a `config.json` that matters here.
#[derive(Deserialize)]
struct HfConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeScaling>,
    rope_parameters: Option<RopeScaling>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
}

fn silu() -> String {
    "silu".into()
}

fn default_eps() -> f64 {
    1e-6
}

/// `rope_scaling`, or `rope_parameters` in newer configs, where it also holds the base.
#[derive(Deserialize)]
struct RopeScaling {
    rope_theta: Option<f64>,
    #[serde(alias = "type", default = "default_rope")]
    rope_type: String,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

fn default_rope() -> String {
    "default".into()
}

impl Config {
    /// Reads a `config.json` of a Qwen2/2.5, Llama 2/3, SmolLM2 or Qwen3 model.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or asks for something that would change the model's output and is not
    /// supported here.
    pub fn load(path: &Path) -> Result<Self, ArmError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ArmError::Io { path: path.into(), source })?;
        serde_json::from_str::<HfConfig>(&text).map_err(|e| e.to_string()).and_then(Self::from_hf).map_err(
            |what| {
                let hint =
                    "this arm runs Qwen2/2.5, Llama 2/3, SmolLM2 and Qwen3 with SiLU and full attention";
                ArmError::invalid(what, path.display().to_string(), hint)
            },
        )
    }

    fn from_hf(hf: HfConfig) -> Result<Self, String> {
        let (qkv_bias, qk_norm) = match hf.model_type.as_str() {
            "qwen2" => (true, false),
            "llama" => (false, false),
            "qwen3" => (false, true),
            other => return Err(format!("model_type '{other}' is not supported")),
        };
        let unsupported = [
            ("hidden_act", hf.hidden_act != "silu"),
            ("attention_bias", hf.attention_bias && !qkv_bias),
            ("mlp_bias", hf.mlp_bias),
            ("use_sliding_window", hf.use_sliding_window),
        ];
        if let Some((name, _)) = unsupported.iter().find(|(_, set)| *set) {
            return Err(format!("the value of {name} is not supported"));
        }
        let heads = hf.num_attention_heads;
        let kv_heads = hf.num_key_value_heads.unwrap_or(heads);
        let sizes =
            [hf.vocab_size, hf.hidden_size, hf.intermediate_size, hf.num_hidden_layers, heads, kv_heads];
        if sizes.contains(&0) || !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "sizes must be positive and {heads} heads a multiple of {kv_heads} key/value heads"
            ));
        }
        let head_dim = hf.head_dim.unwrap_or(hf.hidden_size / heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(format!("head_dim {head_dim} is not a positive even number"));
        }
        Ok(Self {
            vocab_size: hf.vocab_size,
            hidden_size: hf.hidden_size,
            intermediate_size: hf.intermediate_size,
            layers: hf.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: hf.rms_norm_eps,
            inv_freq: inv_freq(hf.rope_theta, hf.rope_parameters.or(hf.rope_scaling).as_ref(), head_dim)?,
            tied: hf.tie_word_embeddings,
            qkv_bias,
            qk_norm,
        })
    }
}

fn inv_freq(theta: Option<f64>, scaling: Option<&RopeScaling>, head_dim: usize) -> Result<Vec<f64>, String> {
    let theta = scaling.and_then(|s| s.rope_theta).or(theta).unwrap_or(10_000.0);
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
    match scaling {
        None => Ok(plain),
        Some(s) if s.rope_type == "default" => Ok(plain),
        Some(s) if s.rope_type == "llama3" => llama3(plain, s),
        Some(s) => Err(format!("rope type '{}' is not supported", s.rope_type)),
    }
}

/// Llama 3.1's context extension: wavelengths shorter than `original / high_freq_factor` stay, those longer than
/// `original / low_freq_factor` are stretched by `factor`, and between the two the frequency is interpolated.
fn llama3(plain: Vec<f64>, s: &RopeScaling) -> Result<Vec<f64>, String> {
    let (Some(factor), Some(low), Some(high), Some(original)) =
        (s.factor, s.low_freq_factor, s.high_freq_factor, s.original_max_position_embeddings)
    else {
        return Err("rope type llama3 needs factor, low_freq_factor, high_freq_factor and \
                    original_max_position_embeddings"
            .into());
    };
    let scale = |f: f64| {
        let keep = ((original * f / TAU - low) / (high - low)).clamp(0.0, 1.0);
        keep * f + (1.0 - keep) * f / factor
    };
    Ok(plain.into_iter().map(scale).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &str) -> Result<Config, String> {
        let json = format!(
            r#"{{"model_type":"llama","vocab_size":10,"hidden_size":16,"intermediate_size":8,
               "num_hidden_layers":1,"num_attention_heads":4{extra}}}"#
        );
        serde_json::from_str(&json).map_err(|e| e.to_string()).and_then(Config::from_hf)
    }

    #[test]
    fn defaults_follow_hugging_face() {
        let c = parse("").unwrap();
        assert_eq!((c.kv_heads, c.head_dim, c.tied, c.qkv_bias, c.qk_norm), (4, 4, false, false, false));
        assert_eq!(c.inv_freq, vec![1.0, 0.01]);
        assert_eq!(parse(r#","rope_parameters":{"rope_theta":1e6}"#).unwrap().inv_freq, vec![1.0, 0.001]);
    }

    #[test]
    fn llama3_scaling_has_three_regimes() {
        let c = parse(
            r#","head_dim":128,"rope_theta":500000.0,"rope_scaling":{"rope_type":"llama3","factor":8.0,
               "low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192}"#,
        )
        .unwrap();
        let plain = |i: usize| 500_000f64.powf(-2.0 * i as f64 / 128.0);
        assert_eq!(c.inv_freq[0], plain(0), "short waves stay");
        assert_eq!(c.inv_freq[63], plain(63) / 8.0, "long waves are stretched");
        // Pair 32: 8192 positions are 1.8438 of its turns, so (1.8438 - 1)/(4 - 1) of the plain frequency is kept.
        let ratio = c.inv_freq[32] / plain(32);
        assert!((ratio - (0.125 + 0.875 * 0.28128)).abs() < 1e-4, "{ratio}");
    }

    #[test]
    fn what_cannot_be_run_is_named() {
        for (extra, word) in [
            (r#","hidden_act":"gelu""#, "hidden_act"),
            (r#","attention_bias":true"#, "attention_bias"),
            (r#","num_key_value_heads":3"#, "multiple"),
            (r#","rope_scaling":{"type":"yarn","factor":4.0}"#, "yarn"),
            (r#","rope_scaling":{"rope_type":"llama3"}"#, "low_freq_factor"),
            (r#","head_dim":3"#, "head_dim"),
        ] {
            let e = parse(extra).unwrap_err();
            assert!(e.contains(word), "{e}");
        }
    }
}
