//! A model with its config and the files beside it, from wherever it comes, and its way into a Hugging Face folder.

use std::{collections::BTreeMap, path::Path};

use chronibench_protocol::spec::LoraArgs;
use chronicals_kernels::gemm::linear_dgrad;
use serde_json::{Map, Value};

use super::{
    Tensors,
    beside::{self, Beside},
    gguf, hub, open,
    peft::{self, AdapterConfig},
    write::{self, Entry, Folder, Stored},
};
use crate::{
    config::ModelConfig,
    error::Error,
    lora::{Adapters, Size},
    params::{self, Layout, PROJECTION_GROUPS, adapter, projection},
    weights,
};

/// A model that can be read.
pub struct Source {
    tensors: Box<dyn Tensors>,
    config: Value,
    model: ModelConfig,
    /// Name → text.
    beside: BTreeMap<String, String>,
}

/// Adapters that can be read, and what they mean.
pub struct Adapter {
    tensors: Box<dyn Tensors>,
    lora: LoraArgs,
    /// By the name of the weight that it is on.
    parts: BTreeMap<String, Part>,
}

/// The adapter on a weight.
struct Part {
    a: String,
    b: String,
    size: Size,
    /// Under DoRA.
    magnitude: Option<String>,
}

/// How a folder is written.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Number format of the weights.
    pub stored: Stored,
    /// Most bytes of a file of weights.
    pub shard: u64,
}

impl Source {
    /// Opens a Hugging Face folder, a repository of the hub, or a GGUF file, whose tokenizer may be given besides.
    ///
    /// # Errors
    /// There is no such model, or it is damaged or not supported; a tensor that is missing, misshapen or too much is named.
    pub fn open(from: &Path, tokenizer: Option<&Path>) -> Result<Self, Error> {
        let path = hub::resolve(from)?;
        let mut source =
            if path.is_dir() { Self::of_folder(&path)? } else { Self::of_gguf(&path, tokenizer)? };
        if let Some(file) = tokenizer {
            let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, &e))?;
            source.beside.insert("tokenizer.json".into(), text);
        }
        weights::check(&*source.tensors, &source.layout())?;
        Ok(source)
    }

    fn of_folder(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, &e))?;
        let model = ModelConfig::parse(&text, &path)?;
        let config = serde_json::from_str(&text).expect("it was parsed above");
        Ok(Self { tensors: open(dir)?, config, model, beside: beside::read(dir)? })
    }

    fn of_gguf(path: &Path, tokenizer: Option<&Path>) -> Result<Self, Error> {
        if path.extension().is_none_or(|e| e != "gguf") {
            return Err(Error::new("neither a folder nor a .gguf file", path.display().to_string())
                .hint("give a Hugging Face folder, a repository such as Qwen/Qwen2.5-0.5B, or a GGUF file"));
        }
        let file = gguf::Model::open(path)?;
        let config = file.config()?;
        let model = ModelConfig::parse(&config.to_string(), path)?;
        let settings = format!("{:#}\n", Value::Object(file.tokenizer_config()));
        let mut beside = BTreeMap::from([("tokenizer_config.json".into(), settings)]);
        if tokenizer.is_none() {
            beside.insert("tokenizer.json".into(), file.tokenizer()?.to_string());
        }
        Ok(Self { tensors: Box::new(file), config, model, beside })
    }

    /// Architecture.
    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    /// Its tensors.
    pub fn layout(&self) -> Layout {
        Layout::model(&self.model)
    }

    /// Writes it as a Hugging Face folder, with adapters merged in f32 where there are any, rounded once.
    ///
    /// # Errors
    /// A tensor cannot be read, or the folder is taken or cannot be written; nothing is left of it then.
    pub fn write(&self, adapter: Option<&Adapter>, style: Style, out: &Path) -> Result<(), Error> {
        let folder = Folder::new(out)?;
        let layout = self.layout();
        let entry = |t: &crate::params::Tensor| {
            let (name, shape) = (t.name.clone(), t.shape.clone());
            Entry::new(&t.name, &t.shape, move || {
                let mut values = weights::read(&*self.tensors, &name)?;
                adapter.map_or(Ok(()), |a| a.add(&name, &shape, &mut values))?;
                Ok(values)
            })
        };
        let entries = layout.tensors.iter().map(entry).collect();
        write::model(entries, style.stored, style.shard, folder.path())?;
        write_config(&self.config, style.stored, folder.path())?;
        for (name, text) in &self.beside {
            write::text(&folder.path().join(name), text)?;
        }
        folder.finish()
    }
}

/// `config.json` with the number format of the weights.
fn write_config(config: &Value, stored: Stored, dir: &Path) -> Result<(), Error> {
    let mut config = config.clone();
    if let Some(object) = config.as_object_mut() {
        // Transformers 5 reads `dtype`, older ones `torch_dtype`.
        object.remove("dtype");
        object.insert("torch_dtype".into(), stored.name().into());
    }
    write::text(&dir.join("config.json"), &format!("{config:#}\n"))
}

/// What a training leaves beside its weights: the config in the number format of the weights or, under LoRA, the adapter's settings;
/// and the tokenizer as it was used.
///
/// # Errors
/// A file cannot be read or written.
pub fn finish(config: &Path, beside: &Beside, lora: Option<&LoraArgs>, out: &Path) -> Result<(), Error> {
    if let Some(lora) = lora {
        AdapterConfig::new(lora, Some(config.parent().unwrap_or(Path::new("")))).save(out)?;
    } else {
        // What an earlier training or export left would be read in place of the model.
        for name in [peft::CONFIG, peft::WEIGHTS, super::INDEX] {
            let path = out.join(name);
            if path.exists() {
                std::fs::remove_file(&path).map_err(|e| Error::io(&path, &e))?;
            }
        }
        let text = std::fs::read_to_string(config).map_err(|e| Error::io(config, &e))?;
        let mut value: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| Error::new(e.to_string(), config.display().to_string()))?;
        beside.name_ids(&mut value);
        write_config(&Value::Object(value), Stored::F32, out)?;
    }
    beside.write(out)
}

impl Adapter {
    /// Opens an adapter's folder, for a model.
    ///
    /// # Errors
    /// It is damaged or not supported, or it is another model's.
    pub fn open(folder: &Path, model: &ModelConfig) -> Result<Self, Error> {
        let lora = AdapterConfig::load(folder)?.lora(folder)?;
        let layout = Layout::adapters(model, &lora)?;
        let tensors = open(&folder.join(peft::WEIGHTS))?;
        weights::check(&*tensors, &layout)?;
        let adapters = Adapters::of(model, &lora)?;
        let mut parts = BTreeMap::new();
        for (layer, name) in
            (0..model.layers).flat_map(|l| PROJECTION_GROUPS.concat().into_iter().map(move |p| (l, p)))
        {
            if let Some(size) = adapters.get(layer, name) {
                let [a, b] = ['A', 'B'].map(|ab| adapter(layer, name, ab));
                let magnitude = lora.use_dora.then(|| params::magnitude(layer, name));
                parts.insert(format!("{}.weight", projection(layer, name)), Part { a, b, size, magnitude });
            }
        }
        Ok(Self { tensors, lora, parts })
    }

    /// Its settings.
    pub fn lora(&self) -> &LoraArgs {
        &self.lora
    }

    /// `W += scale · B·A` if there are adapters on this weight, `[N, K]`; under DoRA rows then get their magnitudes.
    fn add(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<(), Error> {
        let Some(Part { a, b, size, magnitude }) = self.parts.get(name) else { return Ok(()) };
        let (a, mut b) = (self.tensors.read(a)?, self.tensors.read(b)?);
        b.iter_mut().for_each(|v| *v *= size.scale);
        linear_dgrad(values, &b, &a, shape[0], size.r, shape[1], 1.0);
        if let Some(magnitude) = magnitude {
            for (row, m) in values.chunks_mut(shape[1]).zip(self.tensors.read(magnitude)?) {
                let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                row.iter_mut().for_each(|x| *x = (f64::from(*x) * f64::from(m) / length) as f32);
            }
        }
        Ok(())
    }
}
