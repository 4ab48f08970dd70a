//! Prompt templates: from a record to prompt and response.

use std::str::FromStr;

use crate::records::Record;

/// How a record becomes text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Template {
    /// The Alpaca prompt as the Chronicals paper gives it (arXiv 2601.02609): one preamble with and without input, the
    /// input behind the instruction as `\n\nInput: …`.
    Alpaca,
    /// No prompt: the text alone.
    Text,
}

/// Prompt and response of one sample. The end-of-sequence token is not part of either: it is appended as an id when
/// the response is tokenised, so no template can forget it and no tokenizer can split it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// What the model is given.
    pub prompt: String,
    /// What it is to say.
    pub response: String,
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
}

const INSTRUCTIONS: &str = "instruction and output";
const TEXTS: &str = "text";

impl Template {
    /// Every template.
    pub const ALL: [Self; 2] = [Self::Alpaca, Self::Text];

    /// The name used in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Text => "text",
        }
    }

    /// Prompt and response of a record.
    ///
    /// # Errors
    /// When the record is not of the kind that the template uses.
    pub fn render(self, record: &Record) -> Result<Rendered, TemplateError> {
        match (self, record) {
            (Self::Alpaca, Record::Instruction { instruction, input, output }) => Ok(Rendered {
                prompt: alpaca_prompt(instruction, input.as_deref()),
                response: output.clone(),
            }),
            (Self::Text, Record::Text { text }) => {
                Ok(Rendered { prompt: String::new(), response: text.clone() })
            }
            (Self::Alpaca, Record::Text { .. }) => Err(self.unsuited(INSTRUCTIONS, TEXTS, Self::Text)),
            (Self::Text, Record::Instruction { .. }) => Err(self.unsuited(TEXTS, INSTRUCTIONS, Self::Alpaca)),
        }
    }

    fn unsuited(self, needs: &'static str, found: &'static str, suited: Self) -> TemplateError {
        TemplateError::Unsuited { template: self.name(), needs, found, suited: suited.name() }
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

fn known() -> String {
    Template::ALL.map(|template| format!("`{}`", template.name())).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(input: Option<&str>) -> Record {
        Record::Instruction { instruction: "Add.".into(), input: input.map(String::from), output: "3".into() }
    }

    #[test]
    fn alpaca_with_and_without_input() {
        let plain = Template::Alpaca.render(&record(None)).unwrap();
        let preamble = "Below is an instruction that describes a task. Write a response that appropriately completes the \
                        request.\n\n### Instruction:\n";
        assert_eq!(plain.prompt, format!("{preamble}Add.\n\n### Response:\n"));
        assert_eq!(plain.response, "3");
        let with_input = Template::Alpaca.render(&record(Some("1, 2"))).unwrap();
        assert_eq!(with_input.prompt, format!("{preamble}Add.\n\nInput: 1, 2\n\n### Response:\n"));
    }

    #[test]
    fn text_has_no_prompt() {
        let rendered = Template::Text.render(&Record::Text { text: "x\n".into() }).unwrap();
        assert_eq!(rendered, Rendered { prompt: String::new(), response: "x\n".into() });
    }

    #[test]
    fn unknown_and_unsuited_templates_say_what_to_choose() {
        let e = "alpacca".parse::<Template>().unwrap_err();
        assert_eq!(e.to_string(), "unknown template `alpacca`; known are `alpaca`, `text`");
        assert_eq!("text".parse::<Template>().unwrap(), Template::Text);
        let e = Template::Text.render(&record(None)).unwrap_err();
        assert_eq!(
            e.to_string(),
            "template `text` needs text, the data set has instruction and output; choose template `alpaca`"
        );
    }
}
