//! Launches of `adapted.cu`: SwiGLU between two linear layers with low-rank adapters, whose updates it adds itself. Beside
//! [`super::cuda`] it reads the narrow factors alone, where updates written by a product of their own cost six more passes
//! over the operands. bf16.
//!
//! ```text
//! gate' = gate + xa_gate·(s·B_gate)ᵀ    up' = up + xa_up·(s·B_up)ᵀ    act = silu(gate')·up'
//! dact' = dact + dxa·A
//! ```
//!
//! Gate and up stay as they are; the backward pass computes `gate'` and `up'` again. Sums are in f32 and rounded once, with the
//! result; s·B is rounded, as [`crate::lora::cuda`] rounds it.

use super::cases::bytes;
use crate::{
    gpu::{Arg, Cost, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit},
    lora::{Segment, cuda::Group},
};

/// `adapted.cu`.
pub static UNIT: Unit = Unit {
    name: "swiglu_adapted",
    source: concat!(
        "#line 1 \"mma.cuh\"\n",
        include_str!("../gpu/mma.cuh"),
        "#line 1 \"swiglu/adapted.cu\"\n",
        include_str!("adapted.cu"),
    ),
    entries: &["swiglu_adapted_forward", "swiglu_adapted_backward"],
    elems: &[Elem::Bf16],
    needs: Needs::Ampere,
};

/// As in the kernel: threads and columns of a block, rows of a tile, rows of left factors that come at a time, ranks of a block of
/// products.
const THREADS: u32 = 256;
const STRIP: usize = 256;
const TILE: usize = 16;
const ROWS: usize = 64;
const GROUP: usize = 32;

/// Bytes of 32 ranks of a right factor, as `FACTOR`.
const FACTOR: usize = STRIP * GROUP * 2;

/// Blocks that a multiprocessor holds at once.
const BLOCKS_OF_PROCESSOR: usize = 2;

/// An adapter of gate or up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Half {
    /// First column of xa, columns, and first element of B.
    first: usize,
    ranks: usize,
    b: usize,
}

impl Half {
    const NONE: Self = Self { first: 0, ranks: 0, b: 0 };

    fn blocks(self) -> usize {
        if self.ranks == 0 { 0 } else { (self.first % 8 + self.ranks).div_ceil(GROUP) }
    }
}

/// Adapters of gate and up, of one group of [`crate::lora`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layer {
    gate: Half,
    up: Half,
    /// S of the group.
    s: usize,
    scale: f32,
}

impl Layer {
    /// No adapter.
    pub const NONE: Self = Self { gate: Half::NONE, up: Half::NONE, s: 0, scale: 0.0 };

    /// Those of the group of `segments`, whose packed output is gate and up; none where their factors are too large for the shared
    /// memory of the device.
    pub fn new(on: &dyn Launcher, segments: &[Segment], group: &Group) -> Option<Self> {
        let half = |offset: usize| {
            let mut placed = crate::lora::placed(segments);
            let found = placed.find(|p| p.segment.offset == offset);
            found.map_or(Half::NONE, |p| Half { first: p.s, ranks: p.segment.r, b: p.b })
        };
        let (gate, up) = (half(0), half(group.shape.outputs / 2));
        let fits = gate.blocks() + up.blocks() <= 2 * blocks_that_fit(on);
        fits.then_some(Self { gate, up, s: group.s, scale: group.scale })
    }

    fn args(&self, xa_TS: Ptr, b: Ptr) -> [Arg; 9] {
        let int = |n: usize| Arg::I32(n as i32);
        let at = |h: Half| Arg::Ptr(if h.ranks == 0 { Ptr::NULL } else { b.offset(2 * h.b) });
        let (gate, up) = (self.gate, self.up);
        [
            Arg::Ptr(xa_TS),
            int(self.s),
            at(gate),
            int(gate.first),
            int(gate.ranks),
            at(up),
            int(up.first),
            int(up.ranks),
            Arg::F32(self.scale),
        ]
    }
}

/// The adapter behind: of the layer that reads the activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    ranks: usize,
    s: usize,
}

impl Behind {
    /// No adapter.
    pub const NONE: Self = Self { ranks: 0, s: 0 };

    /// That of a group of one; none where its factor is too large.
    pub fn new(on: &dyn Launcher, group: &Group) -> Option<Self> {
        (group.ranks.div_ceil(GROUP) <= blocks_that_fit(on))
            .then_some(Self { ranks: group.ranks, s: group.s })
    }
}

/// Bytes of two stages of left factors, as `width_of` pads them.
fn left_bytes(columns: usize) -> usize {
    2 * ROWS * 2 * (8 * ((columns / 8) | 1))
}

/// Bytes of shared memory of a block: right factors, and left ones.
fn shared(layer: &Layer, behind: &Behind) -> usize {
    let blocks = layer.gate.blocks() + layer.up.blocks() + behind.ranks.div_ceil(GROUP);
    FACTOR * blocks + left_bytes(layer.s + behind.s)
}

/// Gate, up and activation, or these and three gradients; the left factors; and the products with them.
fn cost(op: &str, layer: &Layer, behind: &Behind, tokens: usize, ffn: usize) -> Cost {
    let of_factors = 2 * tokens * (layer.s + behind.s);
    let ranks = layer.gate.ranks + layer.up.ranks + behind.ranks;
    let right = 2 * ranks * ffn;
    Cost {
        bytes: bytes(op, tokens, ffn, 2) + (of_factors + right) as u64,
        flops: 2 * (tokens * ffn) as u64 * ranks as u64,
        flops_a_pair: 0,
    }
}

/// Blocks of 32 ranks that each of three right factors may have: one on every device, and two on those of data centres.
fn blocks_that_fit(on: &dyn Launcher) -> usize {
    let fit = |n: &usize| FACTOR * 3 * n + left_bytes(3 * n * GROUP) <= on.shared_bytes();
    [2, 1].into_iter().find(fit).unwrap_or(0)
}

/// Operands of both passes.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// Gate and up without the updates, T × 2F; replaced by its gradient on the way back.
    pub gate_up_T2F: Ptr,
    /// Left factor of their updates, T × S.
    pub xa_TS: Ptr,
    /// The B of the group, one after another.
    pub b: Ptr,
}

/// `act_TF`; overwritten.
///
/// # Safety
/// As [`Launcher::launch`]: operands have the lengths that their docs say, in bf16, 16-byte aligned, and overlap nothing.
///
/// # Errors
/// As [`Launcher::launch`].
///
/// # Panics
/// When `ffn` is no multiple of 8.
pub unsafe fn forward(
    on: &dyn Launcher,
    layer: &Layer,
    o: &Operands,
    act_TF: Ptr,
    tokens: usize,
    ffn: usize,
) -> Result<(), GpuError> {
    let (grid, extents) = grid(on, shared(layer, &Behind::NONE), tokens, ffn);
    let mut args = vec![Arg::Ptr(o.gate_up_T2F), Arg::Ptr(act_TF)];
    args.extend(extents);
    args.extend(layer.args(o.xa_TS, o.b));
    on.costs(cost("swiglu_forward", layer, &Behind::NONE, tokens, ffn));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry("swiglu_adapted_forward", Elem::Bf16), grid, &args) }
}

/// Gradient of the activation, without the update.
#[derive(Clone, Copy, Debug)]
pub struct Gradient {
    /// T × F.
    pub dact_TF: Ptr,
    /// Left factor of its update, T × S of its group.
    pub dxa_TS: Ptr,
    /// Right factor, its rank × F.
    pub a_RF: Ptr,
}

/// Replaces `gate_up_T2F` by its gradient.
///
/// # Safety
/// As [`forward`].
///
/// # Errors
/// As [`forward`].
///
/// # Panics
/// As [`forward`].
pub unsafe fn backward(
    on: &dyn Launcher,
    layer: &Layer,
    behind: &Behind,
    o: &Operands,
    d: &Gradient,
    tokens: usize,
    ffn: usize,
) -> Result<(), GpuError> {
    let (grid, extents) = grid(on, shared(layer, behind), tokens, ffn);
    let mut args = vec![Arg::Ptr(o.gate_up_T2F), Arg::Ptr(d.dact_TF)];
    args.extend(extents);
    args.extend(layer.args(o.xa_TS, o.b));
    let [s, ranks] = [behind.s, behind.ranks].map(|n| Arg::I32(n as i32));
    args.extend([Arg::Ptr(d.dxa_TS), s, Arg::Ptr(d.a_RF), ranks]);
    on.costs(cost("swiglu_backward", layer, behind, tokens, ffn));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry("swiglu_adapted_backward", Elem::Bf16), grid, &args) }
}

/// Strips by parts of the rows; tokens, F and tiles of a part.
fn grid(on: &dyn Launcher, shared: usize, tokens: usize, ffn: usize) -> (Grid, [Arg; 3]) {
    assert!(ffn > 0 && ffn.is_multiple_of(8), "rows of {ffn} are no multiple of 8");
    assert!(tokens <= i32::MAX as usize / 2 && ffn <= i32::MAX as usize / 4, "{tokens}×{ffn} are too many");
    let (strips, all) = (ffn.div_ceil(STRIP), tokens.div_ceil(TILE));
    // All blocks at once, and no second wave, since each makes its factors ready first.
    let parts = (BLOCKS_OF_PROCESSOR * on.processors() as usize / strips).max(1);
    let tiles = all.div_ceil(parts);
    let blocks = (strips as u32, all.div_ceil(tiles) as u32);
    let extents = [tokens, ffn, tiles].map(|n| Arg::I32(n as i32));
    (Grid { blocks, threads: THREADS, shared: shared as u32 }, extents)
}
