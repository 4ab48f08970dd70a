//! GGUF, llama.cpp's files, versions 2 and 3: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! `parse` reads the header, `blocks` dequantises, `model` gives tensors their Hugging Face names and makes `config.json`,
//! `rope` finds its rotary scaling,
//! `tokenizer` makes `tokenizer.json`.

mod blocks;
mod model;
mod parse;
mod rope;
mod tokenizer;

pub use self::{
    blocks::Kind,
    model::Model,
    parse::{Header, Info, Value},
};
