//! Which bytes of a conversation's text are learned.

use std::ops::Range;

use super::{ChatError, ChatTemplate};
use crate::records::Conversation;

impl ChatTemplate {
    /// What the assistant says in `text`, the text of the whole conversation: what is between the template's tags, else what each
    /// turn of the assistant adds to the turns before it and the beginning of an answer.
    ///
    /// # Errors
    /// The template has no tags, and the text of some turns is not how the text of all begins.
    pub fn assistant_spans(&self, c: &Conversation) -> Result<(String, Vec<Range<usize>>), ChatError> {
        let whole = self.conversation(c)?;
        if let Some(generated) = whole.generated {
            return Ok((whole.text, generated));
        }
        let turns = c.messages.iter().enumerate().filter(|(_, m)| m.role() == "assistant");
        let span = |turn| {
            let before = self.text(c, turn, true)?;
            let after = self.text(c, turn + 1, false)?;
            if !(after.starts_with(&before) && whole.text.starts_with(&after)) {
                return Err(ChatError::NotAPrefix { name: self.name.clone(), turn: turn + 1 });
            }
            Ok(before.len()..after.len())
        };
        let spans = turns.map(|(turn, _)| span(turn)).collect::<Result<_, _>>()?;
        Ok((whole.text, spans))
    }

    /// What follows the first `prompt` messages in the text of the whole conversation.
    ///
    /// # Errors
    /// The text of the prompt is not how that of the whole begins.
    pub fn completion_span(
        &self,
        c: &Conversation,
        prompt: usize,
    ) -> Result<(String, Range<usize>), ChatError> {
        let whole = self.conversation(c)?.text;
        let answers = c.messages.get(prompt).is_some_and(|m| m.role() == "assistant");
        let before = self.text(c, prompt, answers)?;
        if !whole.starts_with(&before) {
            return Err(ChatError::NotAPrefix { name: self.name.clone(), turn: prompt });
        }
        let span = before.len()..whole.len();
        Ok((whole, span))
    }

    fn text(
        &self,
        c: &Conversation,
        messages: usize,
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let rendered = self.render(&c.messages[..messages], c.tools.as_deref(), add_generation_prompt)?;
        Ok(rendered.text)
    }
}
