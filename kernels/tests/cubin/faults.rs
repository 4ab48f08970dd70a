//! Kernels with faults, which the tests must see.

use chronicals_kernels::gpu::{Elem, Needs, Unit};

/// A unit of tests only.
pub static UNIT: Unit = Unit {
    name: "faults",
    source: include_str!("faults.cu"),
    entries: &["local_array", "serialised", "registers_ignored"],
    elems: &[Elem::Bf16],
    needs: Needs::Hopper,
};
