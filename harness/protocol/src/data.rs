//! How a file of records becomes samples: the settings that a job and a scenario share, named as in TRL's `SFTConfig`
//! where it has them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keys of a data set's records, where they are not the usual ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// Running text, usually `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What the model is given, usually `prompt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// What it is to say, usually `completion` or `response`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
    /// Turns of a conversation, usually `messages` or `conversations`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// System message in front of a conversation that has none, usually `system`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Tools that the conversation may call, usually `tools`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<String>,
    /// Alpaca's task, usually `instruction`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// What Alpaca's task is about, usually `input`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Alpaca's answer, usually `output`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

impl Columns {
    /// Every key is the usual one.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
