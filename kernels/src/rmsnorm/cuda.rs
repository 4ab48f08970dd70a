//! Launches of `kernel.cu`. The same contract as the CPU's functions; weights' gradients are f32.

use super::{Shape, cases::bytes};
use crate::gpu::{Arg, Cost, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit};

/// `kernel.cu`.
pub static UNIT: Unit = Unit {
    name: "rmsnorm",
    source: include_str!("kernel.cu"),
    entries: &[
        "rmsnorm_forward",
        "rmsnorm_add_forward",
        "rmsnorm_backward",
        "rmsnorm_add_backward",
        "rmsnorm_dweight",
    ],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Columns that a warp holds in registers: packs of 8 a lane, as `PACKS` in the kernel.
const COLUMNS_OF_WARP: usize = 4 * 8 * 32;

/// Warps of a row at most: more would not leave a thread the registers that the backward pass needs.
const MAX_WARPS: usize = 8;

/// Rows of a block whose rows are warps.
const ROWS: u32 = 4;

/// Warps of a block of the backward pass, about, and blocks on a multiprocessor: what its registers leave room for.
const BACKWARD_WARPS: u32 = 8;
const BACKWARD_BLOCKS: u32 = 2;

/// How a row is spread: warps of a row, threads of a block, rows of a block.
fn layout(shape: Shape) -> (u32, u32, u32) {
    let warps = shape.hidden.div_ceil(COLUMNS_OF_WARP) as u32;
    if warps == 1 { (1, 32 * ROWS, ROWS) } else { (warps, 32 * warps, 1) }
}

/// The backward pass: a grid that stays, each block with a row of partial sums.
fn backward_grid(processors: u32, shape: Shape) -> Grid {
    let warps = layout(shape).0;
    let rows = (BACKWARD_WARPS / warps).max(1);
    let blocks = (processors * BACKWARD_BLOCKS).min((shape.tokens as u32).div_ceil(rows)).max(1);
    Grid { blocks: (blocks, 1), threads: 32 * warps * rows, shared: rows * shape.hidden as u32 * 4 }
}

/// Floats of scratch that [`backward`] needs for the weight's gradient.
pub fn scratch_floats(processors: u32, shape: Shape) -> usize {
    backward_grid(processors, shape).blocks.0 as usize * shape.hidden
}

fn check(shape: Shape) {
    assert!(
        shape.hidden > 0 && shape.hidden.is_multiple_of(8),
        "rows of {} are no multiple of 8",
        shape.hidden
    );
    assert!(shape.hidden <= MAX_WARPS * COLUMNS_OF_WARP, "rows of {} do not fit a block", shape.hidden);
}

fn extent(shape: Shape) -> [Arg; 3] {
    [Arg::I64(shape.tokens as i64), Arg::I32(shape.hidden as i32), Arg::I32(layout(shape).0 as i32)]
}

/// A pass over tensors of T × D.
fn cost(op: &str, elem: Elem, shape: Shape) -> Cost {
    Cost::bytes(bytes(op, shape, elem.bytes() as u64))
}

fn forward_grid(shape: Shape) -> Grid {
    let (_, threads, rows) = layout(shape);
    Grid { blocks: ((shape.tokens as u32).div_ceil(rows), 1), threads, shared: 0 }
}

/// `y_TD = norm(x_TD) · weight_D` and `rstd_T` (f32).
///
/// # Safety
/// As [`Launcher::launch`]: operands have the lengths that their names say, 16-byte aligned, and outputs overlap nothing.
///
/// # Errors
/// As [`Launcher::launch`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn forward(
    on: &dyn Launcher,
    elem: Elem,
    x_TD: Ptr,
    weight_D: Ptr,
    eps: f32,
    y_TD: Ptr,
    rstd_T: Ptr,
    shape: Shape,
) -> Result<(), GpuError> {
    check(shape);
    let [t, d, warps] = extent(shape);
    let args =
        [Arg::Ptr(x_TD), Arg::Ptr(weight_D), Arg::Ptr(y_TD), Arg::Ptr(rstd_T), t, d, warps, Arg::F32(eps)];
    on.costs(cost("rmsnorm_forward", elem, shape));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry("rmsnorm_forward", elem), forward_grid(shape), &args) }
}

/// `sum_TD = residual_TD + delta_TD`, then [`forward`] of the sum. `sum_TD` may be `residual_TD`.
///
/// # Safety
/// As [`forward`].
///
/// # Errors
/// As [`Launcher::launch`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn add_forward(
    on: &dyn Launcher,
    elem: Elem,
    residual_TD: Ptr,
    delta_TD: Ptr,
    sum_TD: Ptr,
    weight_D: Ptr,
    eps: f32,
    y_TD: Ptr,
    rstd_T: Ptr,
    shape: Shape,
) -> Result<(), GpuError> {
    check(shape);
    let [t, d, warps] = extent(shape);
    let pointers = [residual_TD, delta_TD, sum_TD, weight_D, y_TD, rstd_T].map(Arg::Ptr);
    let args = [pointers.as_slice(), &[t, d, warps, Arg::F32(eps)]].concat();
    on.costs(cost("rmsnorm_add_forward", elem, shape));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry("rmsnorm_add_forward", elem), forward_grid(shape), &args) }
}

/// Gradients. `dx_TD` is overwritten, or added to when `accumulate`; `dweight_D` (f32), where wanted, is added to, in an
/// order that depends on the device alone. `scratch` holds [`scratch_floats`].
///
/// # Safety
/// As [`forward`].
///
/// # Errors
/// As [`Launcher::launch`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn backward(
    on: &dyn Launcher,
    elem: Elem,
    dy_TD: Ptr,
    x_TD: Ptr,
    rstd_T: Ptr,
    weight_D: Ptr,
    dx_TD: Ptr,
    accumulate: bool,
    dweight_D: Option<(Ptr, Ptr)>,
    shape: Shape,
) -> Result<(), GpuError> {
    check(shape);
    let [t, d, warps] = extent(shape);
    let part = dweight_D.map_or(Ptr::NULL, |(_, scratch)| scratch);
    let pointers = [dy_TD, x_TD, rstd_T, weight_D, dx_TD, part].map(Arg::Ptr);
    let args = [pointers.as_slice(), &[t, d, warps]].concat();
    let name = if accumulate { "rmsnorm_add_backward" } else { "rmsnorm_backward" };
    let grid = backward_grid(on.processors(), shape);
    on.costs(cost(name, elem, shape));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(name, elem), grid, &args)? };
    let Some((dweight, scratch)) = dweight_D else { return Ok(()) };
    let args = [Arg::Ptr(scratch), Arg::Ptr(dweight), Arg::I32(grid.blocks.0 as i32), d];
    // A row of partial sums of every block, and the gradient read and written.
    on.costs(Cost::bytes(4 * (u64::from(grid.blocks.0) + 2) * shape.hidden as u64));
    let grid = Grid { blocks: (shape.hidden as u32 / 8, 1), threads: 1024, shared: 0 };
    // SAFETY: as above; it waits before it reads the partial sums, and nothing before it writes the gradient.
    unsafe { on.launch_early(UNIT.entry("rmsnorm_dweight", elem), grid, &args) }
}
