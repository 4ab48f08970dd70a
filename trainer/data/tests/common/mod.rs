//! A byte-level tokenizer without merges: every byte of a text is one token, so ids can be told by eye.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use chronicals_data::tokenizer::{TextTokenizer, TokenizerArgs};
use tokenizers::{
    AddedToken, Tokenizer, TruncationParams, models::bpe::BPE, pre_tokenizers::byte_level::ByteLevel,
    processors::template::TemplateProcessing,
};

/// The tokenizer with the given special tokens, before it is saved.
pub fn bytes(special: &[&str]) -> Tokenizer {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocab =
        (0..).zip(&alphabet).map(|(id, c)| (c.to_string(), id)).collect::<tokenizers::models::bpe::Vocab>();
    let mut tokenizer = Tokenizer::new(BPE::new(vocab, Vec::new()));
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, false)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer
        .add_special_tokens(special.iter().map(|&s| AddedToken::from(s, true)).collect::<Vec<_>>())
        .unwrap();
    tokenizer
}

/// The tokenizer with a post-processor that puts `<s>` before and `</s>` behind every text, and with truncation and
/// padding in its file.
pub fn bytes_with_template() -> Tokenizer {
    let mut tokenizer = bytes(&["<s>", "</s>"]);
    let id = |token| (token, tokenizer.token_to_id(token).unwrap());
    let template = TemplateProcessing::builder()
        .try_single("<s> $A </s>")
        .unwrap()
        .special_tokens(vec![id("<s>"), id("</s>")])
        .build()
        .unwrap();
    tokenizer.with_post_processor(Some(template));
    tokenizer.with_truncation(Some(TruncationParams { max_length: 4, ..Default::default() })).unwrap();
    tokenizer.with_padding(Some(Default::default()));
    tokenizer
}

/// Writes `tokenizer.json` into a folder.
pub fn save(tokenizer: &Tokenizer, dir: &Path) -> PathBuf {
    let path = dir.join("tokenizer.json");
    tokenizer.save(&path, false).unwrap();
    path
}

/// Saves and loads a tokenizer with special tokens of its own choice.
pub fn load(tokenizer: &Tokenizer) -> TextTokenizer {
    let dir = tempfile::tempdir().unwrap();
    TextTokenizer::load(&save(tokenizer, dir.path()), &TokenizerArgs::default()).unwrap()
}

/// One id.
pub fn id(tokenizer: &Tokenizer, token: &str) -> u32 {
    tokenizer.token_to_id(token).unwrap()
}
