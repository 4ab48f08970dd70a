//! The text of a scenario file, and errors that point into it.

use serde::de::DeserializeOwned;
use serde_saphyr::Error as YamlError;

use super::located::{Place, Word};
use crate::error::{Error, Exit, Result};

/// A scenario's text and what to call it in messages.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file, as the user named it.
    pub name: String,
    /// Its contents.
    pub text: String,
}

impl Source {
    /// Reads the text as a `T`; errors carry line, column, the line itself and a suggestion.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_saphyr::from_str(&self.text).map_err(|e| self.yaml_error(e.without_snippet()))
    }

    /// An error that points at `place`.
    pub fn error(&self, exit: Exit, place: Place, what: impl Into<String>) -> Error {
        let mut e = Error::new(exit, what, format!("{}:{}:{}", self.name, place.line, place.column));
        e.snippet = self.snippet(place);
        e
    }

    /// A usage error about `word`: it is not one of `known`, and which of them it may have meant.
    pub fn unknown(&self, kind: &str, word: &Word, known: &[&str]) -> Error {
        self.error(Exit::Usage, word.place, format!("unknown {kind} '{}'", word.text))
            .hint(suggestion(&word.text, known))
    }

    fn yaml_error(&self, e: &YamlError) -> Error {
        let (what, hint) = match e {
            YamlError::SerdeUnknownField { field, expected, .. } => {
                (format!("unknown field '{field}'"), suggestion(field, expected))
            }
            YamlError::SerdeUnknownVariant { variant, expected, .. } => {
                (format!("'{variant}' is not a choice here"), suggestion(variant, expected))
            }
            YamlError::SerdeMissingField { field, .. } => {
                (format!("missing field '{field}'"), "add it to the mapping that holds this line".to_string())
            }
            YamlError::DuplicateMappingKey { key, .. } => {
                let key = key.as_deref().unwrap_or_default();
                (format!("'{key}' comes twice"), "keep one of the two".to_string())
            }
            YamlError::InvalidScalar { ty, .. } => {
                (format!("expected {}", plain_type(ty)), SEE_SCHEMA.to_string())
            }
            other => (first_line(&other.to_string()), SEE_SCHEMA.to_string()),
        };
        match e.location() {
            Some(l) => {
                let place = Place { line: l.line() as usize, column: l.column() as usize };
                self.error(Exit::Usage, place, what)
            }
            None => Error::usage(what, &self.name),
        }
        .hint(hint)
    }

    /// The line of `place`, numbered, with a mark under the word.
    fn snippet(&self, place: Place) -> String {
        let Some(line) = self.text.lines().nth(place.line.wrapping_sub(1)) else { return String::new() };
        let word = line
            .chars()
            .skip(place.column.saturating_sub(1))
            .take_while(|c| !c.is_whitespace() && !",:}]".contains(*c))
            .count()
            .max(1);
        let number = place.line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(place.column.saturating_sub(1));
        format!("{margin} |\n{number} | {line}\n{margin} | {indent}{}", "^".repeat(word))
    }
}

const SEE_SCHEMA: &str = "`chronibench schema` tells what is allowed where";

/// What a Rust type is to somebody who writes YAML.
fn plain_type(ty: &str) -> &str {
    match ty {
        "f32" | "f64" => "a number",
        "bool" => "true or false",
        integer if integer.starts_with(['u', 'i']) => "a whole number",
        other => other,
    }
}

/// "did you mean" when a known word is close, and the list of known words.
pub fn suggestion(word: &str, known: &[&str]) -> String {
    let distance = |k: &str| match word.len() >= 3 && k.contains(word) {
        true => 1, // a shortened name
        false => strsim::damerau_levenshtein(word, k),
    };
    let near = known.iter().map(|k| (distance(k), *k)).filter(|(d, k)| *d <= 2.max(k.len() / 3)).min();
    let all = known.join(", ");
    match near {
        _ if known.is_empty() => "nothing is known here".to_string(),
        Some((_, k)) => format!("did you mean '{k}'? known: {all}"),
        None => format!("known: {all}"),
    }
}

/// The YAML library repeats the place behind the message; the error has it already.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.find(" at line ").or_else(|| line.find(": line ")) {
        Some(end) => line[..end].to_string(),
        None => line.to_string(),
    }
}
