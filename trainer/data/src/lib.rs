//! Everything between a file of records and the batches of a step.
//!
//! [`records`] reads files, [`template`] turns a record into text, by the model's own template ([`chat`]) if asked,
//! [`tokenizer`] and [`tokenize`] make token ids and a loss mask of it ([`chronibench_protocol::TokenStore`]), which
//! [`cache`] keeps on disk. [`dataset`] is all of that at once, with samples held out for evaluation. [`packing`] fills
//! rows, [`plan`] decides the batches of a whole run ([`chronibench_protocol::BatchPlan`]), and [`batch`] lays one
//! micro-batch out for the model.
//!
//! Nothing here keeps state between steps: the batches of step `n` are a function of data, arguments and seed, so a
//! resumed run continues with the samples it had not seen.

pub mod batch;
pub mod cache;
pub mod chat;
pub mod dataset;
pub mod packing;
pub mod plan;
pub mod records;
pub mod template;
pub mod tokenize;
pub mod tokenizer;
