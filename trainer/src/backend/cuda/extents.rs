//! How large everything is that a step needs besides the model's own buffers: pure functions, for the backend and for plans.

use chronicals_kernels::{
    KernelPlan, Seam, Variant,
    adamw::cuda as adamw,
    attention::cuda as attention,
    attention::cuda_eager::{Most, most},
    embedding::cuda as embedding,
    gpu::{Elem, GpuError},
    linear_ce::Options as LossTerms,
    linear_ce::cuda as linear_ce,
    lora::cuda as lora,
    qk_rope::cuda as qk_rope,
    rmsnorm::cuda as rmsnorm,
};

use super::{Formats, dims::Dims, eager};
use crate::{
    backend::{Adapter, Linear},
    model::{Capacity, Model},
};

/// Extents that occur: numbers of tokens and of rows with a loss are rounded up, so that few shapes do, each with its graphs
/// and its tuned products. What is added is padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Tokens are a multiple of it, or the capacity.
    pub tokens: usize,
    /// Rows with a loss are a multiple of it, or the tokens.
    pub rows: usize,
}

impl Buckets {
    /// At most sixteen of each.
    pub fn of(capacity: Capacity) -> Self {
        let step = capacity.tokens.div_ceil(16).next_multiple_of(128);
        Self { tokens: step, rows: step }
    }

    pub(super) fn up(step: usize, n: usize, most: usize) -> usize {
        n.max(1).next_multiple_of(step).min(most)
    }

    fn all(step: usize, most: usize) -> impl Iterator<Item = usize> {
        (step..most).step_by(step).chain([most])
    }
}

/// What decides how large a step is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extents {
    pub dims: Dims,
    pub capacity: Capacity,
    pub formats: Formats,
    pub plan: KernelPlan,
    pub loss: LossTerms,
    pub processors: u32,
    pub buckets: Buckets,
}

impl Extents {
    pub(super) fn elem(&self) -> Elem {
        self.formats.elem
    }

    pub(super) fn is_eager(&self, seam: Seam) -> bool {
        self.plan.get(seam) == Variant::Eager
    }

    /// Tokens and rows with a loss that a batch of these is taken for. Scores of eager attention are those of whole rows, so
    /// that no token is added there.
    pub(super) fn bucketed(&self, tokens: usize, rows: usize) -> (usize, usize) {
        let whole = self.is_eager(Seam::Attention);
        let t = if whole { tokens } else { Buckets::up(self.buckets.tokens, tokens, self.capacity.tokens) };
        (t, Buckets::up(self.buckets.rows, rows, t))
    }

    pub(super) fn loss_plan(&self, tokens: usize, rows: usize) -> linear_ce::Plan {
        linear_ce::Plan::new(self.dims.loss(tokens), self.elem(), rows, self.loss.chunk_rows)
    }

    pub(super) fn eager_attention(&self) -> Most {
        most(self.elem(), self.dims.attention(), self.capacity.tokens, self.capacity.row_slots)
    }

    fn embedding(&self) -> embedding::Shape {
        let Dims { vocab, hidden, .. } = self.dims;
        embedding::Shape { tokens: self.capacity.tokens, vocabulary: vocab, hidden }
    }

    /// The group of adapters on a projection.
    pub(super) fn lora(&self, linear: &Linear, adapter: &Adapter, tokens: usize) -> lora::Group {
        let shape =
            chronicals_kernels::lora::Shape { tokens, inputs: linear.inputs, outputs: linear.outputs };
        lora::Group::new(&adapter.segments, shape, self.elem(), adapter.scale)
    }

    /// Scratch that kernels use one after another: that of the one that needs most.
    ///
    /// # Errors
    /// Adapters that have no eager kernels.
    pub(super) fn scratch_bytes(&self, model: &Model) -> Result<usize, GpuError> {
        let (t, dims, mp) = (self.capacity.tokens, self.dims, self.processors);
        let fused = |seam| !self.is_eager(seam);
        let mut floats = vec![adamw::norm_scratch_floats(mp)];
        if fused(Seam::Attention) {
            floats.push(attention::scratch_floats(mp, t, dims.attention()));
        }
        if fused(Seam::Norm) && model.blocks[0].norm1.weight.grad.is_some() {
            floats.push(rmsnorm::scratch_floats(mp, dims.norm(t)));
        }
        if fused(Seam::QkRope) {
            let (bias, norm) = rope_gradients(model);
            floats.push(qk_rope::scratch_floats(mp, dims.rope(t), bias, norm));
        }
        if model.embed.grad.is_some() {
            floats.push(embedding::scratch_floats(self.embedding()));
        }
        let mut bytes: Vec<usize> = floats.into_iter().map(|n| 4 * n).collect();
        if fused(Seam::Loss) {
            let plans = Buckets::all(self.buckets.tokens, t).flat_map(|t| {
                Buckets::all(self.buckets.rows, t).map(move |rows| self.loss_plan(t, rows).scratch_bytes())
            });
            bytes.extend(plans);
        }
        if fused(Seam::Lora) {
            bytes.extend(adapters(model).map(|(l, ad)| self.lora(l, ad, t).scratch_bytes()));
        }
        bytes.extend(eager::scratch_bytes(model, self)?);
        Ok(bytes.into_iter().max().expect("a few"))
    }
}

/// Whether the biases and the norm weights of queries and keys train.
fn rope_gradients(model: &Model) -> (bool, bool) {
    let rope = &model.blocks[0].rope;
    let bias = rope.bias.is_some_and(|b| b.grad.is_some());
    (bias, rope.norm.is_some_and(|n| n.q_weight.grad.is_some()))
}

/// Every projection.
pub(super) fn linears(model: &Model) -> impl Iterator<Item = &Linear> {
    model.blocks.iter().flat_map(|k| [&k.qkv, &k.o, &k.gate_up, &k.down])
}

/// Every batch of adapters, with its projection.
pub(super) fn adapters(model: &Model) -> impl Iterator<Item = (&Linear, &Adapter)> {
    linears(model).flat_map(|l| l.adapters.iter().map(move |ad| (l, ad)))
}

/// Where the parts of a batch are in its memory, bytes, whatever its extents.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLayout {
    pub ids: usize,
    pub positions: usize,
    /// `linear_ce::cuda::index`.
    pub labels: usize,
    /// `attention::cuda::documents`.
    pub documents: usize,
    /// `embedding::cuda::index`.
    pub order: usize,
    pub bytes: usize,
}

impl BatchLayout {
    pub(super) fn of(capacity: Capacity) -> Self {
        let t = capacity.tokens;
        // Of rows with a loss there are at most as many as tokens.
        let words = [t, t, 3 * t, attention::documents_len(t), embedding::index_len(t)];
        let mut at = 0;
        let [ids, positions, labels, documents, order] = words.map(|n| {
            let begin = at;
            at += (4 * n).next_multiple_of(256);
            begin
        });
        Self { ids, positions, labels, documents, order, bytes: at }
    }
}

/// Where the numbers of a step are in their memory, bytes.
pub(super) mod scalars {
    /// Sum of the loss, f64.
    pub const LOSS: usize = 0;
    /// Norm and clip factor, f32.
    pub const CLIP: usize = 16;
    /// Factor of the loss's gradient, f32.
    pub const SCALE: usize = 32;
    /// Norms of groups, f32.
    pub const NORMS: usize = 36;
    /// Hyper-parameters of the update; what is before it begins a step.
    pub const HYPER: usize = 48;

    const _: () = assert!(NORMS + 4 * chronicals_kernels::adamw::cuda::NORM_GROUPS <= HYPER);

    /// Bytes for so many groups.
    pub fn bytes(groups: usize) -> usize {
        HYPER + chronicals_kernels::adamw::cuda::hyper_len(groups)
    }
}

/// Bytes of what a model's steps need besides its own buffers, by name.
pub(super) struct Extras {
    pub masters: usize,
    pub scratch: usize,
    pub batch: usize,
    pub scalars: usize,
    /// Of cosines, and as many of sines.
    pub rotation: usize,
    /// What eager kernels keep.
    pub pieces: eager::Pieces,
    /// Of a block's entry, as it waits on the host.
    pub entry: usize,
}

impl Extras {
    /// # Errors
    /// Adapters that have no eager kernels, or magnitudes.
    pub(super) fn of(model: &Model, e: &Extents) -> Result<Self, GpuError> {
        if linears(model).any(|l| l.dora.is_some()) {
            let hint = "train with device: cpu, or with use_dora: false; `chronicals merge` makes a plain model of a DoRA adapter";
            let (what, at) = ("DoRA has no kernels on a GPU".into(), "method.use_dora".into());
            return Err(GpuError { what, at, hint: hint.into() });
        }
        Ok(Self {
            masters: if e.formats.has_masters() { 4 * model.grads.len } else { 0 },
            scratch: e.scratch_bytes(model)?,
            batch: BatchLayout::of(e.capacity).bytes,
            scalars: scalars::bytes(model.groups.len()),
            rotation: 4 * e.capacity.row_slots * e.dims.head_dim / 2,
            pieces: eager::Pieces::of(model, e),
            entry: e.elem().bytes() * e.capacity.tokens * e.dims.hidden,
        })
    }
}
