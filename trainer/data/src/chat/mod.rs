//! Chat templates: the Jinja text by which a model's makers turn a conversation into one text.
//!
//! Rendered as Hugging Face does: blocks trimmed, lists and mappings and strings with Python's methods, `tojson`,
//! `raise_exception` and `strftime_now`, and `{% generation %}` around what the assistant says. One difference is left: `~` and
//! `join` write a boolean as `true` and nothing as `none`, which Python writes `True` and `None`.

mod bound;
mod find;
mod python;
mod spans;
mod tags;

use std::{ops::Range, path::Path};

use jiff::civil::DateTime;
use minijinja::{
    Environment, ErrorKind, UndefinedBehavior, Value,
    value::{Kwargs, Serde},
};
use serde_json::Map;

use crate::records::{Conversation, Message};
pub use find::find;

/// What one rendering may spend. An instruction of the engine takes one unit, and so do 64 bytes of whatever text or list it makes: so
/// this is a second of time and a quarter of a GB of memory at most, and far more than any conversation takes.
const FUEL: u64 = 4_000_000;

/// Variables that every conversation is rendered with.
pub(crate) const GIVEN: [&str; 4] = ["messages", TOOLS, DOCUMENTS, ADD_GENERATION_PROMPT];
const TOOLS: &str = "tools";
const DOCUMENTS: &str = "documents";
const ADD_GENERATION_PROMPT: &str = "add_generation_prompt";

/// A template ready to render.
pub struct ChatTemplate {
    source: String,
    name: String,
    env: Environment<'static>,
    /// Special tokens and settings, which templates read as variables.
    variables: Map<String, serde_json::Value>,
    has_tags: bool,
    program: bound::Program,
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedChat {
    /// What is tokenised, special tokens written out.
    pub text: String,
    /// Bytes between `{% generation %}` and `{% endgeneration %}`; `None` where the template has no such tags.
    pub generated: Option<Vec<Range<usize>>>,
}

/// Why a conversation has no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// A template file cannot be read.
    #[error("chat template {path}: {what}; check the path and its permissions")]
    Io {
        /// The file.
        path: String,
        /// The system's answer.
        what: String,
    },
    /// The template is no Jinja.
    #[error("chat template {name}, line {line}: {what}; mend it, or take another with chat_template_path")]
    Syntax {
        /// Whose template.
        name: String,
        /// Line of the template, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The template gives up on a conversation.
    #[error(
        "chat template {name}, line {line}: {what}; change the conversation to what the template accepts"
    )]
    Render {
        /// Whose template.
        name: String,
        /// Line of the template, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The template does not come to an end, or makes more text than any conversation has.
    #[error(
        "chat template {name} does not end: it was stopped after the work of {FUEL} instructions, of which 64 bytes of text are one; \
         mend its loops"
    )]
    Endless {
        /// Whose template.
        name: String,
    },
    /// Turns cannot be told apart.
    #[error(
        "chat template {name} writes turn {turn} otherwise when other turns follow it, so where its tokens are in the whole text \
         is unknown; give a template with {{% generation %}} tags around the assistant's words (chat_template_path), or \
         learn every token (assistant_only_loss: false, completion_only_loss: false)"
    )]
    NotAPrefix {
        /// Whose template.
        name: String,
        /// The turn, from 1.
        turn: usize,
    },
    /// A text with characters that mark the assistant's words.
    #[error(
        "a message has a character of U+FDD0..=U+FDEF, which Unicode reserves for programs; remove it from the record"
    )]
    Reserved,
}

impl ChatTemplate {
    /// Parses a template; `name` says in messages whose it is.
    ///
    /// # Errors
    /// It is no Jinja.
    pub fn new(
        source: &str,
        name: &str,
        variables: Map<String, serde_json::Value>,
    ) -> Result<Self, ChatError> {
        // As Jinja reads a text, wherever it was written.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let (text, has_tags) = tags::replaced(&source);
        let program = bound::Program::new(text).map_err(|e| ChatError::Syntax {
            name: name.into(),
            line: e.line().unwrap_or(1),
            what: said(&e),
        })?;
        Ok(Self { source, name: name.into(), env: environment(), variables, has_tags, program })
    }

    /// Reads a template from a file.
    ///
    /// # Errors
    /// The file cannot be read, or is no Jinja.
    pub fn load(path: &Path, variables: Map<String, serde_json::Value>) -> Result<Self, ChatError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| ChatError::Io { path: name.clone(), what: e.to_string() })?;
        Self::new(&text, &name, variables)
    }

    /// The same template on a day of one's choice; else it is today.
    pub fn on(mut self, now: DateTime) -> Self {
        add_clock(&mut self.env, move || now);
        self
    }

    /// Whose template.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Special tokens and settings.
    pub fn variables(&self) -> &Map<String, serde_json::Value> {
        &self.variables
    }

    /// Whether what it says depends on the day.
    pub fn is_dated(&self) -> bool {
        self.source.contains("strftime_now")
    }

    /// Whether it has `{% generation %}` tags.
    pub fn has_generation_tags(&self) -> bool {
        self.has_tags
    }

    /// The text of messages, with the beginning of an answer behind them if asked.
    ///
    /// # Errors
    /// The template fails, or refuses the messages.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&[serde_json::Value]>,
        add_generation_prompt: bool,
    ) -> Result<RenderedChat, ChatError> {
        if self.has_tags && messages.iter().any(|m| tags::reserved(m.object())) {
            return Err(ChatError::Reserved);
        }
        let mut context = Map::from_iter([
            (TOOLS.to_string(), tools.map_or(serde_json::Value::Null, |t| t.to_vec().into())),
            (DOCUMENTS.to_string(), serde_json::Value::Null),
            (ADD_GENERATION_PROMPT.to_string(), add_generation_prompt.into()),
        ]);
        context.extend(self.variables.clone());
        let messages: Vec<_> =
            messages.iter().map(|m| serde_json::Value::Object(m.object().clone())).collect();
        context.insert("messages".into(), messages.into());
        let root = Value::from(Serde(&context));
        let text = self.program.render(&self.env, root).map_err(|e| self.failed(&e))?;
        if !self.has_tags {
            return Ok(RenderedChat { text, generated: None });
        }
        let (text, generated) = tags::taken_out(&text);
        Ok(RenderedChat { text, generated: Some(generated) })
    }

    /// The whole conversation's text.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn conversation(&self, c: &Conversation) -> Result<RenderedChat, ChatError> {
        self.render(&c.messages, c.tools.as_deref(), false)
    }

    fn failed(&self, e: &minijinja::Error) -> ChatError {
        let name = self.name.clone();
        match e.kind() {
            ErrorKind::OutOfFuel => ChatError::Endless { name },
            _ => ChatError::Render { name, line: e.line().unwrap_or(1), what: said(e) },
        }
    }
}

const NAME: &str = "chat_template";

/// What an error says, without its place.
fn said(e: &minijinja::Error) -> String {
    match e.detail() {
        Some(detail) if e.kind() == ErrorKind::InvalidOperation => detail.to_string(),
        Some(detail) => format!("{}: {detail}", e.kind()),
        None => e.kind().to_string(),
    }
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(python::method);
    env.set_formatter(python::format);
    env.add_test("iterable", python::is_iterable);
    env.add_test("sequence", python::is_sequence);
    env.add_filter("tojson", python::tojson);
    env.add_filter("string", python::display);
    env.add_filter(tags::FILTER, tags::marked);
    env.add_filter(bound::FILTER, bound::bounded);
    env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    add_clock(&mut env, || jiff::ZonedDateTime::now().datetime());
    env
}

fn add_clock(env: &mut Environment<'static>, now: impl Fn() -> DateTime + Send + Sync + 'static) {
    env.add_function("strftime_now", move |format: &str, _: Kwargs| {
        jiff::fmt::strtime::format(format, now())
            .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
    });
}

#[cfg(test)]
mod tests;
