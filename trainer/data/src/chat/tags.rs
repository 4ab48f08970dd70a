//! `{% generation %}` … `{% endgeneration %}`, which mark what the assistant says.
//!
//! The engine has no such tags. They become `{% filter %}` blocks, whose filter puts a mark before and behind its text; the marks
//! are taken out of what is rendered. Marks are characters that Unicode reserves for use inside of programs.

use std::ops::Range;

use serde_json::{Map, Value};

pub(super) const FILTER: &str = "_generation";

const BEGIN: char = '\u{fdd0}';
const END: char = '\u{fdd1}';

/// The filter.
pub(super) fn marked(text: String) -> String {
    format!("{BEGIN}{text}{END}")
}

/// The template with its tags replaced, and whether there were any.
pub(super) fn replaced(source: &str) -> (String, bool) {
    let mut text = String::with_capacity(source.len());
    let (mut rest, mut found) = (source, false);
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        match parsed(tag) {
            Some((tag, length)) => {
                text.push_str(&tag);
                rest = &rest[start + length..];
                found = true;
            }
            None => {
                text.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    text.push_str(rest);
    (text, found)
}

/// What stands in place of the tag at the beginning of a text, and the tag's length.
fn parsed(tag: &str) -> Option<(String, usize)> {
    let length = tag.find("%}")? + 2;
    let inside = &tag[2..length - 2];
    let sign = |c: Option<char>| c.filter(|c| matches!(c, '-' | '+')).map(String::from).unwrap_or_default();
    let (left, right) = (sign(inside.chars().next()), sign(inside.chars().next_back()));
    let word = inside.strip_prefix(&*left)?.strip_suffix(&*right)?.trim();
    let word = match word {
        "generation" => format!("filter {FILTER}"),
        "endgeneration" => "endfilter".to_string(),
        _ => return None,
    };
    Some((format!("{{%{left} {word} {right}%}}"), length))
}

/// The text without marks, and the bytes between them.
pub(super) fn taken_out(text: &str) -> (String, Vec<Range<usize>>) {
    let mut plain = String::with_capacity(text.len());
    let (mut spans, mut open) = (Vec::new(), Vec::new());
    for c in text.chars() {
        match c {
            BEGIN => open.push(plain.len()),
            END => spans.extend(open.pop().map(|start| start..plain.len())),
            c => plain.push(c),
        }
    }
    (plain, spans)
}

/// Whether a message has a character that could be taken for a mark.
pub(super) fn reserved(message: &Map<String, Value>) -> bool {
    fn within(value: &Value) -> bool {
        match value {
            Value::String(text) => text.contains(|c| ('\u{fdd0}'..='\u{fdef}').contains(&c)),
            Value::Array(list) => list.iter().any(within),
            Value::Object(map) => reserved(map),
            _ => false,
        }
    }
    message.values().any(within)
}
