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
    Arg, Cost, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit,
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

/// Bytes of the parts that [`launch`] leaves: two words of 64 bits a thread.
pub fn parts_bytes(on: &dyn Launcher) -> usize {
    let grid = grid(on);
    16 * (grid.blocks.0 * grid.threads) as usize
}

/// Leaves the parts of the digest of `count` words.
///
/// # Safety
/// As [`Launcher::launch`]: that many words lie there, 4-byte aligned, and the parts have [`parts_bytes`].
///
/// # Errors
/// As [`Launcher::launch`].
pub unsafe fn launch(on: &dyn Launcher, words: Ptr, count: usize, parts: Ptr) -> Result<(), GpuError> {
    let args = [Arg::Ptr(words), Arg::I64(count as i64), Arg::Ptr(parts)];
    on.costs(Cost::bytes((4 * count + parts_bytes(on)) as u64));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry("digest_words", Elem::Bf16), grid(on), &args) }
}

/// The digest of its parts.
pub fn sum(parts: &[u8]) -> Digest {
    let words = parts.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
    words.enumerate().fold(Digest { sum: 0, ones: 0 }, |d, (i, word)| match i % 2 {
        0 => Digest { sum: d.sum.wrapping_add(word), ..d },
        _ => Digest { ones: d.ones + word, ..d },
    })
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
    let len = parts_bytes(on.launcher());
    let parts = on.alloc(len)?;
    // SAFETY: the operand has that many words, and both live until the read, which waits for the launch.
    unsafe { launch(on.launcher(), operand.ptr(on), bytes / 4, on.ptr(&parts))? };
    Ok(sum(&on.read(&parts, 0, len)?))
}
