//! A digest of device memory, made where the memory is: whether two runs of a kernel left the same bits, and whether a poison
//! is still there, costs a read of the output and no transfer.
//!
//! ```text
//! sum  = Σ mix(word_i, i) mod 2⁶⁴      ones = |{i : word_i = 0xffffffff}|
//! ```
//!
//! * Over words of 32 bits; the memory is a multiple of 4 bytes long and 4-byte aligned.
//! * Integer sums: the same whatever the order, and whatever the device.

use super::{
    Arg, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit,
    bench::{Operand, Testbed},
};

/// `kernel.cu`.
pub static UNIT: Unit = Unit {
    name: "digest",
    source: include_str!("kernel.cu"),
    entries: &["digest_words"],
    // No element type appears in it.
    elems: &[Elem::Bf16],
    needs: Needs::Ampere,
};

const THREADS: u32 = 256;

/// Blocks on a multiprocessor: all that fit.
const BLOCKS: u32 = 8;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Sum of the mixed words.
    pub sum: u64,
    /// Words that are all ones: NaN with every bit set in either element type, which no arithmetic makes.
    pub ones: u64,
}

fn grid(on: &dyn Launcher) -> Grid {
    Grid { blocks: (BLOCKS * on.processors(), 1), threads: THREADS, shared: 0 }
}

/// Digest of an operand, after every launch before.
///
/// # Errors
/// As [`Launcher::launch`].
///
/// # Panics
/// If the operand is no multiple of 4 bytes long.
pub fn digest<B: Testbed>(on: &B, operand: &Operand<B::Memory>) -> Result<Digest, GpuError> {
    let bytes = operand.bytes();
    assert!(bytes.is_multiple_of(4), "{bytes} bytes are no whole words");
    let grid = grid(on.launcher());
    let len = 16 * (grid.blocks.0 * grid.threads) as usize;
    let part = on.alloc(len)?;
    let at: [Ptr; 2] = [operand.ptr(on), on.ptr(&part)];
    let args = [Arg::Ptr(at[0]), Arg::I64((bytes / 4) as i64), Arg::Ptr(at[1])];
    // SAFETY: the operand has that many words, the parts are two words of 64 bits a thread, and both live until the read,
    // which waits for the launch.
    unsafe { on.launcher().launch(UNIT.entry("digest_words", Elem::Bf16), grid, &args)? };
    let parts = on.read(&part, 0, len)?;
    let words = parts.as_chunks::<16>().0.iter().map(|pair| {
        let (sum, ones) = pair.split_at(8);
        [sum, ones].map(|w| u64::from_le_bytes(w.try_into().expect("8 bytes")))
    });
    let add = |a: [u64; 2], b: [u64; 2]| [a[0].wrapping_add(b[0]), a[1] + b[1]];
    let [sum, ones] = words.fold([0; 2], add);
    Ok(Digest { sum, ones })
}
