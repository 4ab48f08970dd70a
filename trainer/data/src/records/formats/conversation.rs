//! Conversations: OpenAI's `{"messages": [{"role": …, "content": …}]}` and ShareGPT's
//! `{"conversations": [{"from": …, "value": …}]}`. Turns of either kind are read under either key.

use serde_json::{Map, Value};

use super::{FieldError, Fields, Format, Record, Role};
use crate::records::{
    Conversation, Message,
    fields::{self, type_name},
};

pub(super) const MESSAGES: Format = Format {
    name: "messages",
    required: &[Role::Messages],
    read: |fields| read(fields, Role::Messages),
    fits: |fields| !begins_with(fields, Role::Messages, "from"),
};

pub(super) const SHAREGPT: Format = Format {
    name: "sharegpt",
    required: &[Role::Conversations],
    read: |fields| read(fields, Role::Conversations),
    fits: |_| true,
};

/// Whether the first turn has this key.
fn begins_with(fields: &Fields, role: Role, key: &str) -> bool {
    let list = fields.list(role).map(|(_, list)| list).unwrap_or_default();
    list.first().is_some_and(|turn| turn.get(key).is_some())
}

fn read(fields: &Fields, role: Role) -> Result<Record, FieldError> {
    let (key, list) = fields.list(role)?;
    let mut messages = turns(key, list)?;
    if let Some(system) = fields.optional_text(Role::System)?
        && messages.first().is_none_or(|first| first.role() != "system")
    {
        messages.insert(0, Message::new("system", &system));
    }
    Ok(Record::Conversation(Conversation { messages, tools: tools(fields)?, prompt: None }))
}

/// Schemas of tools, as JSON objects; tables have them as strings.
pub(super) fn tools(fields: &Fields) -> Result<Option<Vec<Value>>, FieldError> {
    let parsed = |tool: Value| match &tool {
        Value::String(text) => serde_json::from_str(text).unwrap_or(tool),
        _ => tool,
    };
    let tools = fields.optional_list(Role::Tools)?;
    let tools: Option<Vec<Value>> = tools.map(|tools| tools.into_iter().map(parsed).collect());
    Ok(tools.filter(|tools| !tools.is_empty()))
}

/// The turns of a list.
pub(super) fn turns(key: &str, list: Vec<Value>) -> Result<Vec<Message>, FieldError> {
    let at = |turn: usize, (what, hint): (String, &'static str)| FieldError::Turn {
        key: key.into(),
        turn: turn + 1,
        what,
        hint,
    };
    if list.is_empty() {
        return Err(FieldError::Type {
            key: key.into(),
            found: "an empty list".into(),
            wanted: "a list of turns",
            hint: "add turns or remove the record",
        });
    }
    list.into_iter().enumerate().map(|(i, turn)| message(turn).map_err(|e| at(i, e))).collect()
}

type Wrong = (String, &'static str);

const SHAPE: &str = "a turn is {\"role\": \"user\", \"content\": …} or {\"from\": \"human\", \"value\": …}";

fn message(turn: Value) -> Result<Message, Wrong> {
    let Value::Object(mut map) = turn else {
        return Err((format!("is {}, not an object", type_name(&turn)), SHAPE));
    };
    if map.contains_key("from") && !map.contains_key("role") {
        let from = string(&map, "from")?;
        let role = role_of(&from).ok_or_else(|| {
            (
                format!("is from \"{from}\""),
                "known are human, user, gpt, assistant, system, tool, function and observation",
            )
        })?;
        let value = map.remove("value").ok_or_else(|| ("has no \"value\"".to_string(), SHAPE))?;
        map.remove("from");
        map.insert("role".into(), role.into());
        map.insert("content".into(), value);
    }
    string(&map, "role")?;
    // Parquet has no absent fields, and templates ask whether one is defined.
    map.retain(|key, value| key == "content" || !value.is_null());
    content(&mut map)?;
    if let Some(Value::Array(calls)) = map.get_mut("tool_calls") {
        calls.iter_mut().for_each(arguments);
    }
    Ok(Message(map))
}

fn string(map: &Map<String, Value>, key: &str) -> Result<String, Wrong> {
    match map.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => {
            Err((format!("has {} under \"{key}\", not a string", type_name(other)), fields::IN_QUOTES))
        }
        None => {
            Err((format!("has no \"{key}\", only {}", fields::quoted(map.keys().map(String::as_str))), SHAPE))
        }
    }
}

/// ShareGPT's speakers.
fn role_of(from: &str) -> Option<&'static str> {
    Some(match from {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "model" | "bot" => "assistant",
        "system" => "system",
        "tool" | "function" | "function_response" | "observation" => "tool",
        _ => return None,
    })
}

/// Content is a text, or parts of one; a turn that calls tools may have none.
fn content(map: &mut Map<String, Value>) -> Result<(), Wrong> {
    match map.get("content") {
        Some(Value::String(_)) => Ok(()),
        None | Some(Value::Null) if map.contains_key("tool_calls") => Ok(()),
        None => Err(("has no \"content\"".into(), SHAPE)),
        Some(Value::Array(parts)) => {
            let text: Option<String> = parts.iter().map(|part| part.get("text")?.as_str()).collect();
            let text = text.ok_or_else(|| {
                let what = "has content that is not text alone".to_string();
                (what, "models here read text; remove images and sounds, or the record")
            })?;
            map.insert("content".into(), text.into());
            Ok(())
        }
        Some(other) => {
            Err((format!("has {} under \"content\", not a string", type_name(other)), fields::IN_QUOTES))
        }
    }
}

/// OpenAI writes a call's arguments as a string of JSON, templates expect the object.
fn arguments(call: &mut Value) {
    let function = match call.get("function") {
        Some(_) => call.get_mut("function"),
        None => Some(call),
    };
    if let Some(slot) = function.and_then(|f| f.get_mut("arguments"))
        && let Value::String(text) = slot
        && let Ok(object @ Value::Object(_)) = serde_json::from_str(text)
    {
        *slot = object;
    }
}
