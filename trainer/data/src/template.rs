//! From a record to text: which template, and which part of the text is learned.

use std::{ops::Range, str::FromStr};

use crate::{
    chat::{ChatError, ChatTemplate},
    records::{Conversation, Message, Record},
};

/// How a record becomes text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Template {
    /// The one that suits the record: `chat` for conversations, else `alpaca`, `plain` or `text`.
    #[default]
    Auto,
    /// The Alpaca prompt as the Chronicals paper gives it (arXiv 2601.02609): one preamble with and without input, the
    /// input behind the instruction as `\n\nInput: …`.
    Alpaca,
    /// Prompt and completion as they are.
    Plain,
    /// No prompt: the text alone.
    Text,
    /// The model's own chat template. A record with a prompt becomes a conversation of two turns.
    Chat,
}

/// What is learned of a sample, named as in TRL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// What follows the prompt, or every token; `None` is the former wherever the record has a prompt.
    pub completion_only: Option<bool>,
    /// What the assistant says in a conversation.
    pub assistant_only: bool,
}

impl Loss {
    /// What is learned of such records, in words.
    pub fn of(self, record: &Record) -> &'static str {
        let completion = self.completion_only.unwrap_or(true);
        match record {
            Record::Text { .. } => "every token",
            Record::Conversation(c) if self.assistant_only && c.prompt.is_some() && completion => {
                "the assistant's turns behind the prompt"
            }
            _ if self.assistant_only => "the assistant's turns",
            Record::Conversation(c) if c.prompt.is_none() => "every token",
            _ if completion => "what follows the prompt",
            _ => "every token",
        }
    }
}

/// Text of one sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rendered {
    /// Prompt and response, which are tokenised apart. The end-of-sequence token is not part of either: it is appended as an
    /// id when the response is tokenised, so no template can forget it and no tokenizer can split it.
    Apart {
        /// What the model is given.
        prompt: String,
        /// What it is to say.
        response: String,
        /// The response alone is learned.
        response_only: bool,
    },
    /// One text, special tokens written out.
    Whole {
        /// The text.
        text: String,
        /// Its bytes that are learned.
        learned: Vec<Range<usize>>,
    },
    /// A record whose answer is empty or blank.
    Blank,
}

/// A template that does not exist or does not suit the data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// No template has this name.
    #[error("unknown template `{name}`; known are {}", known())]
    Unknown {
        /// Name asked for.
        name: String,
    },
    /// The template cannot use records of this format.
    #[error("template `{template}` needs {needs}, the data set has {found}; choose template `{suited}`")]
    Unsuited {
        /// Template in use.
        template: &'static str,
        /// Records it needs.
        needs: &'static str,
        /// Records the data set has.
        found: &'static str,
        /// A template for these records.
        suited: &'static str,
    },
    /// The tokenizer has no chat template.
    #[error(
        "the tokenizer has no chat template, neither chat_template.jinja nor in tokenizer_config.json; name a Jinja file with \
         chat_template_path, or use the tokenizer of an instruction-tuned model"
    )]
    NoChatTemplate,
    /// Only conversations have an assistant.
    #[error(
        "assistant_only_loss needs a conversation, template `{template}` writes none; choose template `chat`, or \
         completion_only_loss"
    )]
    NoAssistant {
        /// Template in use.
        template: &'static str,
    },
    /// A conversation that does not say where its prompt ends.
    #[error(
        "completion_only_loss needs records with a prompt, these are conversations; choose assistant_only_loss, or split each into \
         `prompt` and `completion`"
    )]
    NoPrompt,
    /// The chat template fails.
    #[error(transparent)]
    Chat(#[from] ChatError),
}

impl Template {
    /// Every template.
    pub const ALL: [Self; 5] = [Self::Auto, Self::Alpaca, Self::Plain, Self::Text, Self::Chat];

    /// The name used in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Alpaca => "alpaca",
            Self::Plain => "plain",
            Self::Text => "text",
            Self::Chat => "chat",
        }
    }

    /// The template in force for such records: `Auto` becomes the one that suits.
    pub fn of(self, record: &Record) -> Self {
        if self == Self::Auto { suited(record).0 } else { self }
    }

    /// Text of a record, and what of it is learned.
    ///
    /// # Errors
    /// When the record is not of the kind that the template uses, or the chat template refuses it.
    pub fn render(
        self,
        record: &Record,
        chat: Option<&ChatTemplate>,
        loss: Loss,
    ) -> Result<Rendered, TemplateError> {
        let template = self.of(record);
        let (prompt, response) = match (template, record) {
            (Self::Chat, _) => {
                let render = |c: &Conversation| {
                    let chat = chat.ok_or(TemplateError::NoChatTemplate)?;
                    conversation(c, chat, loss)
                };
                return in_turns(record, render).unwrap_or_else(|| Err(template.unsuited(record)));
            }
            (Self::Alpaca, Record::Instruction { instruction, input, output }) => {
                (alpaca_prompt(instruction, input.as_deref()), output)
            }
            (Self::Plain, Record::Completion { prompt, completion }) => (prompt.clone(), completion),
            (Self::Text, Record::Text { text }) => (String::new(), text),
            _ => return Err(template.unsuited(record)),
        };
        if loss.assistant_only {
            return Err(TemplateError::NoAssistant { template: template.name() });
        }
        if response.trim().is_empty() {
            return Ok(Rendered::Blank);
        }
        let response_only = loss.completion_only.unwrap_or(true);
        Ok(Rendered::Apart { prompt, response: response.clone(), response_only })
    }

    fn unsuited(self, record: &Record) -> TemplateError {
        let needs = match self {
            Self::Alpaca => "instruction and output",
            Self::Plain => "prompt and completion",
            Self::Text => "text",
            Self::Chat | Self::Auto => "turns, or a prompt and an answer",
        };
        let (suited, found) = suited(record);
        TemplateError::Unsuited { template: self.name(), needs, found, suited: suited.name() }
    }
}

/// The template for a record, and what the record has.
fn suited(record: &Record) -> (Template, &'static str) {
    match record {
        Record::Instruction { .. } => (Template::Alpaca, "instruction and output"),
        Record::Completion { .. } => (Template::Plain, "prompt and completion"),
        Record::Conversation(_) => (Template::Chat, "conversations"),
        Record::Text { .. } => (Template::Text, "text"),
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(name: &str) -> Result<Self, TemplateError> {
        let found = Self::ALL.into_iter().find(|template| template.name() == name);
        found.ok_or_else(|| TemplateError::Unknown { name: name.into() })
    }
}

fn alpaca_prompt(instruction: &str, input: Option<&str>) -> String {
    let input = input.map(|input| format!("\n\nInput: {input}")).unwrap_or_default();
    format!(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
         ### Instruction:\n{instruction}{input}\n\n### Response:\n"
    )
}

/// Hands a record over as a conversation, unless it is a text alone.
fn in_turns<T>(record: &Record, f: impl FnOnce(&Conversation) -> T) -> Option<T> {
    let two = |user: &str, assistant: &str| Conversation {
        messages: vec![Message::new("user", user), Message::new("assistant", assistant)],
        tools: None,
        prompt: Some(1),
    };
    Some(match record {
        Record::Conversation(conversation) => f(conversation),
        Record::Completion { prompt, completion } => f(&two(prompt, completion)),
        Record::Instruction { instruction, input: None, output } => f(&two(instruction, output)),
        Record::Instruction { instruction, input: Some(input), output } => {
            f(&two(&format!("{instruction}\n\n{input}"), output))
        }
        Record::Text { .. } => return None,
    })
}

fn conversation(c: &Conversation, chat: &ChatTemplate, loss: Loss) -> Result<Rendered, TemplateError> {
    if loss.completion_only == Some(true) && c.prompt.is_none() {
        return Err(TemplateError::NoPrompt);
    }
    let prompt = c.prompt.filter(|_| loss.completion_only != Some(false));
    let answers = &c.messages[c.prompt.unwrap_or(0)..];
    let mut said = answers.iter().filter(|m| m.role() == "assistant").peekable();
    if said.peek().is_some() && said.all(Message::is_blank) {
        return Ok(Rendered::Blank);
    }
    let (text, learned) = match (loss.assistant_only, prompt) {
        (false, None) => {
            let text = chat.conversation(c)?.text;
            let all = 0..text.len();
            (text, vec![all])
        }
        (false, Some(prompt)) => {
            let (text, span) = chat.completion_span(c, prompt)?;
            (text, vec![span])
        }
        (true, None) => chat.assistant_spans(c)?,
        (true, Some(prompt)) => {
            let (text, spans) = chat.assistant_spans(c)?;
            let (_, completion) = chat.completion_span(c, prompt)?;
            let within = |span: Range<usize>| span.start.max(completion.start)..span.end;
            (text, spans.into_iter().map(within).filter(|span| !span.is_empty()).collect())
        }
    };
    Ok(Rendered::Whole { text, learned })
}

fn known() -> String {
    Template::ALL.map(|template| format!("`{}`", template.name())).join(", ")
}

#[cfg(test)]
mod tests;
