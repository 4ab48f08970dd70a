//! Launches of attention on a GPU. The same contract as the CPU's fused variant, on one of several [`Path`]s that the caller
//! chooses: bf16 on tensor cores (`hopper/`, `mma/`), or f32 for debugging (`plain.cu`).
//!
//! * A tile is [`BLOCK`] consecutive tokens of the batch, whatever documents they are of, and every token has the two ends of
//!   its document: [`documents`]. A grid depends on the number of tokens alone, so that a captured launch fits every batch,
//!   and many short documents fill a tile. Work goes with the sum of squared lengths, to the granularity of tiles.
//! * What a document holds does not change a bit of another's results, as long as it is finite. On tensor cores, NaN or
//!   infinities may spread to documents that share a tile with it.
//! * Memory besides the operands: a float a query and head, and where there are few tokens the parts of the gradients of keys
//!   and values ([`scratch_floats`]), whatever the lengths.
//! * Deterministic: every sum is one warp's or one thread's, in the order of keys or queries, and parts are added in theirs; there
//!   are no atomics.

mod hopper;
mod list;
mod mma;
mod parts;
mod plain;

pub use hopper::UNIT as HOPPER;
pub use list::{BLOCK, Documents, documents, documents_len};
pub use mma::UNIT as MMA;
pub use parts::UNIT as PARTS;
pub use plain::UNIT as PLAIN;

use super::Shape;
use crate::gpu::{Cost, Elem, GpuError, Launcher, Needs, Ptr};

/// Which kernels run. The caller chooses; none stands in for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// f32, for debugging: a warp a token. Head dimensions are multiples of 8 up to 128.
    Plain,
    /// bf16 by mma.sync, sm_80 and newer. Head dimensions are 64 and 128.
    Mma,
    /// bf16 by wgmma and TMA, sm_90a alone. Head dimensions are 64 and 128.
    Hopper,
}

impl Path {
    /// Every path.
    pub const ALL: [Path; 3] = [Path::Plain, Path::Mma, Path::Hopper];

    /// Type of the operands; `lse_HT` and the scratch are f32 in any.
    pub fn elem(self) -> Elem {
        match self {
            Path::Plain => Elem::F32,
            Path::Mma | Path::Hopper => Elem::Bf16,
        }
    }

    /// Name in messages and records.
    pub fn name(self) -> &'static str {
        match self {
            Path::Plain => "plain",
            Path::Mma => "mma",
            Path::Hopper => "hopper",
        }
    }

    /// What it runs on.
    pub fn needs(self) -> Needs {
        match self {
            Path::Plain => PLAIN.needs,
            Path::Mma => MMA.needs,
            Path::Hopper => HOPPER.needs,
        }
    }

    /// # Panics
    /// It has no kernels for the shape.
    fn check(self, documents: &Documents, shape: Shape) {
        let (k, name) = (shape.head_dim, self.name());
        assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads), "{shape:?}");
        // A grid has a row of blocks for each tile, or for each half of one.
        assert!(documents.tiles() < 1 << 15, "{} tokens are too many for one launch", documents.tokens);
        match self {
            Path::Plain => assert!(
                k > 0 && k.is_multiple_of(8) && k <= 128,
                "{name}: heads of {k} are no multiple of 8 up to 128"
            ),
            Path::Mma | Path::Hopper => {
                assert!(k == 64 || k == 128, "{name}: heads of {k} are neither 64 nor 128")
            }
        }
    }
}

/// Floats of scratch that [`backward`] needs on any path for so many tokens or fewer: δ, and the parts of the gradients of keys
/// and values.
pub fn scratch_floats(processors: u32, tokens: usize, shape: Shape) -> usize {
    delta_floats(tokens, shape) + parts::floats(processors, tokens, shape)
}

/// Floats of δ: the parts that follow are 16-byte aligned.
fn delta_floats(tokens: usize, shape: Shape) -> usize {
    (tokens * shape.heads).next_multiple_of(4)
}

/// A kernel of attention.
#[derive(Clone, Copy)]
enum Kernel {
    Forward,
    /// δ, and the gradient of the queries.
    ByQueries,
    /// The gradients of keys and values.
    ByKeys,
}

impl Kernel {
    /// Each operand once, and the products over what the mask leaves: two forward, three by queries and four by keys, since both
    /// compute the scores anew.
    fn cost(self, elem: Elem, documents: &Documents, shape: Shape) -> Cost {
        let (queries, packed, all) = (shape.out(), shape.packed(), documents.tokens as u64);
        let (columns, floats, products) = match self {
            Kernel::Forward => (packed + queries, shape.heads, 2),
            Kernel::ByQueries => (packed + 3 * queries, 2 * shape.heads, 3),
            Kernel::ByKeys => (2 * packed, 2 * shape.heads, 4),
        };
        let bytes = all * (elem.bytes() * columns + 4 * floats) as u64;
        Cost { bytes, flops: 0, flops_a_pair: 2 * products * queries as u64 }
    }
}

/// What the backward pass reads, and the scratch for its delta and its parts.
struct Backward {
    dout_T: Ptr,
    qkv_TQ: Ptr,
    out_T: Ptr,
    lse_HT: Ptr,
    delta_HT: Ptr,
    parts_at: Ptr,
    /// How many there are of each key/value head: [`parts::parts`].
    parts: usize,
}

/// `out_T` and `lse_HT` (f32, H × T) of `qkv_TQ`, for every token.
///
/// # Safety
/// As [`Launcher::launch`]: operands have the type of the path and the lengths that their names say, 16-byte aligned, the
/// documents are those of [`documents`] for as many tokens, and outputs overlap nothing.
///
/// # Errors
/// As [`Launcher::launch`].
///
/// # Panics
/// The path has no kernel for the shape, or the tokens, more than four million, make too many blocks.
pub unsafe fn forward(
    on: &dyn Launcher,
    path: Path,
    qkv_TQ: Ptr,
    documents: &Documents,
    out_T: Ptr,
    lse_HT: Ptr,
    shape: Shape,
) -> Result<(), GpuError> {
    path.check(documents, shape);
    if documents.tokens == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise is the same.
    unsafe {
        match path {
            Path::Plain => plain::forward(on, qkv_TQ, documents, out_T, lse_HT, shape),
            Path::Mma => mma::forward(on, qkv_TQ, documents, out_T, lse_HT, shape),
            Path::Hopper => hopper::forward(on, qkv_TQ, documents, out_T, lse_HT, shape),
        }
    }
}

/// `dqkv_TQ`, overwritten, from `dout_T` and what the forward pass of the same path left. `scratch` holds
/// [`scratch_floats`].
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
    path: Path,
    dout_T: Ptr,
    qkv_TQ: Ptr,
    out_T: Ptr,
    lse_HT: Ptr,
    documents: &Documents,
    scratch: Ptr,
    dqkv_TQ: Ptr,
    shape: Shape,
) -> Result<(), GpuError> {
    path.check(documents, shape);
    if documents.tokens == 0 {
        return Ok(());
    }
    let tokens = documents.tokens;
    let parts_at = scratch.offset(4 * delta_floats(tokens, shape));
    let parts = parts::parts(path, on.processors(), tokens, shape);
    let from = Backward { dout_T, qkv_TQ, out_T, lse_HT, delta_HT: scratch, parts_at, parts };
    // SAFETY: the caller's promise is the same.
    unsafe {
        match path {
            Path::Plain => plain::backward(on, &from, documents, dqkv_TQ, shape)?,
            Path::Mma => mma::backward(on, &from, documents, dqkv_TQ, shape)?,
            Path::Hopper => hopper::backward(on, &from, documents, dqkv_TQ, shape)?,
        }
    }
    if parts == 1 {
        return Ok(());
    }
    // SAFETY: as above; the launches before left the parts, and did not write the gradients of keys and values.
    unsafe { parts::add(on, parts_at, dqkv_TQ, tokens, shape, parts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: Path, head_dim: usize) {
        let documents = Documents { list: Ptr::NULL, tokens: 1 };
        path.check(&documents, Shape { heads: 2, kv_heads: 1, head_dim });
    }

    #[test]
    fn heads_of_every_path() {
        [8, 64, 96, 128].into_iter().for_each(|k| check(Path::Plain, k));
        [64, 128].into_iter().for_each(|k| check(Path::Mma, k));
    }

    #[test]
    #[should_panic(expected = "mma: heads of 96 are neither 64 nor 128")]
    fn other_heads_are_refused() {
        check(Path::Mma, 96);
    }
}
