//! The plain-autograd arm of a comparison, and an oracle for gradients: the supported decoder families written with
//! candle's own tensor operations, differentiated by candle's own autograd, updated by candle-nn's AdamW.
//!
//! It stands for what a competent user of an eager framework gets without writing kernels: eager attention with an
//! additive mask, the full `[N, V]` logits, one operation at a time. What costs nothing to avoid is avoided (copies of
//! keys and values for grouped heads, gradients of frozen weights, per-layer masks and rotary tables), so that a
//! ratio against it says something about fusion rather than about carelessness.
//!
//! candle's fused `rms_norm`, `softmax_last_dim`, `layer_norm` and `rope` have no backward and cut gradients without a
//! word; nothing here uses them, and a parameter that no gradient reaches is an error.
//!
//! Shapes in names and comments: `R` rows, `S` slots of a row, `N = R·S`, `D` hidden, `V` vocabulary, `H` query heads,
//! `G` key/value heads, `K` head dimension, `r` LoRA rank. Everything is f32 on the CPU.

pub mod batch;
pub mod config;
pub mod error;
pub mod gemm;
pub mod lora;
pub mod loss;
pub mod model;
pub mod optim;
pub mod run;
pub mod trainer;
pub mod weights;

mod check;
mod ops;

pub use error::ArmError;
pub use run::run;
