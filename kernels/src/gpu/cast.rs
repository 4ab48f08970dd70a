//! Copies between bf16 and f32, as unfused variants make them; between f32 and f32 there is nothing to copy.

use super::{Arg, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit};

/// `cast.cu`.
pub static UNIT: Unit = Unit {
    name: "cast",
    source: concat!(
        "#line 1 \"floats.cuh\"\n",
        include_str!("floats.cuh"),
        "#line 1 \"cast.cu\"\n",
        include_str!("cast.cu")
    ),
    entries: &["cast_to_f32", "cast_to_elem"],
    elems: &[Elem::Bf16],
    needs: Needs::Ampere,
};

/// `len` bf16 as f32; `len` is a multiple of 8.
///
/// # Safety
/// As [`Launcher::launch`]: both operands hold `len` elements, 16-byte aligned, and do not overlap.
///
/// # Errors
/// As [`Launcher::launch`].
pub unsafe fn to_f32(on: &dyn Launcher, from: Ptr, to: Ptr, len: usize) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { copy(on, "cast_to_f32", from, to, len) }
}

/// `len` f32 as bf16, rounded to nearest even; `len` is a multiple of 8.
///
/// # Safety
/// As [`to_f32`].
///
/// # Errors
/// As [`Launcher::launch`].
pub unsafe fn to_bf16(on: &dyn Launcher, from: Ptr, to: Ptr, len: usize) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { copy(on, "cast_to_elem", from, to, len) }
}

/// # Safety
/// As [`to_f32`].
unsafe fn copy(
    on: &dyn Launcher,
    name: &'static str,
    from: Ptr,
    to: Ptr,
    len: usize,
) -> Result<(), GpuError> {
    assert!(len.is_multiple_of(8), "{len} elements are no whole packs");
    let args = [Arg::Ptr(from), Arg::Ptr(to), Arg::I64((len / 8) as i64)];
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(name, Elem::Bf16), each_pack(len / 8), &args) }
}

/// A thread for each of so many packs of eight elements.
pub(crate) fn each_pack(packs: usize) -> Grid {
    Grid { blocks: (packs.div_ceil(256).max(1) as u32, 1), threads: 256, shared: 0 }
}
