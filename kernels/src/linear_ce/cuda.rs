//! Launches of `kernel.cu` between products. The same contract as the CPU's functions, with the head's gradient in f32 and
//! the loss in f64.
//!
//! * Rows without a loss take part in nothing: the host knows the labels, and [`index`] lists the rows that have one. Their
//!   number is padded, so that grids and products depend on the padded number alone and launches can be replayed.
//! * Logits exist for [`Plan::chunk`] rows at a time, in the element type, and become their own gradient in place. Beside
//!   them [`Plan::scratch_bytes`] holds a float a row, and the compacted rows and their gradients where some are left out.
//! * What changes from step to step, the scale, is read from device memory.
//! * Offsets of logits are 64 bits wide: 32k rows of 151,936 exceed 2³².
//! * Deterministic: a row is one block's, losses are added in f64 in a fixed order, and cuBLASLt's products give the same
//!   bits for the same plan.

use super::{IGNORE_INDEX, Options, Shape};
use crate::gpu::{
    Arg, Cost, Elem, GpuError, Grid, Launcher, Needs, Product, Products, Ptr, Unit, product::Matrix,
};

/// `kernel.cu`.
pub static UNIT: Unit = Unit {
    name: "linear_ce",
    source: concat!(
        "#line 1 \"floats.cuh\"\n",
        include_str!("../gpu/floats.cuh"),
        "#line 1 \"linear_ce/kernel.cu\"\n",
        include_str!("kernel.cu")
    ),
    entries: &[
        "linear_ce_gradient",
        "linear_ce_loss",
        "linear_ce_sum",
        "linear_ce_gather",
        "linear_ce_scatter",
    ],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Threads of a row at most.
const THREADS: usize = 512;

/// Registers of a multiprocessor, and of a thread of `rows`.
const REGISTERS: usize = 64 << 10;
const REGISTERS_OF_THREAD: usize = 128;

/// Logits of a chunk, about.
const CHUNK_BYTES: usize = 1280 << 20;

/// How a call is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Extents of the batch.
    pub shape: Shape,
    /// Element type of x, W, dx and the logits.
    pub elem: Elem,
    /// Rows with a loss, padded; at most T.
    pub rows: usize,
    /// Rows whose logits exist at a time.
    pub chunk: usize,
}

impl Plan {
    /// For batches of at most `rows` rows with a loss, with chunks of about 1.25 GiB of logits where `chunk_rows` is None.
    ///
    /// # Panics
    /// If D is not a multiple of 8, or `rows` is above T.
    pub fn new(shape: Shape, elem: Elem, rows: usize, chunk_rows: Option<usize>) -> Self {
        let Shape { tokens, hidden, vocab } = shape;
        assert!(hidden > 0 && hidden.is_multiple_of(8), "rows of {hidden} are no multiple of 8");
        assert!(vocab > 0 && vocab < i32::MAX as usize && tokens < i32::MAX as usize, "{shape:?}");
        assert!(rows <= tokens, "{rows} rows with a loss of {tokens}");
        let fit = CHUNK_BYTES / (stride(vocab) * elem.bytes()) / 128 * 128;
        Self { shape, elem, rows, chunk: chunk_rows.unwrap_or(fit.max(128)).max(1).min(rows) }
    }

    /// Bytes of a chunk's logits.
    pub fn chunk_bytes(&self) -> usize {
        (self.chunk * stride(self.shape.vocab) * self.elem.bytes()).next_multiple_of(256)
    }

    /// Bytes of scratch: the logits of a chunk, a float a row, and the compacted rows with their gradients.
    pub fn scratch_bytes(&self) -> usize {
        let compacted = if self.compacts() { 2 * self.rows_bytes() } else { 0 };
        self.chunk_bytes() + self.losses_bytes() + compacted
    }

    /// Length of [`index`], i32.
    pub fn index_len(&self) -> usize {
        2 * self.rows + self.shape.tokens
    }

    /// Whether some rows are left out.
    fn compacts(&self) -> bool {
        self.rows < self.shape.tokens
    }

    fn losses_bytes(&self) -> usize {
        (4 * self.rows).next_multiple_of(256)
    }

    fn rows_bytes(&self) -> usize {
        (self.rows * self.shape.hidden * self.elem.bytes()).next_multiple_of(256)
    }
}

/// Elements from one row of logits to the next.
pub(super) fn stride(vocab: usize) -> usize {
    vocab.next_multiple_of(8)
}

/// What the kernels need to know of a batch's labels, [`Plan::index_len`] i32:
///
/// ```text
/// labels of the rows with a loss, −1 in the padding
/// tokens of these rows, −1 in the padding
/// T places: which of them a token is, −1 for none
/// ```
///
/// Where no row is left out (R = T), rows and tokens are the same.
///
/// # Panics
/// If a label is neither [`IGNORE_INDEX`] nor below V, or more rows have a loss than the plan has.
pub fn index(labels: &[i32], plan: &Plan) -> Vec<i32> {
    let Plan { shape, rows, .. } = *plan;
    assert_eq!(labels.len(), shape.tokens, "labels");
    let known = |&y: &i32| y == IGNORE_INDEX || usize::try_from(y).is_ok_and(|y| y < shape.vocab);
    assert!(labels.iter().all(known), "a label is neither {IGNORE_INDEX} nor in 0..{}", shape.vocab);
    let of_token = |t: usize| if labels[t] == IGNORE_INDEX { -1 } else { labels[t] };
    let tokens: Vec<usize> = if plan.compacts() {
        (0..labels.len()).filter(|t| of_token(*t) >= 0).collect()
    } else {
        (0..labels.len()).collect()
    };
    assert!(tokens.len() <= rows, "{} rows have a loss, {rows} are planned", tokens.len());
    let mut index: Vec<i32> = tokens.iter().map(|t| of_token(*t)).collect();
    index.resize(rows, -1);
    index.extend(tokens.iter().map(|t| *t as i32));
    index.resize(2 * rows, -1);
    let mut places = vec![-1; shape.tokens];
    tokens.iter().enumerate().for_each(|(r, t)| places[*t] = r as i32);
    index.extend(places);
    index
}

/// Operands of both passes.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// Output of the last norm, `elem`, T × D.
    pub x_TD: Ptr,
    /// LM head, `elem`, V × D.
    pub w_VD: Ptr,
    /// [`index`] of the labels.
    pub index: Ptr,
    /// f64: the losses of all rows are added to it, not scaled.
    pub loss: Ptr,
    /// [`Plan::scratch_bytes`].
    pub scratch: Ptr,
}

/// Gradients.
#[derive(Clone, Copy, Debug)]
pub struct Gradients {
    /// f32: one over the loss tokens of the whole optimiser step.
    pub scale: Ptr,
    /// `elem`, T × D; overwritten, with zeros in rows without a loss.
    pub dx_TD: Ptr,
    /// f32, V × D; added to. None where the head does not train.
    pub dw_VD: Option<Ptr>,
    /// Whether the first chunk writes `dw_VD` instead, whatever it holds; nothing does where no row has a loss.
    pub dw_is_new: bool,
}

/// A call's places in its scratch.
struct Scratch {
    logits: Ptr,
    losses: Ptr,
    x: Ptr,
    dx: Ptr,
}

impl Scratch {
    fn new(plan: &Plan, operands: &Operands, gradients: Option<&Gradients>) -> Self {
        let logits = operands.scratch;
        let losses = logits.offset(plan.chunk_bytes());
        let after = losses.offset(plan.losses_bytes());
        let dx = gradients.map_or(Ptr::NULL, |g| g.dx_TD);
        if plan.compacts() {
            Self { logits, losses, x: after, dx: after.offset(plan.rows_bytes()) }
        } else {
            Self { logits, losses, x: operands.x_TD, dx }
        }
    }
}

/// Loss and gradients.
///
/// # Safety
/// As [`Launcher::launch`]: operands have the lengths that their docs say, 16-byte aligned, the index is that of a batch of
/// this plan, and outputs overlap nothing. `on` and `products` are of one machine.
///
/// # Errors
/// As [`Launcher::launch`] and [`Products::product`].
pub unsafe fn forward_backward(
    on: &dyn Launcher,
    products: &dyn Products,
    operands: &Operands,
    gradients: &Gradients,
    plan: &Plan,
    opts: Options,
) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { run(on, products, operands, Some(gradients), plan, opts) }
}

/// Loss alone.
///
/// # Safety
/// As [`forward_backward`].
///
/// # Errors
/// As [`forward_backward`].
pub unsafe fn forward(
    on: &dyn Launcher,
    products: &dyn Products,
    operands: &Operands,
    plan: &Plan,
    opts: Options,
) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { run(on, products, operands, None, plan, opts) }
}

unsafe fn run(
    on: &dyn Launcher,
    products: &dyn Products,
    operands: &Operands,
    gradients: Option<&Gradients>,
    plan: &Plan,
    opts: Options,
) -> Result<(), GpuError> {
    let scratch = Scratch::new(plan, operands, gradients);
    let Plan { shape, elem, rows, .. } = *plan;
    let (tokens, places) = (operands.index.offset(4 * rows), operands.index.offset(8 * rows));
    if plan.compacts() && rows > 0 {
        // SAFETY: the caller's promise; the scratch holds the rows.
        unsafe { move_rows(on, "linear_ce_gather", plan, operands.x_TD, tokens, scratch.x, rows)? };
    }
    for first in (0..rows).step_by(plan.chunk.max(1)) {
        let count = plan.chunk.min(rows - first);
        // SAFETY: as above; the chunk's rows lie inside the operands.
        unsafe { chunk(on, products, operands, gradients, &scratch, plan, opts, (first, count))? };
    }
    if rows > 0 {
        let args = [Arg::Ptr(scratch.losses), Arg::Ptr(operands.loss), Arg::I32(rows as i32)];
        let grid = Grid { blocks: (1, 1), threads: 1024, shared: 0 };
        on.costs(Cost::bytes(4 * rows as u64 + 16));
        // SAFETY: as above.
        unsafe { on.launch(UNIT.entry("linear_ce_sum", elem), grid, &args)? };
    }
    if let Some(g) = gradients.filter(|_| plan.compacts()) {
        // SAFETY: as above; places of tokens without a loss are −1, and their rows are not read.
        unsafe { move_rows(on, "linear_ce_scatter", plan, scratch.dx, places, g.dx_TD, shape.tokens)? };
    }
    Ok(())
}

/// Logits of `count` rows from `first`, their loss and, where wanted, their gradient and its products.
///
/// # Safety
/// As [`forward_backward`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
unsafe fn chunk(
    on: &dyn Launcher,
    products: &dyn Products,
    operands: &Operands,
    gradients: Option<&Gradients>,
    scratch: &Scratch,
    plan: &Plan,
    opts: Options,
    (first, count): (usize, usize),
) -> Result<(), GpuError> {
    let Plan { shape: Shape { hidden: d, vocab: v, .. }, elem, .. } = *plan;
    let ld = stride(v);
    let row = first * d * elem.bytes();
    let (x, dx) = (scratch.x.offset(row), scratch.dx.offset(row));
    let logits = Product { ldc: ld, ..Product::linear_forward(count, v, d, elem) };
    // SAFETY: the caller's promise; the logits of `count` rows fit the chunk.
    unsafe { products.product(&logits, x, operands.w_VD, Ptr::NULL, scratch.logits)? };
    let labels = operands.index.offset(4 * first);
    let losses = scratch.losses.offset(4 * first);
    let scale = gradients.map(|g| g.scale);
    // SAFETY: as above.
    unsafe { rows(on, elem, scratch.logits, labels, scale, losses, (count, v), opts)? };
    let Some(gradients) = gradients else { return Ok(()) };
    let dz = Matrix { ld, transposed: false };
    let dgrad = Product { a: dz, ..Product::linear_dgrad(count, v, d, elem) };
    // SAFETY: as above.
    unsafe { products.product(&dgrad, scratch.logits, operands.w_VD, Ptr::NULL, dx)? };
    let Some(dw) = gradients.dw_VD else { return Ok(()) };
    let wgrad = Product {
        a: Matrix { transposed: true, ..dz },
        accumulate: first > 0 || !gradients.dw_is_new,
        ..Product::linear_wgrad(count, v, d, elem)
    };
    // SAFETY: as above.
    unsafe { products.product(&wgrad, scratch.logits, x, Ptr::NULL, dw) }
}

/// Losses of rows of logits, which become their gradient where there is a scale.
///
/// # Safety
/// As [`forward_backward`]: rows are a multiple of 8 elements apart, labels are −1 or below V.
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub(super) unsafe fn rows(
    on: &dyn Launcher,
    elem: Elem,
    logits: Ptr,
    labels: Ptr,
    scale: Option<Ptr>,
    losses: Ptr,
    (count, v): (usize, usize),
    opts: Options,
) -> Result<(), GpuError> {
    let (threads, in_shared) = row_threads(v, elem, on.shared_bytes());
    let shared = in_shared * threads * 8 * elem.bytes();
    // As many blocks as are resident: each takes the next row while it writes the last.
    let resident = REGISTERS / (REGISTERS_OF_THREAD * threads);
    let resident = if shared > 0 { 1 } else { resident.max(1) };
    let blocks = count.min(resident * on.processors() as usize);
    let grid = Grid { blocks: (blocks as u32, 1), threads: threads as u32, shared: shared as u32 };
    let (name, pointers) = match scale {
        Some(scale) => ("linear_ce_gradient", vec![logits, labels, scale, losses]),
        None => ("linear_ce_loss", vec![logits, labels, losses]),
    };
    let extents = [count, v, stride(v), in_shared].map(|n| Arg::I32(n as i32));
    let terms = [opts.label_smoothing, opts.z_loss].map(Arg::F32);
    let args = [pointers.into_iter().map(Arg::Ptr).collect(), extents.to_vec(), terms.to_vec()].concat();
    // Logits are read, and written where they become their gradient.
    let passes = if scale.is_some() { 2 } else { 1 };
    on.costs(Cost::bytes((count * (passes * v * elem.bytes() + 8)) as u64));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(name, elem), grid, &args) }
}

/// Threads of a row's block, and packs a thread that it keeps in shared memory, of which a block may have `shared_bytes`.
fn row_threads(vocab: usize, elem: Elem, shared_bytes: usize) -> (usize, usize) {
    let held = if elem == Elem::F32 { 8 } else { 16 };
    let packs = stride(vocab) / 8;
    let threads = packs.div_ceil(held).next_multiple_of(32).min(THREADS);
    // Static shared memory is a little of it.
    let most = shared_bytes.saturating_sub(1024) / (threads * 8 * elem.bytes());
    (threads, packs.div_ceil(threads).saturating_sub(held).min(most))
}

/// A copy of rows by `places`: a block for each of `blocks` rows of `to`.
///
/// # Safety
/// As [`forward_backward`].
unsafe fn move_rows(
    on: &dyn Launcher,
    name: &'static str,
    plan: &Plan,
    from: Ptr,
    places: Ptr,
    to: Ptr,
    blocks: usize,
) -> Result<(), GpuError> {
    let d = plan.shape.hidden;
    let threads = (d / 8).next_multiple_of(32).min(256) as u32;
    let grid = Grid { blocks: (blocks as u32, 1), threads, shared: 0 };
    let args = [Arg::Ptr(from), Arg::Ptr(places), Arg::Ptr(to), Arg::I32(d as i32)];
    // As many rows are read as have a loss, and all are written.
    on.costs(Cost::bytes(((plan.rows + blocks) * d * plan.elem.bytes() + 4 * blocks) as u64));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(name, plan.elem), grid, &args) }
}
