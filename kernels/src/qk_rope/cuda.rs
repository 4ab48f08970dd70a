//! Launches of `kernel.cu`. The same contract as the CPU's functions; weights' and bias's gradients are f32.
//!
//! Cosines and sines come from memory: [`Tables`](super::Tables) computes them in f64, which keeps angles of far positions
//! exact, and packed documents share the few rows of their lengths, which stay in the L2 cache. A pass reads and writes
//! `q` and `k` once; forward with a bias `v` too; backward with a bias gradient reads `v`; the QK-norm adds its saved
//! operands, written forward and read backward.

use super::{Shape, cases::bytes};
use crate::gpu::{Arg, Cost, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit};

/// `kernel.cu` and `backward.cu`.
pub static UNIT: Unit = Unit {
    name: "qk_rope",
    source: concat!(include_str!("kernel.cu"), include_str!("backward.cu")),
    entries: &[
        "qk_rope_forward",
        "qk_rope_bias_forward",
        "qk_rope_norm_forward",
        "qk_rope_bias_norm_forward",
        "qk_rope_bias_backward",
        "qk_rope_norm_backward",
        "qk_rope_bias_norm_backward",
        "qk_rope_sum",
    ],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Threads of a block at most, as `THREADS` in the kernel.
const THREADS: usize = 256;

/// Heads of a thread, as `HEADS` in the kernel.
const HEADS: usize = 2;

/// Threads on a multiprocessor of a grid that stays: what its registers leave room for.
const RESIDENT_THREADS: usize = 512;

/// The angle of every token, in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// Cosines, f32 `[positions, K/2]`: [`Tables::cos`](super::Tables::cos).
    pub cos: Ptr,
    /// Sines, f32 `[positions, K/2]`: [`Tables::sin`](super::Tables::sin).
    pub sin: Ptr,
    /// Position of every token in its document, u32 `T`; inside the tables.
    pub positions: Ptr,
}

/// QK-norm of the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct NormForward {
    /// Weight of the query norm, `elem`.
    pub q_weight_K: Ptr,
    /// Weight of the key norm, `elem`.
    pub k_weight_K: Ptr,
    /// Added to the mean square.
    pub eps: f32,
    /// Saved: biased `q` and `k` before the norm, `elem`, `T×(H+G)·K`; overwritten. These, rounded, are what is normalised.
    pub pre_norm: Ptr,
    /// Saved: `r`, f32, `T×(H+G)`; overwritten.
    pub rstd: Ptr,
}

/// QK-norm of the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct NormBackward {
    /// Weight of the query norm, `elem`.
    pub q_weight_K: Ptr,
    /// Weight of the key norm, `elem`.
    pub k_weight_K: Ptr,
    /// What the forward saved, `elem`, `T×(H+G)·K`.
    pub pre_norm: Ptr,
    /// What the forward saved, f32, `T×(H+G)`.
    pub rstd: Ptr,
    /// Gradient of the query norm's weight, f32 `K`; added to.
    pub dq_weight_K: Option<Ptr>,
    /// Gradient of the key norm's weight, f32 `K`; added to.
    pub dk_weight_K: Option<Ptr>,
}

/// How tokens are spread over threads.
#[derive(Clone, Copy)]
struct Layout {
    /// Lanes of a head.
    lanes: usize,
    /// Slots of a block: pairs of heads of one side, of one token.
    slots: usize,
    /// Tokens of a block.
    rows: usize,
    /// Blocks that share a token.
    chunks: usize,
}

impl Layout {
    fn new(shape: Shape, with_v: bool) -> Self {
        let lanes = (shape.head_dim / 16).next_power_of_two();
        let (q, kv) = (shape.heads.div_ceil(HEADS), shape.kv_heads.div_ceil(HEADS));
        let all = q + kv * if with_v { 2 } else { 1 };
        let chunks = all.div_ceil(THREADS / lanes);
        let slots = all.div_ceil(chunks);
        Self { lanes, slots, rows: THREADS / (lanes * slots), chunks }
    }

    /// Whole warps.
    fn threads(self) -> u32 {
        (self.lanes * self.slots * self.rows).next_multiple_of(32) as u32
    }

    /// A grid in which a thread has one token.
    fn grid_of_all(self, shape: Shape) -> Grid {
        let blocks = (shape.tokens.div_ceil(self.rows) as u32, self.chunks as u32);
        Grid { blocks, threads: self.threads(), shared: 0 }
    }

    /// A grid that stays and strides over the tokens: forward with the bias in registers, backward with the sums of each block.
    fn resident_grid(self, shape: Shape, processors: u32) -> Grid {
        let blocks_of_processor = RESIDENT_THREADS / self.threads() as usize;
        let resident = (processors as usize * blocks_of_processor).div_ceil(self.chunks);
        let blocks = resident.min(shape.tokens.div_ceil(self.rows)).max(1);
        Grid { blocks: (blocks as u32, self.chunks as u32), threads: self.threads(), shared: 0 }
    }

    fn args(self, shape: Shape) -> [Arg; 7] {
        let [h, g, k, lanes, slots, rows] =
            [shape.heads, shape.kv_heads, shape.head_dim, self.lanes, self.slots, self.rows]
                .map(|n| Arg::I32(n as i32));
        [Arg::I64(shape.tokens as i64), h, g, k, lanes, slots, rows]
    }
}

/// Bytes of a pass: what is rotated read and written, with a bias the values too; with a norm what it saves is written, or
/// read, besides.
fn cost(elem: Elem, shape: Shape, bias: bool, norm: bool, backward: bool) -> Cost {
    let op = match (bias, backward) {
        (false, _) => "qk_rope_forward",
        (true, false) => "qk_rope_bias_forward",
        (true, true) => "qk_rope_bias_backward",
    };
    let of_norm = elem.bytes() * shape.rotated() + 4 * (shape.heads + shape.kv_heads);
    let saved = if norm { shape.tokens * of_norm } else { 0 };
    Cost::bytes(bytes(op, shape, elem.bytes() as u64) + saved as u64)
}

/// Floats of partial sums of bias and norm weights.
fn partials(grid: Grid, shape: Shape, bias: bool, norm: bool) -> (usize, usize) {
    let (x, y) = (grid.blocks.0 as usize, grid.blocks.1 as usize);
    (if bias { x * shape.packed() } else { 0 }, if norm { x * y * 2 * shape.head_dim } else { 0 })
}

/// Floats of scratch that [`backward`] needs for the gradients of `bias` and norm weights, whichever are wanted.
pub fn scratch_floats(processors: u32, shape: Shape, bias: bool, norm: bool) -> usize {
    let grid = Layout::new(shape, bias).resident_grid(shape, processors);
    let (bias, norm) = partials(grid, shape, bias, norm);
    bias + norm
}

fn check(shape: Shape) {
    let k = shape.head_dim;
    assert!(k > 0 && k.is_multiple_of(16) && k <= 512, "heads of {k} are no multiple of 16 up to 512");
    assert!(shape.heads > 0 && shape.kv_heads > 0, "{shape:?}");
}

/// Bias, norm and rotation of `qkv_TQ` in place.
///
/// # Safety
/// As [`Launcher::launch`]: operands have the lengths that their names say, in `elem` unless they say otherwise, 16-byte
/// aligned, positions lie inside the tables, and outputs overlap nothing.
///
/// # Errors
/// As [`Launcher::launch`].
///
/// # Panics
/// When the head dimension is no multiple of 16, or above 512.
pub unsafe fn forward(
    on: &dyn Launcher,
    elem: Elem,
    qkv_TQ: Ptr,
    bias_Q: Option<Ptr>,
    norm: Option<NormForward>,
    rotation: Rotation,
    shape: Shape,
) -> Result<(), GpuError> {
    if bias_Q.is_none() && norm.is_none() {
        // SAFETY: the caller's promise is the same.
        return unsafe { rotate(on, elem, qkv_TQ, 1.0, rotation, shape) };
    }
    check(shape);
    let layout = Layout::new(shape, bias_Q.is_some());
    let mut args = vec![Arg::Ptr(qkv_TQ)];
    args.extend(bias_Q.map(Arg::Ptr));
    if let Some(n) = norm {
        args.extend([n.q_weight_K, n.k_weight_K, n.pre_norm, n.rstd].map(Arg::Ptr));
        args.push(Arg::F32(n.eps));
    }
    args.extend([rotation.cos, rotation.sin, rotation.positions].map(Arg::Ptr));
    args.extend(layout.args(shape));
    let name = match (bias_Q, norm) {
        (Some(_), None) => "qk_rope_bias_forward",
        (None, _) => "qk_rope_norm_forward",
        (Some(_), Some(_)) => "qk_rope_bias_norm_forward",
    };
    let grid = match bias_Q {
        Some(_) => layout.resident_grid(shape, on.processors()),
        None => layout.grid_of_all(shape),
    };
    on.costs(cost(elem, shape, bias_Q.is_some(), norm.is_some(), false));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(name, elem), grid, &args) }
}

/// Rotation by the angle times `sign`: all of the forward pass without bias and norm, and of its backward.
///
/// # Safety
/// As [`forward`].
unsafe fn rotate(
    on: &dyn Launcher,
    elem: Elem,
    qkv_TQ: Ptr,
    sign: f32,
    rotation: Rotation,
    shape: Shape,
) -> Result<(), GpuError> {
    check(shape);
    let layout = Layout::new(shape, false);
    let pointers = [qkv_TQ, rotation.cos, rotation.sin, rotation.positions].map(Arg::Ptr);
    let args = [pointers.as_slice(), &[Arg::F32(sign)], &layout.args(shape)].concat();
    on.costs(cost(elem, shape, false, false, sign < 0.0));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry("qk_rope_forward", elem), layout.grid_of_all(shape), &args) }
}

/// Turns the gradient of [`forward`]'s result into the gradient of its input, in place in `dqkv_TQ`; `dbias_Q` (f32) and
/// the norm weights' gradients, where wanted, are added to, in an order that depends on the device alone. `scratch` holds
/// [`scratch_floats`] of what is wanted.
///
/// # Safety
/// As [`forward`].
///
/// # Errors
/// As [`Launcher::launch`].
///
/// # Panics
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn backward(
    on: &dyn Launcher,
    elem: Elem,
    dqkv_TQ: Ptr,
    dbias_Q: Option<Ptr>,
    norm: Option<NormBackward>,
    rotation: Rotation,
    scratch: Ptr,
    shape: Shape,
) -> Result<(), GpuError> {
    if dbias_Q.is_none() && norm.is_none() {
        // SAFETY: the caller's promise is the same.
        return unsafe { rotate(on, elem, dqkv_TQ, -1.0, rotation, shape) };
    }
    check(shape);
    let layout = Layout::new(shape, dbias_Q.is_some());
    let grid = layout.resident_grid(shape, on.processors());
    let weights = norm.map_or([None; 2], |n| [n.dq_weight_K, n.dk_weight_K]);
    let wants_weights = weights.iter().any(Option::is_some);
    let (bias_floats, _) = partials(grid, shape, dbias_Q.is_some(), wants_weights);
    let weight_part = Ptr(scratch.0 + 4 * bias_floats as u64);
    let mut pointers = vec![dqkv_TQ];
    pointers.extend(dbias_Q.map(|_| scratch));
    if let Some(n) = norm {
        pointers.push(if wants_weights { weight_part } else { Ptr::NULL });
        pointers.extend([n.q_weight_K, n.k_weight_K, n.pre_norm, n.rstd]);
    }
    pointers.extend([rotation.cos, rotation.sin, rotation.positions]);
    let name = match (dbias_Q, norm) {
        (Some(_), None) => "qk_rope_bias_backward",
        (None, _) => "qk_rope_norm_backward",
        (Some(_), Some(_)) => "qk_rope_bias_norm_backward",
    };
    let args: Vec<Arg> = pointers.into_iter().map(Arg::Ptr).chain(layout.args(shape)).collect();
    on.costs(cost(elem, shape, dbias_Q.is_some(), norm.is_some(), true));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(name, elem), grid, &args)? };
    let (x, y, k, q) = (grid.blocks.0, grid.blocks.1, shape.head_dim, shape.packed());
    if let Some(dbias) = dbias_Q {
        // SAFETY: the scratch begins with a row of Q floats of every block in x.
        unsafe { add_rows(on, elem, scratch, dbias, x, q, q)? };
    }
    for (part, gradient) in [weight_part, Ptr(weight_part.0 + 4 * k as u64)].into_iter().zip(weights) {
        if let Some(dw) = gradient {
            // SAFETY: then comes a row of 2K floats of every block, queries' first.
            unsafe { add_rows(on, elem, part, dw, x * y, 2 * k, k)? };
        }
    }
    Ok(())
}

/// Adds `columns` of `rows` rows, `stride` floats apart.
///
/// # Safety
/// As [`Launcher::launch`].
unsafe fn add_rows(
    on: &dyn Launcher,
    elem: Elem,
    part: Ptr,
    out: Ptr,
    rows: u32,
    stride: usize,
    columns: usize,
) -> Result<(), GpuError> {
    let [stride, width] = [stride, columns].map(|n| Arg::I32(n as i32));
    let args = [Arg::Ptr(part), Arg::Ptr(out), Arg::I32(rows as i32), stride, width];
    let grid = Grid { blocks: ((columns as u32).div_ceil(8), 1), threads: 1024, shared: 0 };
    on.costs(Cost::bytes(4 * (u64::from(rows) + 2) * columns as u64));
    // SAFETY: the caller's promise is the same; it waits before it reads, and nothing before it writes `out`.
    unsafe { on.launch_early(UNIT.entry("qk_rope_sum", elem), grid, &args) }
}
