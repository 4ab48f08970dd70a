//! Generation on the CPU: keys and values of one document are kept from one forward pass to the next.

use chronicals_kernels::{Seam, attention::cached, gemm};

use super::CpuBackend;
use crate::{
    backend::{Attention, Param, View},
    error::Error,
};

/// Keys and values, `[k | v]` a token, of each block; and which block's attention is next.
#[derive(Default)]
pub(super) struct Cache {
    blocks: Vec<Vec<f32>>,
    next: usize,
}

impl CpuBackend {
    /// From now on every forward pass goes on with one document: its batches are the tokens that follow those before. Passes that
    /// fail or are given up are not to be followed by others.
    pub fn keep_keys_and_values(&mut self, blocks: usize, tokens: usize) {
        let width = 2 * self.dims.kv_heads * self.dims.head_dim;
        let empty = |_| Vec::with_capacity(tokens * width);
        self.cache = Some(Cache { blocks: (0..blocks).map(empty).collect(), next: 0 });
    }

    /// Attention to whatever is kept, where something is.
    pub(super) fn cached_attention(&mut self, a: &Attention) {
        self.launch(Seam::Attention, "cached", |b| b.attention_cost(false));
        let mut cache = self.cache.take().expect("keys and values are kept");
        let shape = self.dims.attention();
        let count = cache.blocks.len();
        let kv = &mut cache.blocks[cache.next];
        cache.next = (cache.next + 1) % count;
        cached::append(&self.act(a.qkv), shape, kv);
        cached::forward(&self.act(a.qkv), kv, shape, &mut self.act_mut(a.out));
        self.cache = Some(cache);
    }

    /// Logits `[V]` behind the last token of the current batch, of `y` `[T, D]`.
    ///
    /// # Errors
    /// They are not finite.
    pub fn last_logits(&self, head: &Param, y: View) -> Result<Vec<f32>, Error> {
        let (d, v) = (self.dims.hidden, self.dims.vocab);
        let y = self.act(y);
        let mut logits = vec![0.0; v];
        gemm::linear_forward(&mut logits, &y[y.len() - d..], &self.get(head.value), 1, v, d, 0.0);
        if logits.iter().all(|x| x.is_finite()) {
            return Ok(logits);
        }
        Err(Error::new("logits are not finite", "generation").hint("check the model's weights"))
    }
}
