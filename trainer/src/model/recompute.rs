//! What is kept of a block from the forward to the backward pass, and how the rest is made again.

use std::fmt;

use super::{Block, Model, step};
use crate::backend::Backend;

/// How much is made again. Each level includes those before it: it takes less memory and more work, and gives the same
/// gradients to the bit, since the same kernels run on the same inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// SwiGLU's output.
    Swiglu,
    /// The normalised inputs of attention and MLP.
    Norm,
    /// Gate and up.
    Ffn,
    /// All but the residual stream at a block's entry.
    Block,
}

impl Level {
    /// Every level, the least work first.
    pub const ALL: [Self; 5] = [Self::None, Self::Swiglu, Self::Norm, Self::Ffn, Self::Block];

    /// Name in settings and records.
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "none",
            Level::Swiglu => "swiglu",
            Level::Norm => "norm",
            Level::Ffn => "ffn",
            Level::Block => "block",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Makes a block's MLP ready for its backward pass; at [`Level::Block`], which keeps its entry alone, attention too.
pub(super) fn mlp<B: Backend>(b: &mut B, m: &Model, k: &Block) {
    let again = |level| m.recompute >= level;
    if again(Level::Block) {
        b.norm(&k.norm1, k.x, k.y1);
        step::attend(b, m, k);
    } else if again(Level::Norm) {
        b.norm(&k.norm2, k.mid, k.y2);
    }
    if again(Level::Ffn) {
        b.linear(&k.gate_up, k.y2, k.gate_up_out);
    }
    if again(Level::Swiglu) {
        b.swiglu(&k.gate_up, k.gate_up_out, k.act);
    }
}

/// Makes the input of a block's attention, where the MLP's has taken its place.
pub(super) fn attention_input<B: Backend>(b: &mut B, m: &Model, k: &Block) {
    if m.recompute >= Level::Norm {
        b.norm(&k.norm1, k.x, k.y1);
    }
}
