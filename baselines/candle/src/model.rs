//! The decoder, forward only; autograd does the rest.

use candle_core::Tensor;
use chronibench_protocol::spec::{LoraArgs, Method, ModelSpec};

use crate::{
    batch::Batch,
    config::Config,
    error::ArmError,
    gemm::Products,
    lora,
    ops::{rms_norm, rope, softmax},
    weights::{Parameters, model_tensors},
};

type Result<T> = std::result::Result<T, ArmError>;

/// A decoder with its parameters.
pub struct Model {
    /// Architecture.
    pub config: Config,
    /// Model tensors, and adapters if there are any.
    pub parameters: Parameters,
    /// Every matrix product of the forward goes through here.
    pub products: Products,
    lora_scaling: f64,
}

impl Model {
    /// Reads config, weights and, for LoRA, adapters. Full fine-tuning trains every tensor, LoRA the adapters only.
    ///
    /// # Errors
    /// A file cannot be read, does not fit the config, or asks for something unsupported.
    pub fn load(spec: &ModelSpec, method: &Method) -> Result<Self> {
        let config = Config::load(&spec.config)?;
        let full = matches!(method, Method::Full {});
        let mut parameters = Parameters::load(&spec.weights, &model_tensors(&config), full)?;
        let mut lora_scaling = 0.0;
        if let Method::Lora(args) = method {
            parameters.extend(load_adapters(&config, args)?);
            lora_scaling = lora::scaling(args);
        }
        Ok(Self { config, parameters, products: Products::default(), lora_scaling })
    }

    /// Logits `[N, V]` of every slot.
    ///
    /// # Errors
    /// candle refuses an operation.
    pub fn logits(&self, batch: &Batch) -> Result<Tensor> {
        let c = &self.config;
        let embedding = self.parameters.get("model.embed_tokens.weight")?;
        let mut x = embedding.index_select(&batch.ids, 0)?;
        for layer in 0..c.layers {
            let at = format!("model.layers.{layer}");
            let normed = self.norm(&x, &format!("{at}.input_layernorm"))?;
            x = (x + self.attention(&normed, &format!("{at}.self_attn"), batch)?)?;
            let normed = self.norm(&x, &format!("{at}.post_attention_layernorm"))?;
            x = (x + self.mlp(&normed, &format!("{at}.mlp"))?)?;
        }
        let x = self.norm(&x, "model.norm")?;
        let head = if c.tied { embedding } else { self.parameters.get("lm_head.weight")? };
        Ok(self.products.linear(&x, head)?)
    }

    /// `[N, D]` → `[N, D]`: eager attention with grouped keys and values.
    ///
    /// The query heads of a group are stacked into one matrix, so that keys and values are used as they are instead of
    /// being repeated for every head.
    fn attention(&self, x: &Tensor, at: &str, batch: &Batch) -> Result<Tensor> {
        let c = &self.config;
        let (r, s, h, g, k) = (batch.rows, batch.slots, c.heads, c.kv_heads, c.head_dim);
        let geometry = &batch.geometry;
        let split = |name: &str, heads: usize| -> Result<Tensor> {
            let y = self.linear(x, &format!("{at}.{name}_proj"))?;
            Ok(y.reshape((r, s, heads, k))?.transpose(1, 2)?)
        };
        let q = self.head_norm(split("q", h)?.reshape((r, g, h / g * s, k))?, &format!("{at}.q_norm"))?;
        let keys = self.head_norm(split("k", g)?.contiguous()?, &format!("{at}.k_norm"))?;
        let values = split("v", g)?.contiguous()?;

        // Scaling q instead of the scores touches K numbers a query instead of S.
        let q = (rope(&q, &geometry.cos_q, &geometry.sin_q)? * (k as f64).powf(-0.5))?;
        let keys = rope(&keys, &geometry.cos_k, &geometry.sin_k)?;
        let scores = (self.products.matmul(&q, &keys.t()?)? + &geometry.mask)?;
        let mixed = self.products.matmul(&softmax(&scores)?, &values)?;
        let mixed = mixed.reshape((r, h, s, k))?.transpose(1, 2)?.reshape((r * s, h * k))?;
        self.linear(&mixed, &format!("{at}.o_proj"))
    }

    /// SwiGLU, `[N, D]` → `[N, D]`.
    fn mlp(&self, x: &Tensor, at: &str) -> Result<Tensor> {
        let gate = self.linear(x, &format!("{at}.gate_proj"))?.silu()?;
        let up = self.linear(x, &format!("{at}.up_proj"))?;
        self.linear(&(gate * up)?, &format!("{at}.down_proj"))
    }

    /// A projection with its bias and its adapter, as far as it has them.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let mut y = self.products.linear(x, self.parameters.get(&format!("{name}.weight"))?)?;
        if let Some(bias) = self.parameters.find(&format!("{name}.bias")) {
            y = y.broadcast_add(bias)?;
        }
        let (a, b) = lora::names(name);
        if let (Some(a), Some(b)) = (self.parameters.find(&a), self.parameters.find(&b)) {
            // The factor goes on the [N, r] side, the smallest tensor on the way.
            let down = (self.products.linear(x, a)? * self.lora_scaling)?;
            y = (y + self.products.linear(&down, b)?)?;
        }
        Ok(y)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let gain = self.parameters.get(&format!("{name}.weight"))?;
        Ok(rms_norm(x, gain, self.config.rms_norm_eps)?)
    }

    fn head_norm(&self, x: Tensor, name: &str) -> Result<Tensor> {
        if self.config.qk_norm { self.norm(&x, name) } else { Ok(x) }
    }
}

fn load_adapters(config: &Config, args: &LoraArgs) -> Result<Parameters> {
    let expected = lora::adapter_tensors(config, args)?;
    let path = args.adapter_weights.as_ref().ok_or_else(|| {
        let hint = "give a safetensors file with the starting adapters under their PEFT names";
        ArmError::invalid(
            "LoRA starts from given adapters, and there are none",
            "method.adapter_weights",
            hint,
        )
    })?;
    Parameters::load(path, &expected, true)
}
