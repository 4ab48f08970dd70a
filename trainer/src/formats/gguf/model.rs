//! A GGUF file as a Hugging Face model.

use std::{
    collections::BTreeMap,
    fs::File,
    io::BufReader,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value as Json, json};

use super::{Header, Info, Value, rope, tokenizer};
use crate::{error::Error, formats::Tensors};

/// A model in a GGUF file: Llama, Qwen2 or Qwen3.
pub struct Model {
    path: PathBuf,
    file: File,
    header: Header,
    /// Hugging Face name → the tensor, and its rows.
    tensors: BTreeMap<String, Tensor>,
}

struct Tensor {
    info: Info,
    rows: Rows,
}

/// How rows lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// As Hugging Face has them.
    Same,
    /// Of queries and keys of so many heads: llama.cpp turns neighbours, Hugging Face halves, so the two halves of a head's rows
    /// alternate in the file.
    Alternate(usize),
}

/// Names of a block's tensors.
const OF_BLOCK: [(&str, &str); 14] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
    ("attn_q_norm.weight", "self_attn.q_norm.weight"),
    ("attn_k_norm.weight", "self_attn.k_norm.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];

/// The Hugging Face name of a tensor.
fn name_of(tensor: &str) -> Option<String> {
    match tensor {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, rest) = tensor.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (_, name) = OF_BLOCK.iter().find(|(from, _)| *from == rest)?;
    Some(format!("model.layers.{layer}.{name}"))
}

/// By what inverse frequencies are divided.
const ROPE_FACTORS: &str = "rope_freqs.weight";

impl Model {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be read or is damaged, or it holds a model or a tensor that is not supported.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| Error::io(path, &e))?;
        let size = file.metadata().map_err(|e| Error::io(path, &e))?.len();
        let header = Header::read(BufReader::new(&file), size).map_err(|what| {
            Error::new(format!("not a usable GGUF file: {what}"), path.display().to_string())
                .hint("fetch the file again, or take one in a supported type")
        })?;
        let mut model = Self { path: path.to_path_buf(), file, header, tensors: BTreeMap::new() };
        model.name_tensors()?;
        Ok(model)
    }

    fn bad(&self, what: impl Into<String>) -> Error {
        Error::new(what, self.path.display().to_string())
            .hint("supported from GGUF: the architectures llama, qwen2 and qwen3")
    }

    fn name_tensors(&mut self) -> Result<(), Error> {
        let (architecture, heads, kv_heads) = (self.architecture()?, self.heads()?, self.kv_heads()?);
        // Its factors become a part of the config.
        for (name, info) in self.header.tensors.iter().filter(|(name, _)| *name != ROPE_FACTORS) {
            let to = name_of(name)
                .ok_or_else(|| self.bad(format!("tensor '{name}' belongs to no model that is supported")))?;
            let rows = match architecture {
                "llama" if to.contains("q_proj") => Rows::Alternate(heads),
                "llama" if to.contains("k_proj") => Rows::Alternate(kv_heads),
                _ => Rows::Same,
            };
            if let Rows::Alternate(heads) = rows
                && !info.shape[0].is_multiple_of(2 * heads)
            {
                return Err(self.bad(format!("tensor '{name}' has {} rows for {heads} heads", info.shape[0])));
            }
            self.tensors.insert(to, Tensor { info: info.clone(), rows });
        }
        Ok(())
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.header.values.get(key)
    }

    fn architecture(&self) -> Result<&'static str, Error> {
        let found = self.value("general.architecture").and_then(Value::text).unwrap_or("nothing");
        let known = ["llama", "qwen2", "qwen3"].into_iter().find(|a| *a == found);
        known.ok_or_else(|| self.bad(format!("architecture '{found}' is not supported")))
    }

    /// A number under the architecture's prefix.
    fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        let key = format!("{}.{name}", self.architecture()?);
        match self.value(&key) {
            None => Ok(None),
            Some(v) => v.unsigned().map(Some).ok_or_else(|| self.bad(format!("'{key}' is no number"))),
        }
    }

    fn needed(&self, name: &str) -> Result<u64, Error> {
        self.number(name)?.filter(|n| *n > 0).ok_or_else(|| self.bad(format!("its metadata has no '{name}'")))
    }

    fn heads(&self) -> Result<usize, Error> {
        Ok(self.needed("attention.head_count")? as usize)
    }

    fn kv_heads(&self) -> Result<usize, Error> {
        Ok(self.number("attention.head_count_kv")?.filter(|n| *n > 0).map_or(self.heads()?, |n| n as usize))
    }

    /// `config.json`.
    ///
    /// # Errors
    /// The metadata lacks something.
    pub fn config(&self) -> Result<Json, Error> {
        let architecture = self.architecture()?;
        let float = |name: &str| self.value(&format!("{architecture}.{name}")).and_then(Value::float);
        if let Some(kind) = self.value(&format!("{architecture}.rope.scaling.type")).and_then(Value::text)
            && kind != "none"
        {
            return Err(self.bad(format!("rotary scaling '{kind}' is not supported from GGUF")));
        }
        let embedding = self.shape("model.embed_tokens.weight");
        let vocab = embedding.ok_or_else(|| self.bad("it has no 'token_embd.weight'"))?[0];
        let (class, family) = match architecture {
            "llama" => ("LlamaForCausalLM", "llama"),
            "qwen2" => ("Qwen2ForCausalLM", "qwen2"),
            _ => ("Qwen3ForCausalLM", "qwen3"),
        };
        let (hidden, heads) = (self.needed("embedding_length")?, self.heads()? as u64);
        let head_dim = self.number("attention.key_length")?.unwrap_or(hidden / heads);
        let mut config = json!({
            "architectures": [class],
            "model_type": family,
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": self.needed("feed_forward_length")?,
            "num_hidden_layers": self.needed("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.kv_heads()?,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.number("context_length")?.unwrap_or(2048),
            // Stored as f32: 1e-5 as its neighbour in f64 would be 9.999999747378752e-6.
            "rms_norm_eps": shortest(float("attention.layer_norm_rms_epsilon").unwrap_or(1e-6)),
            "rope_theta": shortest(float("rope.freq_base").unwrap_or(10_000.0)),
            "tie_word_embeddings": self.shape("lm_head.weight").is_none(),
            "attention_bias": false,
        });
        let scaling = self.rope_scaling(float("rope.freq_base").unwrap_or(10_000.0), head_dim as usize)?;
        let object = config.as_object_mut().expect("an object");
        object.extend(scaling.map(|scaling| ("rope_scaling".into(), scaling)));
        if architecture == "qwen2" {
            object.remove("attention_bias");
        }
        for (id, key) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            let key = format!("tokenizer.ggml.{key}_token_id");
            if let Some(n) = self.value(&key).and_then(Value::unsigned) {
                object.insert(id.into(), n.into());
            }
        }
        Ok(config)
    }

    /// `rope_scaling` of the config, where the file has its factors.
    fn rope_scaling(&self, theta: f64, head_dim: usize) -> Result<Option<Json>, Error> {
        let Some(info) = self.header.tensors.get(ROPE_FACTORS) else { return Ok(None) };
        rope::scaling(&self.values(info)?, theta, head_dim).map_err(|what| {
            Error::new(format!("'{ROPE_FACTORS}' {what}"), self.path.display().to_string()).hint(
                "take the model's Hugging Face folder, whose config.json says how its positions are scaled",
            )
        })
    }

    /// A tensor's values as they lie in the file.
    fn values(&self, info: &Info) -> Result<Vec<f32>, Error> {
        let mut bytes = vec![0; info.bytes()];
        let at = self.header.start + info.offset;
        self.file.read_exact_at(&mut bytes, at).map_err(|e| Error::io(&self.path, &e))?;
        Ok(info.kind.decode(&bytes))
    }

    /// `tokenizer_config.json`.
    pub fn tokenizer_config(&self) -> Map<String, Json> {
        tokenizer::settings(&self.header.values)
    }

    /// `tokenizer.json`.
    ///
    /// # Errors
    /// The file has no tokenizer, or one of another kind than byte-level BPE.
    pub fn tokenizer(&self) -> Result<Json, Error> {
        tokenizer::make(&self.header.values).map_err(|what| {
            Error::new(what, self.path.display().to_string())
                .hint("give the tokenizer.json of the model with --tokenizer")
        })
    }
}

/// The number in f64 that is written as the f32 is.
fn shortest(x: f64) -> f64 {
    format!("{}", x as f32).parse().unwrap_or(x)
}

impl Tensors for Model {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.info.shape)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, Error> {
        let missing = || Error::new("a tensor is missing", format!("{name} in {}", self.place()));
        let Tensor { info, rows } = self.tensors.get(name).ok_or_else(missing)?;
        let values = self.values(info)?;
        Ok(match rows {
            Rows::Same => values,
            Rows::Alternate(heads) => halves(&values, info.shape[0], *heads),
        })
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

/// Rows of heads whose halves alternate, with the halves one after the other.
fn halves(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (width, head) = (values.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (h, r) = (row / head, row % head);
        let (half, i) = (r / (head / 2), r % (head / 2));
        let from = h * head + 2 * i + half;
        out.extend_from_slice(&values[from * width..][..width]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(name_of("blk.11.ffn_up.weight").as_deref(), Some("model.layers.11.mlp.up_proj.weight"));
        assert_eq!(name_of("blk.x.ffn_up.weight"), None);
        assert_eq!(name_of("rope_freqs.weight"), None);
    }

    #[test]
    fn halves_of_heads_are_put_together() {
        // Two heads of four rows of one value; in the file 0 2 1 3 of each head's rows.
        let file = [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0];
        assert_eq!(halves(&file, 8, 2), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
    }

    #[test]
    fn floats_are_written_as_they_were_meant() {
        assert_eq!(shortest(f64::from(1e-5f32)), 1e-5);
        assert_eq!(shortest(f64::from(1e6f32)), 1e6);
    }
}
