//! How LoRA's adapters begin: PEFT's `init_lora_weights`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What adapters are before the first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Said", into = "Said")]
pub enum InitLora {
    /// `true`: A by Kaiming's uniform distribution, B zero.
    #[default]
    Kaiming,
    /// `pissa`: the largest singular values of the weight with their vectors, which are taken out of the base (arXiv 2404.02948).
    Pissa {
        /// `pissa_niter_N`: as far as N iterations of a random subspace come; else until they are found.
        niter: Option<u32>,
    },
}

impl InitLora {
    /// PEFT's own default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// As files have it.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Said {
    Is(bool),
    Named(String),
}

impl From<InitLora> for Said {
    fn from(init: InitLora) -> Self {
        match init {
            InitLora::Kaiming => Said::Is(true),
            InitLora::Pissa { niter: None } => Said::Named("pissa".into()),
            InitLora::Pissa { niter: Some(n) } => Said::Named(format!("pissa_niter_{n}")),
        }
    }
}

impl TryFrom<Said> for InitLora {
    type Error = String;

    fn try_from(said: Said) -> Result<Self, String> {
        let niter = |name: &str| name.strip_prefix("pissa_niter_").and_then(|n| n.parse().ok());
        match said {
            Said::Is(true) => Ok(Self::Kaiming),
            Said::Named(name) if name == "pissa" => Ok(Self::Pissa { niter: None }),
            Said::Named(name) => niter(&name).map(|n| Self::Pissa { niter: Some(n) }).ok_or_else(|| {
                format!("init_lora_weights '{name}' is not supported: true, pissa or pissa_niter_N")
            }),
            Said::Is(false) => Err(
                "init_lora_weights false, for tests of PEFT, is not supported: true, pissa or pissa_niter_N"
                    .into(),
            ),
        }
    }
}

impl JsonSchema for InitLora {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "InitLora".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Said::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pefts() {
        for (text, init) in [
            ("true", InitLora::Kaiming),
            (r#""pissa""#, InitLora::Pissa { niter: None }),
            (r#""pissa_niter_16""#, InitLora::Pissa { niter: Some(16) }),
        ] {
            assert_eq!(serde_json::from_str::<InitLora>(text).unwrap(), init);
            assert_eq!(serde_json::to_string(&init).unwrap(), text);
        }
        for bad in ["false", r#""gaussian""#, r#""pissa_niter_x""#] {
            assert!(serde_json::from_str::<InitLora>(bad).unwrap_err().to_string().contains("not supported"));
        }
    }
}
