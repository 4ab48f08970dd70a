//! How a file of records becomes samples: the settings that a job and a scenario share, named as in TRL's `SFTConfig`
//! where it has them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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

/// The data set of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedData {
    /// The file as the scenario names it.
    pub path: String,
    /// Hash of that file.
    pub sha256: String,
    /// Shape of the records; recognised from the first one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Keys of the records that are not the usual ones.
    #[serde(default, skip_serializing_if = "Columns::is_default")]
    pub columns: Columns,
    /// From record to text.
    pub template: String,
    /// A Jinja file in place of the tokenizer's chat template, as the scenario names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_path: Option<String>,
    /// Variables that the chat template reads.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub chat_template_kwargs: Map<String, Value>,
    /// Longest sample kept, tokens.
    pub max_length: u32,
    /// Over-long samples are cut (`truncate`) or refused (`refuse`), or all are joined and cut (`wrapped`).
    pub overlong: String,
    /// Only what follows the prompt is learned; so it is for records with a prompt when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_only_loss: Option<bool>,
    /// Only what the assistant says is learned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub assistant_only_loss: bool,
    /// Token behind every sample that no chat template wrote; the tokenizer's own when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token: Option<String>,
    /// Token in empty slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_token: Option<String>,
    /// Seed of the order of samples.
    pub seed: u64,
}

impl ResolvedData {
    /// What is learned, in words.
    pub fn learned(&self) -> &'static str {
        match (self.assistant_only_loss, self.completion_only_loss) {
            (true, _) => "the assistant's turns",
            (false, Some(true)) => "responses alone",
            (false, Some(false)) => "every token",
            (false, None) => "responses alone where there is a prompt, else every token",
        }
    }
}
