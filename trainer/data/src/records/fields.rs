//! Reading typed fields of one record.

use chronibench_protocol::data::Columns;
use serde_json::{Map, Value};

/// What a format reads, by its role; [`Columns`] says under which key it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Text,
    Prompt,
    Completion,
    Messages,
    Conversations,
    System,
    Tools,
    Instruction,
    Input,
    Output,
}

impl Role {
    /// The usual keys, the first of which is named in messages.
    pub fn usual(self) -> &'static [&'static str] {
        match self {
            Self::Text => &["text"],
            Self::Prompt => &["prompt"],
            Self::Completion => &["completion", "response"],
            Self::Messages => &["messages"],
            Self::Conversations => &["conversations"],
            Self::System => &["system"],
            Self::Tools => &["tools"],
            Self::Instruction => &["instruction"],
            Self::Input => &["input"],
            Self::Output => &["output"],
        }
    }

    fn named(self, columns: &Columns) -> Option<&str> {
        match self {
            Self::Text => &columns.text,
            Self::Prompt => &columns.prompt,
            Self::Completion => &columns.completion,
            Self::Messages | Self::Conversations => &columns.messages,
            Self::System => &columns.system,
            Self::Tools => &columns.tools,
            Self::Instruction => &columns.instruction,
            Self::Input => &columns.input,
            Self::Output => &columns.output,
        }
        .as_deref()
    }
}

/// A JSON object with the names of its keys.
pub(super) struct Fields<'a> {
    pub map: &'a Map<String, Value>,
    pub columns: &'a Columns,
}

/// A field that is not what the format needs.
#[derive(Debug)]
pub(super) enum FieldError {
    Missing { key: String },
    Type { key: String, found: String, wanted: &'static str, hint: &'static str },
    Turn { key: String, turn: usize, what: String, hint: &'static str },
}

pub(super) const IN_QUOTES: &str = "put its text in quotes or remove the record";

impl<'a> Fields<'a> {
    /// The key of a role and its value; the first usual key where there is none.
    pub fn get(&self, role: Role) -> (&'a str, Option<&'a Value>) {
        if let Some(name) = role.named(self.columns) {
            return (name, self.map.get(name));
        }
        let usual = role.usual();
        let found = usual.iter().find_map(|&key| self.map.get(key).map(|value| (key, Some(value))));
        found.unwrap_or((usual[0], None))
    }

    pub fn has(&self, role: Role) -> bool {
        self.get(role).1.is_some()
    }

    pub fn need(&self, role: Role) -> Result<(&'a str, &'a Value), FieldError> {
        let (key, value) = self.get(role);
        value.map(|value| (key, value)).ok_or_else(|| FieldError::Missing { key: key.into() })
    }

    pub fn text(&self, role: Role) -> Result<String, FieldError> {
        let (key, value) = self.need(role)?;
        text(key, value)
    }

    /// The text of a role; `None` when it is missing, `null` or empty.
    pub fn optional_text(&self, role: Role) -> Result<Option<String>, FieldError> {
        match self.get(role) {
            (_, None | Some(Value::Null)) => Ok(None),
            (key, Some(value)) => text(key, value).map(|text| (!text.is_empty()).then_some(text)),
        }
    }

    /// A list: an array, or a string that holds one, as tables have them.
    pub fn list(&self, role: Role) -> Result<(&'a str, Vec<Value>), FieldError> {
        let (key, value) = self.need(role)?;
        list(value).map(|list| (key, list)).ok_or_else(|| FieldError::Type {
            key: key.into(),
            found: type_name(value).into(),
            wanted: "a list of turns",
            hint: "write [{\"role\": \"user\", \"content\": …}, …]",
        })
    }

    /// A list of a role, or nothing where it is missing or `null`.
    pub fn optional_list(&self, role: Role) -> Result<Option<Vec<Value>>, FieldError> {
        match self.get(role).1 {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.list(role).map(|(_, list)| Some(list)),
        }
    }

    pub fn keys(&self) -> String {
        if self.map.is_empty() { "no keys".into() } else { quoted(self.map.keys().map(String::as_str)) }
    }
}

pub(super) fn text(key: &str, value: &Value) -> Result<String, FieldError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(FieldError::Type {
            key: key.into(),
            found: type_name(other).into(),
            wanted: "a string",
            hint: IN_QUOTES,
        }),
    }
}

/// A value's elements, also where it is a string of JSON.
pub(super) fn list(value: &Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(list) => Some(list.clone()),
        Value::String(text) if text.trim_start().starts_with('[') => serde_json::from_str(text).ok(),
        _ => None,
    }
}

pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

pub(super) fn quoted<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    keys.map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(", ")
}
