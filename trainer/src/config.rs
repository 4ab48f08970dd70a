//! Model architecture, read from a Hugging Face `config.json`.

use std::path::Path;

use serde::Deserialize;

use crate::error::Error;

/// A decoder-only transformer: RMSNorm, rotary attention with grouped keys and values, SwiGLU.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Qwen2, Llama or Qwen3.
    pub family: Family,
    /// `V`.
    pub vocab_size: usize,
    /// `D`.
    pub hidden_size: usize,
    /// `F`.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// `H`.
    pub heads: usize,
    /// `G`.
    pub kv_heads: usize,
    /// `K`.
    pub head_dim: usize,
    /// Added under the root in RMSNorm.
    pub rms_norm_eps: f32,
    /// Inverse frequencies of the rotary embedding, `K/2` of them, scaling applied.
    pub inv_freq: Vec<f64>,
    /// The LM head is the embedding.
    pub tied: bool,
    /// Longest position the model was made for.
    pub max_positions: usize,
    /// Standard deviation of freshly drawn matrices.
    pub initializer_range: f64,
}

/// Widest that a model may be. Sizes within it do not overflow, however they are multiplied.
const MAX_WIDTH: usize = 1 << 20;

/// What tells the supported families apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Qwen2 and Qwen2.5: bias on q, k and v.
    Qwen2,
    /// Llama 2/3, SmolLM2: no biases.
    Llama,
    /// Qwen3: RMSNorm on every query and key head.
    Qwen3,
}

impl Family {
    const NAMES: [(&'static str, Family); 3] =
        [("qwen2", Family::Qwen2), ("llama", Family::Llama), ("qwen3", Family::Qwen3)];

    /// Every supported `model_type`.
    pub fn names() -> Vec<&'static str> {
        Self::NAMES.map(|(name, _)| name).to_vec()
    }

    /// Bias on the q, k and v projections.
    pub fn qkv_bias(self) -> bool {
        self == Family::Qwen2
    }

    /// Positions of a model whose config does not say: the defaults of Transformers.
    fn positions(self) -> usize {
        match self {
            Family::Qwen2 | Family::Qwen3 => 32_768,
            Family::Llama => 2048,
        }
    }

    /// RMSNorm on query and key heads.
    pub fn qk_norm(self) -> bool {
        self == Family::Qwen3
    }
}

/// The fields of `config.json` that matter here; HF configs hold many more.
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
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    tie_word_embeddings: Option<bool>,
    max_position_embeddings: Option<usize>,
    initializer_range: Option<f64>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_sliding_window: Option<bool>,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl ModelConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// The file cannot be read, is not JSON, or asks for something that is not supported; nothing is ignored silently
    /// that would change the model's output.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, &e))?;
        Self::parse(&text, path)
    }

    /// Checks the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let at = || path.display().to_string();
        let hf: HfConfig = serde_json::from_str(text).map_err(|e| {
            Error::new(format!("not a usable model config: {e}"), at())
                .hint("give a Hugging Face config.json of a Qwen2, Llama or Qwen3 model")
        })?;
        Self::from_hf(&hf).map_err(|what| {
            Error::new(what, at()).hint(
                "supported: Qwen2/2.5, Llama 2/3 and SmolLM2, Qwen3, with SiLU, without sliding windows",
            )
        })
    }

    fn from_hf(hf: &HfConfig) -> Result<Self, String> {
        let family = Family::NAMES
            .iter()
            .find(|(name, _)| *name == hf.model_type)
            .map(|&(_, f)| f)
            .ok_or_else(|| format!("model_type '{}' is not supported", hf.model_type))?;
        if hf.hidden_act.as_deref().is_some_and(|a| a != "silu") {
            return Err(format!("hidden_act '{}' is not supported", hf.hidden_act.as_deref().unwrap_or("")));
        }
        for (name, on) in [
            ("attention_bias", hf.attention_bias == Some(true) && family != Family::Qwen2),
            ("mlp_bias", hf.mlp_bias == Some(true)),
            ("use_sliding_window", hf.use_sliding_window == Some(true)),
        ] {
            if on {
                return Err(format!("{name}: true is not supported"));
            }
        }
        let heads = hf.num_attention_heads;
        let kv_heads = hf.num_key_value_heads.unwrap_or(heads);
        for (name, n, most) in [
            ("vocab_size", hf.vocab_size, 1 << 24),
            ("hidden_size", hf.hidden_size, MAX_WIDTH),
            ("intermediate_size", hf.intermediate_size, MAX_WIDTH),
            ("num_hidden_layers", hf.num_hidden_layers, 1 << 10),
            ("num_attention_heads", heads, MAX_WIDTH),
            ("num_key_value_heads", kv_heads, MAX_WIDTH),
        ] {
            if n == 0 {
                return Err(format!("{name} is 0"));
            }
            if n > most {
                return Err(format!("{name} is {n}, and no model has more than {most}"));
            }
        }
        let head_dim = hf.head_dim.unwrap_or(hf.hidden_size / heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!("{heads} attention heads cannot share {kv_heads} key/value heads evenly"));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(format!("head_dim {head_dim} must be even and positive"));
        }
        if heads.saturating_mul(head_dim) > MAX_WIDTH {
            return Err(format!(
                "{heads} heads of {head_dim}, and no model has more than {MAX_WIDTH} in all"
            ));
        }
        Ok(Self {
            family,
            vocab_size: hf.vocab_size,
            hidden_size: hf.hidden_size,
            intermediate_size: hf.intermediate_size,
            layers: hf.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: hf.rms_norm_eps.unwrap_or(1e-6) as f32,
            inv_freq: hf.inv_freq(head_dim)?,
            tied: hf.tie_word_embeddings.unwrap_or(false),
            max_positions: hf.max_position_embeddings.unwrap_or(family.positions()),
            initializer_range: hf.initializer_range.unwrap_or(0.02),
        })
    }

    /// `Q = (H + 2G)·K`: width of the packed query, key and value projections.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// `H·K`: width of the attention output.
    pub fn attention_width(&self) -> usize {
        self.heads * self.head_dim
    }
}

impl HfConfig {
    /// Inverse frequencies; Transformers 5 keeps them under `rope_parameters`, older configs at the top level.
    fn inv_freq(&self, head_dim: usize) -> Result<Vec<f64>, String> {
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = rope.and_then(|r| r.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
        match rope.and_then(|r| r.rope_type.as_deref()).unwrap_or("default") {
            "default" => Ok(plain.collect()),
            "llama3" => {
                let rope = rope.expect("a rope type comes from a rope section");
                let scaling = Llama3Scaling::new(rope)?;
                Ok(plain.map(|f| scaling.apply(f)).collect())
            }
            other => Err(format!("rope type '{other}' is not supported (default, llama3)")),
        }
    }
}

/// Llama 3's frequency-dependent context extension (`rope_type: llama3`).
pub(crate) struct Llama3Scaling {
    pub(crate) factor: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) original: f64,
}

impl Llama3Scaling {
    fn new(r: &Rope) -> Result<Self, String> {
        let need = |v: Option<f64>, name: &str| v.ok_or_else(|| format!("rope type llama3 needs {name}"));
        Ok(Self {
            factor: need(r.factor, "factor")?,
            low: need(r.low_freq_factor, "low_freq_factor")?,
            high: need(r.high_freq_factor, "high_freq_factor")?,
            original: need(r.original_max_position_embeddings, "original_max_position_embeddings")?,
        })
    }

    /// Long wavelengths are stretched by `factor`, short ones kept, those between blended.
    pub(crate) fn apply(&self, inv_freq: f64) -> f64 {
        let turns = self.original * inv_freq / (2.0 * std::f64::consts::PI);
        if turns > self.high {
            inv_freq
        } else if turns < self.low {
            inv_freq / self.factor
        } else {
            let smooth = (turns - self.low) / (self.high - self.low);
            (1.0 - smooth) * inv_freq / self.factor + smooth * inv_freq
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &str) -> Result<ModelConfig, String> {
        of("llama", extra)
    }

    fn of(family: &str, extra: &str) -> Result<ModelConfig, String> {
        let json = format!(
            r#"{{"model_type":"{family}","vocab_size":10,"hidden_size":16,"intermediate_size":8,
               "num_hidden_layers":1,"num_attention_heads":4{extra}}}"#
        );
        ModelConfig::from_hf(&serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn defaults_follow_hugging_face() {
        let c = parse("").unwrap();
        assert_eq!((c.kv_heads, c.head_dim, c.tied), (4, 4, false));
        assert_eq!(c.inv_freq, vec![1.0, 0.01]);
        for (family, positions) in [("llama", 2048), ("qwen2", 32_768), ("qwen3", 32_768)] {
            assert_eq!(of(family, "").unwrap().max_positions, positions);
            let own = of(family, r#","max_position_embeddings":77"#).unwrap();
            assert_eq!(own.max_positions, 77);
        }
    }

    #[test]
    fn unsupported_settings_are_named() {
        for (extra, word) in [
            (r#","hidden_act":"gelu""#, "gelu"),
            (r#","attention_bias":true"#, "attention_bias"),
            (r#","num_key_value_heads":3"#, "3 key/value"),
            (r#","rope_scaling":{"rope_type":"yarn"}"#, "yarn"),
            (r#","rope_scaling":{"rope_type":"llama3"}"#, "factor"),
            (r#","num_attention_heads_":0,"num_key_value_heads":0"#, "is 0"),
            (r#","head_dim":1000000000000000000"#, "no model has more"),
        ] {
            let e = parse(extra).unwrap_err();
            assert!(e.contains(word), "{e}");
        }
    }
}
