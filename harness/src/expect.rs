//! What a model and its adapters must consist of, told from the Hugging Face config alone.
//!
//! Written apart from the trainer on purpose: a trainer that forgets a tensor, or freezes one, must not be able to
//! teach the harness the same mistake.

use std::path::Path;

use chronibench_protocol::{
    event::TensorInfo,
    record::ModelShape,
    spec::{LoraArgs, Method},
};
use serde::Deserialize;

use crate::error::{AtPath, Error, Result};

/// The numbers of a `config.json` that decide names and shapes.
#[derive(Clone, Debug, Deserialize)]
pub struct HfConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default)]
    tie_word_embeddings: bool,
}

const FAMILIES: [&str; 3] = ["qwen2", "llama", "qwen3"];

impl HfConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// It cannot be read, lacks a number, or is of a family whose tensors are not known here.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).at(path)?;
        let at = path.display().to_string();
        let config: Self = serde_json::from_str(&text).map_err(|e| {
            Error::usage(format!("not a model config: {e}"), &at)
                .hint("give the model's Hugging Face config.json")
        })?;
        if !FAMILIES.contains(&config.model_type.as_str()) {
            return Err(Error::usage(format!("model_type '{}' is not supported", config.model_type), at)
                .hint(crate::scenario::source::suggestion(&config.model_type, &FAMILIES)));
        }
        if config.num_attention_heads == 0 {
            return Err(Error::usage("num_attention_heads is 0", at).hint("check the config"));
        }
        Ok(config)
    }

    fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    fn attention_width(&self) -> usize {
        self.num_attention_heads * self.head_dim()
    }

    fn kv_width(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads) * self.head_dim()
    }

    /// Place in a block, outputs and inputs of one of the seven projections.
    fn projection(&self, name: &str) -> (&'static str, usize, usize) {
        let (d, f, a, kv) =
            (self.hidden_size, self.intermediate_size, self.attention_width(), self.kv_width());
        match name {
            "q_proj" => ("self_attn", a, d),
            "k_proj" | "v_proj" => ("self_attn", kv, d),
            "o_proj" => ("self_attn", d, a),
            "gate_proj" | "up_proj" => ("mlp", f, d),
            "down_proj" => ("mlp", d, f),
            other => unreachable!("target modules are checked when a scenario is read: {other}"),
        }
    }

    /// Every tensor of the model by its Hugging Face name; a tied LM head is the embedding.
    pub fn model_tensors(&self) -> Vec<TensorInfo> {
        let d = self.hidden_size;
        let mut all = vec![tensor("model.embed_tokens.weight", &[self.vocab_size, d])];
        for layer in 0..self.num_hidden_layers {
            let at = |rest: &str| format!("model.layers.{layer}.{rest}");
            all.push(tensor(at("input_layernorm.weight"), &[d]));
            for name in chronibench_protocol::spec::LORA_TARGETS {
                let (part, out, input) = self.projection(name);
                all.push(tensor(at(&format!("{part}.{name}.weight")), &[out, input]));
                if self.model_type == "qwen2" && ["q_proj", "k_proj", "v_proj"].contains(&name) {
                    all.push(tensor(at(&format!("{part}.{name}.bias")), &[out]));
                }
            }
            if self.model_type == "qwen3" {
                all.push(tensor(at("self_attn.q_norm.weight"), &[self.head_dim()]));
                all.push(tensor(at("self_attn.k_norm.weight"), &[self.head_dim()]));
            }
            all.push(tensor(at("post_attention_layernorm.weight"), &[d]));
        }
        all.push(tensor("model.norm.weight", &[d]));
        if !self.tie_word_embeddings {
            all.push(tensor("lm_head.weight", &[self.vocab_size, d]));
        }
        all
    }

    /// Every adapter tensor by its PEFT name.
    pub fn adapter_tensors(&self, lora: &LoraArgs) -> Vec<TensorInfo> {
        let mut all = Vec::new();
        for layer in 0..self.num_hidden_layers {
            for name in &lora.target_modules {
                let (part, out, input) = self.projection(name);
                let at = format!("base_model.model.model.layers.{layer}.{part}.{name}");
                all.push(tensor(format!("{at}.lora_A.weight"), &[lora.r, input]));
                all.push(tensor(format!("{at}.lora_B.weight"), &[out, lora.r]));
            }
        }
        all
    }

    /// The tensors that a method trains.
    pub fn trainable(&self, method: &Method) -> Vec<TensorInfo> {
        match method {
            Method::Full {} => self.model_tensors(),
            Method::Lora(lora) => self.adapter_tensors(lora),
        }
    }

    /// The numbers that FLOP models need.
    pub fn shape(&self) -> ModelShape {
        let per_block: usize = chronibench_protocol::spec::LORA_TARGETS
            .iter()
            .map(|name| {
                let (_, out, input) = self.projection(name);
                out * input
            })
            .sum();
        ModelShape {
            layers: self.num_hidden_layers as u64,
            attention_width: self.attention_width() as u64,
            block_matmul_params: (per_block * self.num_hidden_layers) as u64,
            head_params: (self.vocab_size * self.hidden_size) as u64,
            total_params: self.model_tensors().iter().map(TensorInfo::numel).sum(),
        }
    }
}

fn tensor(name: impl Into<String>, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.into(), shape: shape.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published configuration of Qwen2.5-0.5B.
    fn qwen25_05b() -> HfConfig {
        serde_json::from_str(
            r#"{"model_type":"qwen2","vocab_size":151936,"hidden_size":896,"intermediate_size":4864,
               "num_hidden_layers":24,"num_attention_heads":14,"num_key_value_heads":2,"tie_word_embeddings":true}"#,
        )
        .unwrap()
    }

    fn count(tensors: &[TensorInfo]) -> u64 {
        tensors.iter().map(TensorInfo::numel).sum()
    }

    #[test]
    fn qwen25_05b_has_its_published_size() {
        let c = qwen25_05b();
        assert_eq!(count(&c.model_tensors()), 494_032_768);
        assert_eq!(c.shape().total_params, 494_032_768);
    }

    #[test]
    fn lora_of_rank_32_on_all_projections() {
        let lora: LoraArgs = serde_json::from_str(r#"{"r":32,"lora_alpha":64}"#).unwrap();
        let tensors = qwen25_05b().adapter_tensors(&lora);
        assert_eq!(count(&tensors), 17_596_416);
        assert_eq!(tensors.len(), 24 * 7 * 2);
    }

    #[test]
    fn families_differ_where_they_should() {
        let of = |family: &str, tied: bool| {
            HfConfig { model_type: family.into(), tie_word_embeddings: tied, ..qwen25_05b() }.model_tensors()
        };
        let has = |t: &[TensorInfo], end: &str| t.iter().any(|t| t.name.ends_with(end));
        assert!(has(&of("qwen2", true), "q_proj.bias") && !has(&of("llama", true), ".bias"));
        assert!(has(&of("qwen3", true), "q_norm.weight") && !has(&of("qwen2", true), "q_norm.weight"));
        assert!(has(&of("llama", false), "lm_head.weight") && !has(&of("llama", true), "lm_head.weight"));
    }
}
