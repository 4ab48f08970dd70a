//! Prompt and completion: `{"prompt": …, "completion": …}`, both texts, or both lists of turns as in TRL.
//!
//! Tables have lists as strings, and a text may be a list in JSON too: a string is one of turns only if all in it are objects.

use serde_json::Value;

use super::{
    FieldError, Fields, Format, Record, Role, any,
    conversation::{tools, turns},
};
use crate::records::{Conversation, fields};

pub(super) const FORMAT: Format =
    Format { name: "prompt_completion", required: &[Role::Prompt, Role::Completion], read, fits: any };

fn are_turns(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(Value::is_object)
}

fn read(fields: &Fields) -> Result<Record, FieldError> {
    let is_text = |role| {
        let value = fields.get(role).1;
        value.is_some_and(|v| v.is_string() && !fields::list(v).is_some_and(|list| are_turns(&list)))
    };
    if is_text(Role::Prompt) || is_text(Role::Completion) {
        return Ok(Record::Completion {
            prompt: fields.text(Role::Prompt)?,
            completion: fields.text(Role::Completion)?,
        });
    }
    if let (key, value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_))) =
        fields.need(Role::Prompt)?
    {
        return Err(fields::text(key, value).expect_err("it is no string"));
    }
    let (key, prompt) = fields.list(Role::Prompt)?;
    let mut messages = turns(key, prompt)?;
    let prompt = messages.len();
    let (key, completion) = fields.list(Role::Completion)?;
    messages.extend(turns(key, completion)?);
    Ok(Record::Conversation(Conversation { messages, tools: tools(fields)?, prompt: Some(prompt) }))
}
