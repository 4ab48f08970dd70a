//! Forward and backward kernels of a decoder-only transformer, each fused and unfused, one folder each.
//!
//! Shape suffixes: `T` tokens (slots of a micro-batch), `D` hidden, `F` feed-forward, `V` vocabulary, `H` query heads,
//! `G` key/value heads, `K` head dimension, `Q = (H + 2G)·K` the packed QKV width, `R` LoRA rank, `N`/`M` any.
//! `x_TD` is tokens × hidden, row-major.

pub mod adamw;
pub mod attention;
pub mod cases;
pub mod embedding;
pub mod gemm;
pub mod gpu;
pub mod linear_ce;
pub mod lora;
mod passes;
pub mod plan;
pub mod qk_rope;
pub mod rmsnorm;
pub mod simd;
pub mod swiglu;
#[cfg(test)]
mod testing;

pub use plan::{KernelPlan, Seam, Target, Variant};
