//! Named tensors, from and to safetensors files.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor, Var, safetensors};
use chronibench_protocol::event::TensorInfo;

use crate::{config::Config, error::ArmError};

/// Every tensor of a model in model order, by its Hugging Face name; a tied head has none of its own.
pub fn model_tensors(c: &Config) -> Vec<TensorInfo> {
    let (d, f, k) = (c.hidden_size, c.intermediate_size, c.head_dim);
    let mut all = vec![info("model.embed_tokens.weight", [c.vocab_size, d])];
    for layer in 0..c.layers {
        let mut add = |name: &str, shape: &[usize]| {
            all.push(TensorInfo { name: format!("model.layers.{layer}.{name}"), shape: shape.to_vec() });
        };
        add("input_layernorm.weight", &[d]);
        for (name, width) in [("q_proj", c.heads * k), ("k_proj", c.kv_heads * k), ("v_proj", c.kv_heads * k)]
        {
            add(&format!("self_attn.{name}.weight"), &[width, d]);
            if c.qkv_bias {
                add(&format!("self_attn.{name}.bias"), &[width]);
            }
        }
        if c.qk_norm {
            add("self_attn.q_norm.weight", &[k]);
            add("self_attn.k_norm.weight", &[k]);
        }
        add("self_attn.o_proj.weight", &[d, c.heads * k]);
        add("post_attention_layernorm.weight", &[d]);
        add("mlp.gate_proj.weight", &[f, d]);
        add("mlp.up_proj.weight", &[f, d]);
        add("mlp.down_proj.weight", &[d, f]);
    }
    all.push(info("model.norm.weight", [d]));
    if !c.tied {
        all.push(info("lm_head.weight", [c.vocab_size, d]));
    }
    all
}

pub(crate) fn info(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> TensorInfo {
    TensorInfo { name: name.into(), shape: shape.into() }
}

/// Tensors by name. A trainable one is a [`Var`], whose gradient autograd keeps.
#[derive(Default)]
pub struct Parameters {
    tensors: HashMap<String, Tensor>,
    trainable: Vec<(String, Var)>,
}

impl Parameters {
    /// Reads exactly the tensors in `expected` from an f32 safetensors file.
    ///
    /// # Errors
    /// The file cannot be read; a tensor is missing, left over, of another shape, or not f32.
    pub fn load(path: &Path, expected: &[TensorInfo], trainable: bool) -> Result<Self, ArmError> {
        let bad = |what: String| {
            let hint = "give the f32 safetensors file that belongs to the model's config.json";
            ArmError::invalid(what, path.display().to_string(), hint)
        };
        let bytes = std::fs::read(path).map_err(|source| ArmError::Io { path: path.into(), source })?;
        let mut file =
            safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| bad(format!("not readable: {e}")))?;
        let mut all = Self::default();
        for want in expected {
            let tensor =
                file.remove(&want.name).ok_or_else(|| bad(format!("tensor {} is missing", want.name)))?;
            if tensor.dtype() != DType::F32 || tensor.dims() != want.shape {
                let (dtype, dims) = (tensor.dtype(), tensor.dims());
                return Err(bad(format!("{} is {dtype:?} {dims:?}, not F32 {:?}", want.name, want.shape)));
            }
            all.insert(&want.name, tensor, trainable)?;
        }
        match file.into_keys().min() {
            Some(name) => Err(bad(format!("tensor {name} does not belong to this model"))),
            None => Ok(all),
        }
    }

    fn insert(&mut self, name: &str, tensor: Tensor, trainable: bool) -> Result<(), ArmError> {
        let tensor = if trainable {
            let var = Var::from_tensor(&tensor)?;
            self.trainable.push((name.into(), var.clone()));
            var.into_inner()
        } else {
            tensor
        };
        self.tensors.insert(name.into(), tensor);
        Ok(())
    }

    /// Adds the tensors of `other`, which has other names.
    pub fn extend(&mut self, other: Self) {
        self.tensors.extend(other.tensors);
        self.trainable.extend(other.trainable);
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, name: &str) -> Result<&Tensor, ArmError> {
        self.tensors.get(name).ok_or_else(|| {
            ArmError::invalid(
                format!("the model has no tensor {name}"),
                "model",
                "check the model's config.json",
            )
        })
    }

    /// The tensor called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// What trains, in model order.
    pub fn trainable(&self) -> &[(String, Var)] {
        &self.trainable
    }

    /// Elements of all tensors.
    pub fn numel(&self) -> u64 {
        self.tensors.values().map(|t| t.elem_count() as u64).sum()
    }

    /// Writes all tensors to one safetensors file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), ArmError> {
        safetensors::save(&self.tensors, path)
            .map_err(|e| ArmError::Io { path: path.into(), source: std::io::Error::other(e) })
    }
}
