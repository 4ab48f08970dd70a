//! The widths that views do not tell.

use chronicals_kernels::{attention, linear_ce, qk_rope, rmsnorm};

use crate::config::ModelConfig;

/// Extents of a model's operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Dims {
    pub hidden: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub eps: f32,
}

impl From<&ModelConfig> for Dims {
    fn from(c: &ModelConfig) -> Self {
        Self {
            hidden: c.hidden_size,
            ffn: c.intermediate_size,
            vocab: c.vocab_size,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            eps: c.rms_norm_eps,
        }
    }
}

impl Dims {
    pub(super) fn norm(self, tokens: usize) -> rmsnorm::Shape {
        rmsnorm::Shape { tokens, hidden: self.hidden }
    }

    pub(super) fn rope(self, tokens: usize) -> qk_rope::Shape {
        qk_rope::Shape { tokens, heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    pub(super) fn attention(self) -> attention::Shape {
        attention::Shape { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    pub(super) fn loss(self, tokens: usize) -> linear_ce::Shape {
        linear_ce::Shape { tokens, hidden: self.hidden, vocab: self.vocab }
    }
}
