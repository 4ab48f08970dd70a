//! Conversations against what Hugging Face Transformers makes of them: text, token ids and masks (`goldens/chat`).

use std::path::{Path, PathBuf};

use chronicals::data::{
    chat::ChatError,
    records::{Located, ReadArgs, Records},
    template::{Loss, Template, TemplateError},
    tokenize::{Samples, TokenizeError, read},
    tokenizer::{TextTokenizer, TokenizerArgs},
};
use serde_json::{Map, Value, json};

const EVERY: Loss = Loss { completion_only: Some(false), assistant_only: false };
const ASSISTANT: Loss = Loss { completion_only: None, assistant_only: true };
const COMPLETION: Loss = Loss { completion_only: Some(true), assistant_only: false };

/// One line of a `golden.json`.
struct Golden {
    folder: PathBuf,
    case: Map<String, Value>,
}

/// Every case of every folder that has the field.
fn goldens(field: &str) -> Vec<Golden> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/chat");
    let mut cases = Vec::new();
    for folder in std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()) {
        let text = std::fs::read_to_string(folder.join("golden.json")).unwrap();
        let of_folder: Vec<Map<String, Value>> = serde_json::from_str(&text).unwrap();
        cases.extend(of_folder.into_iter().map(|case| Golden { folder: folder.clone(), case }));
    }
    cases.retain(|golden| golden.case.contains_key(field));
    assert!(!cases.is_empty(), "no golden has {field}");
    cases
}

impl Golden {
    fn name(&self) -> String {
        let folder = self.folder.file_name().unwrap().to_string_lossy();
        format!("{folder}, {}, {}, {}", self.case["name"], self.case["template"], self.case["kwargs"])
    }

    fn tokenizer(&self) -> TextTokenizer {
        let args = TokenizerArgs {
            chat_template_path: self.case["template"].as_str().map(|name| self.folder.join(name)),
            chat_template_kwargs: self.case["kwargs"].as_object().unwrap().clone(),
            ..Default::default()
        };
        TextTokenizer::load(&self.folder, &args).unwrap()
    }

    /// The conversation by way of a file, as a user has it: whole, or as prompt and completion.
    fn record(&self, is_apart: bool) -> Located {
        let messages = self.case["messages"].as_array().unwrap();
        let mut record = match messages.split_last().filter(|_| is_apart) {
            Some((last, prompt)) => json!({"prompt": prompt, "completion": [last]}),
            None => json!({"messages": messages}),
        };
        record["tools"] = self.case["tools"].clone();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, record.to_string()).unwrap();
        Records::open(&path, &ReadArgs::default()).unwrap().next().unwrap().unwrap()
    }

    fn sample(&self, loss: Loss, is_apart: bool) -> Result<(Vec<u32>, String), TokenizeError> {
        let record = [Ok(self.record(is_apart))];
        let Samples { store, empty } = read(record, &self.tokenizer(), Template::Chat, loss, &mut |_| {})?;
        assert_eq!((store.len(), empty), (1, 0), "{}", self.name());
        let (ids, mask) = store.sample(0);
        Ok((ids.to_vec(), mask.iter().map(u8::to_string).collect()))
    }

    fn ids(&self) -> Vec<u32> {
        serde_json::from_value(self.case["ids"].clone()).unwrap()
    }

    /// What refuses the conversation.
    fn refused(&self, loss: Loss, is_apart: bool) -> ChatError {
        match self.sample(loss, is_apart) {
            Err(TokenizeError::Template { source: TemplateError::Chat(e), .. }) => e,
            other => panic!("{}: {other:?}", self.name()),
        }
    }
}

#[test]
fn every_text_is_rendered_to_the_byte() {
    for golden in goldens("text") {
        let record = golden.record(false);
        let chronicals::data::records::Record::Conversation(c) = &record.record else { unreachable!() };
        let template = golden.tokenizer().chat_template().unwrap().unwrap();
        for (field, add_generation_prompt) in [("text", false), ("prompted", true)] {
            let text = template.render(&c.messages, c.tools.as_deref(), add_generation_prompt).unwrap().text;
            assert_eq!(text, golden.case[field].as_str().unwrap(), "{} {field}", golden.name());
        }
    }
}

#[test]
fn ids_are_those_of_transformers_and_all_are_learned_if_asked() {
    for golden in goldens("ids") {
        let (ids, mask) = golden.sample(EVERY, false).unwrap();
        assert_eq!(ids, golden.ids(), "{}", golden.name());
        assert!(mask.chars().all(|m| m == '1'), "{}", golden.name());
    }
}

#[test]
fn the_assistants_turns_are_learned_token_by_token() {
    for golden in goldens("assistant") {
        let (ids, mask) = golden.sample(ASSISTANT, false).unwrap();
        assert_eq!(ids, golden.ids(), "{}", golden.name());
        assert_eq!(mask, golden.case["assistant"].as_str().unwrap(), "{}", golden.name());
    }
}

#[test]
fn what_follows_the_prompt_is_learned_token_by_token() {
    for golden in goldens("completion") {
        match golden.case["completion"].as_str() {
            Some(mask) => assert_eq!(
                golden.sample(COMPLETION, true).unwrap(),
                (golden.ids(), mask.to_string()),
                "{}",
                golden.name()
            ),
            None => {
                let e = golden.refused(COMPLETION, true);
                assert!(matches!(e, ChatError::NotAPrefix { .. }), "{}: {e}", golden.name());
            }
        }
    }
}

#[test]
fn turns_that_are_rewritten_later_are_refused() {
    for golden in goldens("not_a_prefix") {
        let e = golden.refused(ASSISTANT, false);
        let ChatError::NotAPrefix { turn, .. } = &e else { panic!("{}: {e}", golden.name()) };
        assert_eq!(Some(*turn as u64), golden.case["not_a_prefix"].as_u64(), "{}", golden.name());
        assert!(e.to_string().contains("generation") && e.to_string().contains("chat_template_path"), "{e}");
    }
}

#[test]
fn what_a_template_says_against_a_conversation_is_told() {
    for golden in goldens("error") {
        let e = golden.refused(EVERY, false);
        assert!(e.to_string().contains(golden.case["error"].as_str().unwrap()), "{}: {e}", golden.name());
    }
}
