//! Everything between a JSONL file and the batches of a step.
//!
//! [`records`] reads lines, [`template`] turns a record into prompt and response, [`tokenizer`] and [`tokenize`] make
//! token ids and a loss mask of them ([`chronibench_protocol::TokenStore`]), [`packing`] fills rows, [`plan`] decides
//! the batches of a whole run ([`chronibench_protocol::BatchPlan`]), and [`batch`] lays one micro-batch out for the
//! model.
//!
//! Nothing here keeps state between steps: the batches of step `n` are a function of data, arguments and seed, so a
//! resumed run continues with the samples it had not seen.

pub mod batch;
pub mod packing;
pub mod plan;
pub mod records;
pub mod template;
pub mod tokenize;
pub mod tokenizer;
