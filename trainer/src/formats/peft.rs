//! `adapter_config.json`, the settings beside an adapter, as PEFT has them.

use std::path::Path;

use chronibench_protocol::{patterns::Patterns, spec::LoraArgs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::write;
use crate::error::Error;

/// File names in an adapter's folder.
pub const CONFIG: &str = "adapter_config.json";
/// Its weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// The fields that decide what an adapter does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// `LORA`.
    pub peft_type: String,
    /// `CAUSAL_LM`.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Where the base model was.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Projections.
    pub target_modules: Targets,
    /// Ranks of modules that have another.
    #[serde(default)]
    pub rank_pattern: Patterns<usize>,
    /// The same for `lora_alpha`.
    #[serde(default)]
    pub alpha_pattern: Patterns<f64>,
    /// The scale is over the root of the rank.
    #[serde(default)]
    pub use_rslora: bool,
    /// Outputs have magnitudes.
    #[serde(default)]
    pub use_dora: bool,
    /// Not used here; PEFT wants it.
    #[serde(default)]
    pub lora_dropout: f64,
    /// `none`.
    #[serde(default = "none")]
    pub bias: String,
    /// Weights are not transposed.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Adapters are to be used, not trained.
    #[serde(default)]
    pub inference_mode: bool,
    /// Whatever else there is.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// A list, or a word that PEFT takes for one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// Names of projections.
    Names(Vec<String>),
    /// `all-linear` or a pattern.
    Pattern(String),
}

fn none() -> String {
    "none".into()
}

/// Settings of PEFT that change what an adapter computes and are not supported, with the values that are harmless.
const REFUSED: [&str; 5] =
    ["modules_to_save", "layers_to_transform", "layer_replication", "alora_invocation_tokens", "lora_bias"];

/// Beginnings of adapters that change the base which they are for.
const OF_ANOTHER_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

fn is_harmless(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

impl AdapterConfig {
    /// Of adapters that were trained here; `base` is where the model was.
    pub fn new(lora: &LoraArgs, base: Option<&Path>) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: base.map(|p| p.display().to_string()),
            r: lora.r,
            lora_alpha: lora.lora_alpha,
            target_modules: Targets::Names(lora.target_modules.clone()),
            rank_pattern: lora.rank_pattern.clone(),
            alpha_pattern: lora.alpha_pattern.clone(),
            use_rslora: lora.use_rslora,
            use_dora: lora.use_dora,
            lora_dropout: 0.0,
            bias: none(),
            fan_in_fan_out: false,
            inference_mode: true,
            others: Map::new(),
        }
    }

    /// Reads the file in an adapter's folder.
    ///
    /// # Errors
    /// It cannot be read, or it asks for something that is not supported.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, &e))?;
        let at = || path.display().to_string();
        let config: Self = serde_json::from_str(&text).map_err(|e| {
            Error::new(format!("not a usable adapter config: {e}"), at())
                .hint("give the folder of a LoRA adapter as PEFT saves it")
        })?;
        let refuse = |what: String| {
            Err(Error::new(what, at())
                .hint("supported: LoRA, rsLoRA and DoRA, with patterns of rank and alpha, without biases"))
        };
        if config.peft_type != "LORA" {
            return refuse(format!("peft_type {} is not supported", config.peft_type));
        }
        if config.bias != "none" || config.fan_in_fan_out {
            return refuse("biases and transposed weights are not supported".into());
        }
        let begins = config.others.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        if OF_ANOTHER_BASE.iter().any(|name| begins.starts_with(name)) {
            return Err(Error::new(
                format!("init_lora_weights is '{begins}': the adapter is for what PEFT left of the base"),
                at(),
            )
            .hint("save it with PEFT's path_initial_model_for_weight_conversion, which makes it one for the base itself"));
        }
        match REFUSED.iter().find(|key| config.others.get(**key).is_some_and(|v| !is_harmless(v))) {
            Some(key) => refuse(format!("{key} is not supported")),
            None => Ok(config),
        }
    }

    /// The method's settings that it stands for.
    ///
    /// # Errors
    /// Projections are named by a pattern that is not `all-linear`.
    pub fn lora(&self, folder: &Path) -> Result<LoraArgs, Error> {
        let target_modules = match &self.target_modules {
            Targets::Names(names) => names.clone(),
            Targets::Pattern(p) if p == "all-linear" => {
                chronibench_protocol::spec::LORA_TARGETS.map(String::from).to_vec()
            }
            Targets::Pattern(p) => {
                return Err(Error::new(
                    format!("target_modules '{p}' is a pattern"),
                    folder.join(CONFIG).display().to_string(),
                )
                .hint("list the names of the projections"));
            }
        };
        Ok(LoraArgs {
            target_modules,
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            adapter_weights: Some(folder.to_path_buf()),
            ..LoraArgs::of(self.r, self.lora_alpha)
        })
    }

    /// Writes the file into an adapter's folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let json = serde_json::to_value(self).expect("plain data");
        write::text(&folder.join(CONFIG), &format!("{json:#}\n"))
    }
}
