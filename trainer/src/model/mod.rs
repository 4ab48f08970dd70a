//! One model: its parameters and activations as views of a backend's buffers, and the step over them.

mod build;
mod offload;
mod recompute;
pub mod step;

pub use build::{Capacity, Setup};
pub use recompute::Level;

use crate::backend::{Attention, Group, HostPlace, Linear, Norm, Param, QkRope, View};

/// A transformer with everything a step reads and writes. Views overlap where never both are in use: blocks share what the
/// [level](Level) makes again, and the two passes share what neither keeps.
#[derive(Clone, Debug)]
pub struct Model {
    /// `[V, D]`.
    pub embed: Param,
    /// The blocks, in order.
    pub blocks: Vec<Block>,
    /// Final norm.
    pub norm: Norm,
    /// LM head `[V, D]`: the embedding itself when tied.
    pub head: Param,
    /// Residual stream behind the last block, `[T, D]`.
    pub x: View,
    /// The same, normalised: what the head reads.
    pub y: View,
    /// Output of a branch on the way forward, gradient of a branch's input on the way back, `[T, D]`.
    pub branch: View,
    /// Gradient of the residual stream, `[T, D]`.
    pub dx: View,
    /// Gradient of the packed QKV, `[T, Q]`.
    pub dqkv: View,
    /// Gradient of the attention output, `[T, H·K]`.
    pub dattention: View,
    /// Gradient of the SwiGLU output, `[T, F]`.
    pub dact: View,
    /// All gradients, end to end.
    pub grads: View,
    /// What the backward pass makes again.
    pub recompute: Level,
    /// What the optimizer updates.
    pub groups: Vec<Group>,
    /// Buffers of the model's own parameters and, under LoRA, of the adapters.
    pub weights: View,
    /// Flat adapters.
    pub adapters: Option<View>,
}

/// One transformer block.
#[derive(Clone, Debug)]
pub struct Block {
    /// Norm in front of attention.
    pub norm1: Norm,
    /// `q_proj k_proj v_proj` as one.
    pub qkv: Linear,
    /// Bias, QK-norm, rotation.
    pub rope: QkRope,
    /// Attention's buffers.
    pub attention: Attention,
    /// `o_proj`.
    pub o: Linear,
    /// Norm in front of the MLP.
    pub norm2: Norm,
    /// `gate_proj up_proj` as one.
    pub gate_up: Linear,
    /// `down_proj`.
    pub down: Linear,
    /// Residual stream entering the block, `[T, D]`.
    pub x: View,
    /// Where it waits for the backward pass, if not on the device.
    pub at_host: Option<HostPlace>,
    /// Normalised `x`.
    pub y1: View,
    /// Residual stream between attention and MLP, `[T, D]`.
    pub mid: View,
    /// Normalised `mid`.
    pub y2: View,
    /// `[gate up]`, `[T, 2F]`; its gradient after the backward.
    pub gate_up_out: View,
    /// SwiGLU output, `[T, F]`.
    pub act: View,
}
