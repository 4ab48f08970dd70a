//! Names, shapes and places of all parameters.
//!
//! The parameters of a model lie end to end in one flat buffer, in an order that puts projections sharing an input next
//! to each other: `q_proj k_proj v_proj` read as one matrix, so do `gate_proj up_proj`. All matrices lie in front of all
//! vectors, so that weight decay has two groups, and what adds to a gradient instead of writing it has one place to be cleared.

use chronibench_protocol::{event::TensorInfo, spec::LoraArgs};

use crate::{config::ModelConfig, error::Error, lora::Adapters};

/// One tensor of a [`Layout`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Hugging Face name, or PEFT's for an adapter.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// First element in the flat buffer.
    pub offset: usize,
    /// Parameter group.
    pub group: &'static str,
}

impl Tensor {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True when there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Weight decay applies to matrices, not to norms and biases.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

/// All tensors of a model or of its adapters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// In the order of the flat buffer, without gaps.
    pub tensors: Vec<Tensor>,
}

/// Projections that share an input, by their place in a block: the unit of one GEMM and of one LoRA group.
pub const PROJECTION_GROUPS: [&[&str]; 4] =
    [&["q_proj", "k_proj", "v_proj"], &["o_proj"], &["gate_proj", "up_proj"], &["down_proj"]];

/// Hugging Face name of a projection, without `.weight`.
pub fn projection(layer: usize, name: &str) -> String {
    let part = if matches!(name, "gate_proj" | "up_proj" | "down_proj") { "mlp" } else { "self_attn" };
    format!("model.layers.{layer}.{part}.{name}")
}

/// PEFT's name of the `A` or `B` of a projection's adapter.
pub fn adapter(layer: usize, name: &str, ab: char) -> String {
    format!("base_model.model.{}.lora_{ab}.weight", projection(layer, name))
}

/// PEFT's name of the magnitudes of a projection's outputs, under DoRA.
pub fn magnitude(layer: usize, name: &str) -> String {
    format!("base_model.model.{}.lora_magnitude_vector", projection(layer, name))
}

/// The weight that magnitudes are of.
pub fn weight_of(magnitude: &str) -> String {
    let name =
        magnitude.strip_prefix("base_model.model.").and_then(|n| n.strip_suffix("lora_magnitude_vector"));
    format!("{}weight", name.expect("PEFT's name of magnitudes"))
}

/// Outputs and inputs of a projection.
pub fn projection_shape(c: &ModelConfig, name: &str) -> (usize, usize) {
    let kv = c.kv_heads * c.head_dim;
    match name {
        "q_proj" => (c.attention_width(), c.hidden_size),
        "k_proj" | "v_proj" => (kv, c.hidden_size),
        "o_proj" => (c.hidden_size, c.attention_width()),
        "gate_proj" | "up_proj" => (c.intermediate_size, c.hidden_size),
        "down_proj" => (c.hidden_size, c.intermediate_size),
        other => unreachable!("{other} is not one of the seven projections"),
    }
}

impl Layout {
    /// The model's own parameters; a tied head has none.
    pub fn model(c: &ModelConfig) -> Self {
        let mut l = Self::default();
        let d = c.hidden_size;
        l.push("model.embed_tokens.weight".into(), &[c.vocab_size, d], "all");
        for layer in 0..c.layers {
            PROJECTION_GROUPS.iter().for_each(|group| l.push_projections(c, layer, group));
        }
        if !c.tied {
            l.push("lm_head.weight".into(), &[c.vocab_size, d], "all");
        }
        for layer in 0..c.layers {
            let block = format!("model.layers.{layer}");
            l.push(format!("{block}.input_layernorm.weight"), &[d], "all");
            if c.family.qkv_bias() {
                for name in PROJECTION_GROUPS[0] {
                    let outputs = projection_shape(c, name).0;
                    l.push(format!("{}.bias", projection(layer, name)), &[outputs], "all");
                }
            }
            if c.family.qk_norm() {
                l.push(format!("{block}.self_attn.q_norm.weight"), &[c.head_dim], "all");
                l.push(format!("{block}.self_attn.k_norm.weight"), &[c.head_dim], "all");
            }
            l.push(format!("{block}.post_attention_layernorm.weight"), &[d], "all");
        }
        l.push("model.norm.weight".into(), &[d], "all");
        l
    }

    /// LoRA adapters: all `A`, all `B`, then DoRA's magnitudes, which are vectors, so that a group of parameters lies together; in
    /// each, projections with one input and adapters of one size are neighbours.
    ///
    /// # Errors
    /// See [`Adapters::of`].
    pub fn adapters(c: &ModelConfig, lora: &LoraArgs) -> Result<Self, Error> {
        let adapters = Adapters::of(c, lora)?;
        let mut l = Self::default();
        let mut each = Vec::new();
        for layer in 0..c.layers {
            for (size, names) in PROJECTION_GROUPS.iter().flat_map(|g| adapters.runs(layer, g)) {
                each.extend(names.into_iter().map(|name| (layer, size.r, name)));
            }
        }
        for &(layer, r, name) in &each {
            l.push(adapter(layer, name, 'A'), &[r, projection_shape(c, name).1], "lora_A");
        }
        for &(layer, r, name) in &each {
            l.push(adapter(layer, name, 'B'), &[projection_shape(c, name).0, r], "lora_B");
        }
        for &(layer, _, name) in each.iter().filter(|_| lora.use_dora) {
            l.push(magnitude(layer, name), &[projection_shape(c, name).0], "lora_magnitude");
        }
        Ok(l)
    }

    fn push(&mut self, name: String, shape: &[usize], group: &'static str) {
        let offset = self.len();
        self.tensors.push(Tensor { name, shape: shape.to_vec(), offset, group });
    }

    fn push_projections(&mut self, c: &ModelConfig, layer: usize, names: &[&str]) {
        for name in names {
            let (n, k) = projection_shape(c, name);
            self.push(format!("{}.weight", projection(layer, name)), &[n, k], "all");
        }
    }

    /// Elements of the flat buffer.
    pub fn len(&self) -> usize {
        self.tensors.last().map_or(0, |t| t.offset + t.len())
    }

    /// True when there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// Offset and length of tensors that lie next to each other; `None` when the first does not exist.
    pub fn span<S: AsRef<str>>(&self, names: &[S]) -> Option<(usize, usize)> {
        let first = self.get(names.first()?.as_ref())?.offset;
        let mut end = first;
        for name in names {
            let t = self.get(name.as_ref())?;
            assert_eq!(t.offset, end, "{} follows its neighbour", t.name);
            end += t.len();
        }
        Some((first, end - first))
    }

    /// Names and shapes as recorded.
    pub fn infos(&self) -> Vec<TensorInfo> {
        self.tensors.iter().map(|t| TensorInfo { name: t.name.clone(), shape: t.shape.clone() }).collect()
    }
}
