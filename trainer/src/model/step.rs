//! The training step, written once for every device.
//!
//! Pre-norm blocks: `mid = x + o(attention(rope(qkv(norm1(x)))))`, `x' = mid + down(swiglu(gate_up(norm2(mid))))`. The
//! residual add of a branch is taken together with the norm that follows it.

use super::{Block, Model, offload, recompute};
use crate::backend::Backend;

/// What a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// A backward pass comes behind it.
    Training,
    /// Its loss alone is wanted.
    Evaluation,
}

/// From token ids to the normalised residual stream that the head reads.
pub fn forward<B: Backend>(b: &mut B, m: &Model, purpose: Purpose) {
    b.embed(m.embed.value, m.blocks[0].x);
    for (l, k) in m.blocks.iter().enumerate() {
        offload::make_room(b, m, l);
        match l.checked_sub(1) {
            None => b.norm(&k.norm1, k.x, k.y1),
            Some(below) => b.add_norm(&k.norm1, m.blocks[below].mid, m.branch, k.x, k.y1),
        }
        if purpose == Purpose::Training {
            offload::leave(b, m, l);
        }
        attend(b, m, k);
        b.linear(&k.gate_up, k.y2, k.gate_up_out);
        b.swiglu(&k.gate_up, k.gate_up_out, k.act);
        b.linear(&k.down, k.act, m.branch);
    }
    b.add_norm(&m.norm, m.last().mid, m.branch, m.x, m.y);
}

/// From a block's normalised entry to the residual stream behind attention, normalised.
pub(super) fn attend<B: Backend>(b: &mut B, m: &Model, k: &Block) {
    b.linear(&k.qkv, k.y1, k.attention.qkv);
    b.qk_rope(&k.rope, k.attention.qkv);
    b.attention(&k.attention);
    b.linear(&k.o, k.attention.out, m.branch);
    b.add_norm(&k.norm2, k.x, m.branch, k.mid, k.y2);
}

/// From the loss to every gradient. What a block did not keep is made again ahead of what reads it.
pub fn backward<B: Backend>(b: &mut B, m: &Model) {
    b.loss(&m.head, m.y, m.branch);
    b.norm_backward(&m.norm, m.branch, m.x, m.dx, false);
    for (l, k) in m.blocks.iter().enumerate().rev() {
        offload::arrive(b, m, l);
        recompute::mlp(b, m, k);
        b.linear_backward(&k.down, m.dx, k.act, Some(m.dact));
        b.swiglu_backward(&k.gate_up, &k.down, k.gate_up_out, m.dact);
        b.linear_backward(&k.gate_up, k.gate_up_out, k.y2, Some(m.branch));
        b.norm_backward(&k.norm2, m.branch, k.mid, m.dx, true);

        b.linear_backward(&k.o, m.dx, k.attention.out, Some(m.dattention));
        b.attention_backward(&k.attention, m.dattention, m.dqkv);
        b.qk_rope_backward(&k.rope, m.dqkv);
        recompute::attention_input(b, m, k);
        if l == 0 && !m.trains_below_first_block() {
            b.linear_backward(&k.qkv, m.dqkv, k.y1, None);
            return;
        }
        b.linear_backward(&k.qkv, m.dqkv, k.y1, Some(m.branch));
        b.norm_backward(&k.norm1, m.branch, k.x, m.dx, true);
        offload::call_back(b, m, l);
    }
    if let Some(dtable) = m.embed.grad {
        b.embed_backward(m.dx, dtable);
    }
}

impl Model {
    fn last(&self) -> &Block {
        self.blocks.last().expect("a model has at least one block")
    }

    /// Something in front of the first projection wants a gradient: the embedding or the first norm.
    fn trains_below_first_block(&self) -> bool {
        self.embed.grad.is_some() || self.blocks[0].norm1.weight.grad.is_some()
    }
}
