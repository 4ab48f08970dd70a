//! Launches of `kernel.cu`: the norm of all gradients and the update of all parameters, one launch each over one arena.
//!
//! * The arena has `n` parameters, a multiple of 8, in [`Group`]s: ranges that end at multiples of 8.
//! * What changes from step to step is read from device memory, so that the launches can be replayed: [`hyper_bytes`], which
//!   the host writes before each step, and the clip factor, which [`norm`] leaves for [`update`]. Gradients are read once by
//!   each and never written.
//! * The update is that of the CPU, with root and quotient within 2 units in the last place. It uses the new moments before
//!   they are rounded for storage. The norm is infinite above 1.8e19, where an f32 square is.
//!
//! | [`State`] | bytes of a parameter read and written, bf16, f32 gradient | rounding |
//! |---|---|---|
//! | `Master` | 16 + 14 | none; the copy to nearest |
//! | `Rounded` | 10 + 6 | parameter and moments stochastic |
//! | `MasterQuantised` | 10 + 8 | moments stochastic, 8 bits; the copy to nearest |
//!
//! **Stochastic rounding** to bf16 adds 16 uniform bits below the last place and cuts: the result is one of the two
//! neighbours and its mean is the value. The bits are Philox4x32-7 of seed, step, array and index of the element: a run is
//! reproduced whatever the device. Without it, a change of a weight or of a second moment below half a unit (2⁻⁹) is lost
//! each time. Where the element type is f32, `Rounded` rounds nothing.
//!
//! **8-bit moments** are [`codes`](super::codes).

pub use super::Group;
use super::{
    Hyper,
    codes::{BLOCK, scales},
};
use crate::gpu::{Arg, Cost, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit, le_bytes};

/// `kernel.cu`.
pub static UNIT: Unit = Unit {
    name: "adamw",
    source: concat!(
        "#line 1 \"adamw/hyper.cuh\"\n",
        include_str!("hyper.cuh"),
        "#line 1 \"adamw/kernel.cu\"\n",
        include_str!("kernel.cu")
    ),
    entries: &[
        "adamw_norm_f32",
        "adamw_norm_elem",
        "adamw_clip",
        "adamw_master_f32",
        "adamw_master_elem",
        "adamw_rounded_f32",
        "adamw_rounded_elem",
        "adamw_master_8bit_f32",
        "adamw_master_8bit_elem",
    ],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

const THREADS: u32 = 256;

/// Blocks of the norm on a multiprocessor: all that fit.
const NORM_BLOCKS: u32 = 8;

/// Bytes of the clip buffer: norm and factor, f32.
pub const CLIP_BYTES: usize = 8;

/// Gradients of the arena.
#[derive(Clone, Copy, Debug)]
pub enum Grads {
    /// f32.
    F32(Ptr),
    /// The element type.
    Elem(Ptr),
}

impl Grads {
    fn parts(self) -> (Ptr, bool) {
        match self {
            Grads::F32(g) => (g, false),
            Grads::Elem(g) => (g, true),
        }
    }
}

/// 8-bit moments.
#[derive(Clone, Copy, Debug)]
pub struct Codes {
    /// One byte an element; 0 at first.
    pub codes: Ptr,
    /// [`scales`] floats; 0 at first.
    pub scales: Ptr,
}

/// Parameters and moments, each `n` long and updated in place.
#[derive(Clone, Copy, Debug)]
pub enum State {
    /// All f32.
    Master {
        /// Parameters.
        p: Ptr,
        /// The parameters in the element type, overwritten; may be absent.
        copy: Ptr,
        /// First moments.
        m: Ptr,
        /// Second moments.
        v: Ptr,
    },
    /// All of the element type, rounded stochastically.
    Rounded {
        /// Parameters.
        p: Ptr,
        /// First moments.
        m: Ptr,
        /// Second moments.
        v: Ptr,
    },
    /// f32 parameters, 8-bit moments.
    MasterQuantised {
        /// Parameters.
        p: Ptr,
        /// The parameters in the element type, overwritten; may be absent.
        copy: Ptr,
        /// First moments.
        m: Codes,
        /// Second moments.
        v: Codes,
    },
}

impl State {
    /// Entry point, for f32 gradients and for those of the element type.
    fn entries(&self) -> [&'static str; 2] {
        match self {
            State::Master { .. } => ["adamw_master_f32", "adamw_master_elem"],
            State::Rounded { .. } => ["adamw_rounded_f32", "adamw_rounded_elem"],
            State::MasterQuantised { .. } => ["adamw_master_8bit_f32", "adamw_master_8bit_elem"],
        }
    }

    /// Bytes of `n` parameters' state: read and written, but a copy only written.
    fn bytes(&self, n: usize, elem: Elem) -> u64 {
        let copied = |copy: Ptr| if copy == Ptr::NULL { 0 } else { elem.bytes() };
        let (each, of_blocks) = match *self {
            State::Master { copy, .. } => (2 * (4 + 4 + 4) + copied(copy), 0),
            State::Rounded { .. } => (2 * 3 * elem.bytes(), 0),
            State::MasterQuantised { copy, .. } => (2 * (4 + 1 + 1) + copied(copy), 2 * 8),
        };
        (each * n + of_blocks * scales(n)) as u64
    }

    /// p, copy, m, v, scales of m, scales of v.
    fn pointers(&self) -> [Ptr; 6] {
        let none = Ptr::NULL;
        match *self {
            State::Master { p, copy, m, v } => [p, copy, m, v, none, none],
            State::Rounded { p, m, v } => [p, none, m, v, none, none],
            State::MasterQuantised { p, copy, m, v } => [p, copy, m.codes, v.codes, m.scales, v.scales],
        }
    }
}

/// Bytes of the hyper-parameters of so many groups.
pub fn hyper_len(groups: usize) -> usize {
    32 + 16 * groups
}

/// The hyper-parameters of a step as the kernel reads them; [`hyper_len`] bytes. What elements share is computed in f64 and
/// rounded once, as on the CPU. `seed` is that of stochastic rounding, the same at every step.
///
/// # Panics
/// If there is no group, ends are not ascending multiples of 8, the step is 0, or groups differ in what they must share.
pub fn hyper_bytes(groups: &[Group], seed: u32) -> Vec<u8> {
    let first = groups.first().expect("a group").hyper;
    assert!(first.step > 0, "steps count from 1");
    assert!(groups.iter().all(|g| g.end.is_multiple_of(8)), "a group does not end at a multiple of 8");
    assert!(groups.is_sorted_by(|a, b| a.end < b.end), "groups are not in order");
    let f = first.factors();
    let [beta2, step] = [f64::from(first.beta2), f64::from(first.step)];
    let inverse = (1.0 / (1.0 - beta2.powf(step)).sqrt()) as f32;
    let shared = [f.beta1, f.one_minus_beta1, f.beta2, f.one_minus_beta2, inverse, f.eps].map(f32::to_bits);
    let mut bytes = le_bytes(&shared, u32::to_le_bytes);
    bytes.extend(le_bytes(&[first.step, seed], u32::to_le_bytes));
    for group in groups {
        let same = Hyper { lr: first.lr, weight_decay: first.weight_decay, ..group.hyper };
        assert_eq!(same, first, "groups differ in more than learning rate and decay");
        let f = group.hyper.factors();
        bytes.extend((group.end as i64).to_le_bytes());
        bytes.extend(le_bytes(&[f.decay, f.step_size], f32::to_le_bytes));
    }
    bytes
}

/// Most groups whose norms [`norm`] tells apart.
pub const NORM_GROUPS: usize = 3;

/// Blocks of the norm that a device has at a time.
fn norm_blocks(processors: u32) -> usize {
    (processors * NORM_BLOCKS) as usize
}

/// Floats of scratch that [`norm`] needs.
pub fn norm_scratch_floats(processors: u32) -> usize {
    NORM_GROUPS * norm_blocks(processors)
}

fn check(n: usize) {
    assert!(n > 0 && n.is_multiple_of(8), "an arena of {n} is no multiple of 8");
}

/// Norm of all gradients and `min(1, max_norm/(norm + 1e-6))` into `clip` ([`CLIP_BYTES`]: norm, factor), and the norms of the
/// groups that end at `ends` into `norms` (f32); the factor is 1 if `max_norm` is 0 or the norm is NaN. The same bits every time on
/// devices of as many multiprocessors.
///
/// # Safety
/// As [`Launcher::launch`]: `grads` has as many elements as the last of `ends`, 16-byte aligned, `scratch`
/// [`norm_scratch_floats`], and `norms` a float for each group.
///
/// # Errors
/// As [`Launcher::launch`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn norm(
    on: &dyn Launcher,
    elem: Elem,
    grads: Grads,
    ends: &[usize],
    max_norm: f32,
    scratch: Ptr,
    clip: Ptr,
    norms: Ptr,
) -> Result<(), GpuError> {
    let groups = ends.len();
    assert!((1..=NORM_GROUPS).contains(&groups), "{groups} groups have no kernel");
    assert!(ends.is_sorted(), "groups are not in order");
    ends.iter().for_each(|end| check(*end));
    let (g, of_elem) = grads.parts();
    let name = if of_elem { "adamw_norm_elem" } else { "adamw_norm_f32" };
    let n = ends[groups - 1];
    let begins = std::iter::once(&0).chain(ends);
    let longest = begins.zip(ends).map(|(begin, end)| end - begin).max().expect("there is a group");
    let blocks = longest.div_ceil(8 * THREADS as usize).min(norm_blocks(on.processors())) as u32;
    let grid = Grid { blocks: (blocks, groups as u32), threads: THREADS, shared: 0 };
    let [a, b, c] = [0, 1, 2].map(|i| Arg::I64(ends.get(i).map_or(n, |end| *end) as i64));
    let gradient = if of_elem { elem.bytes() } else { 4 };
    let parts = 4 * groups * blocks as usize;
    on.costs(Cost::bytes((gradient * n + parts) as u64));
    // SAFETY: the caller's promise is the same; a group has no more blocks than its part of the scratch has floats.
    unsafe { on.launch(UNIT.entry(name, elem), grid, &[Arg::Ptr(g), Arg::Ptr(scratch), a, b, c])? };
    let pointers = [scratch, clip, norms].map(Arg::Ptr);
    let sizes = [Arg::I32(groups as i32), Arg::I32(blocks as i32), Arg::F32(max_norm)];
    on.costs(Cost::bytes((parts + CLIP_BYTES + 4 * groups) as u64));
    let grid = Grid { blocks: (1, 1), threads: THREADS, shared: 0 };
    // SAFETY: as above.
    unsafe { on.launch(UNIT.entry("adamw_clip", elem), grid, &[pointers, sizes].concat()) }
}

/// One step of AdamW for `n` parameters in `groups` groups. `hyper` holds [`hyper_bytes`] of as many; gradients are scaled
/// by the factor in `clip`, or not if it is absent.
///
/// # Safety
/// As [`Launcher::launch`]: arrays have `n` elements, 16-byte aligned, and overlap nothing; `hyper`'s last group ends at `n`.
///
/// # Errors
/// As [`Launcher::launch`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn update(
    on: &dyn Launcher,
    elem: Elem,
    state: State,
    grads: Grads,
    n: usize,
    hyper: Ptr,
    groups: usize,
    clip: Ptr,
) -> Result<(), GpuError> {
    check(n);
    let (g, of_elem) = grads.parts();
    let [p, copy, m, v, m_scale, v_scale] = state.pointers();
    let pointers = [p, copy, m, v, m_scale, v_scale, g, hyper, clip].map(Arg::Ptr);
    let args = [pointers.as_slice(), &[Arg::I64(n as i64), Arg::I32(groups as i32)]].concat();
    let warps = n.div_ceil(BLOCK);
    let grid =
        Grid { blocks: (warps.div_ceil(THREADS as usize / 32) as u32, 1), threads: THREADS, shared: 0 };
    let gradient = if of_elem { elem.bytes() } else { 4 };
    on.costs(Cost::bytes(state.bytes(n, elem) + (gradient * n) as u64));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(state.entries()[usize::from(of_elem)], elem), grid, &args) }
}
