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

/// The template with its tags replaced, and whether there were any. Comments, strings and raw blocks stay as they are.
pub(super) fn replaced(source: &str) -> (String, bool) {
    let mut text = String::with_capacity(source.len());
    let (mut rest, mut found) = (source, false);
    while let Some(start) = rest.find('{') {
        let (before, here) = rest.split_at(start);
        text.push_str(before);
        let length = match here.as_bytes().get(1) {
            Some(b'#') => here.find("#}").map_or(here.len(), |end| end + 2),
            Some(b'{') => length(here, "}}"),
            Some(b'%') => length(here, "%}"),
            _ => 1,
        };
        let (part, behind) = here.split_at(length);
        match word(part) {
            Some("generation") => text.push_str(&with_word(part, &format!("filter {FILTER}"))),
            Some("endgeneration") => text.push_str(&with_word(part, "endfilter")),
            _ => text.push_str(part),
        }
        found |= word(part) == Some("generation");
        rest = behind;
        if word(part) == Some("raw") {
            let (raw, behind) = rest.split_at(raw(rest));
            text.push_str(raw);
            rest = behind;
        }
    }
    text.push_str(rest);
    (text, found)
}

/// Length of a tag up to and with its end, which does not stand in a string.
fn length(tag: &str, end: &str) -> usize {
    let (mut quote, mut escaped) = (None, false);
    for (i, byte) in tag.bytes().enumerate().skip(2) {
        match quote {
            _ if escaped => escaped = false,
            Some(_) if byte == b'\\' => escaped = true,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if matches!(byte, b'\'' | b'"') => quote = Some(byte),
            None if tag.as_bytes()[i..].starts_with(end.as_bytes()) => return i + end.len(),
            None => {}
        }
    }
    tag.len()
}

/// Length of a raw block's text.
fn raw(text: &str) -> usize {
    let tags = text.match_indices("{%").map(|(start, _)| start);
    let mut ends =
        tags.filter(|&start| word(&text[start..][..length(&text[start..], "%}")]) == Some("endraw"));
    ends.next().unwrap_or(text.len())
}

/// The only word of a `{% … %}`.
fn word(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    Some(inside.strip_suffix(['-', '+']).unwrap_or(inside).trim())
}

/// The same tag around another word.
fn with_word(tag: &str, new: &str) -> String {
    tag.replacen(word(tag).unwrap_or_default(), new, 1)
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
