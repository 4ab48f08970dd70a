//! Launches of attention on a GPU. The same contract as the CPU's fused variant, on one of several [`Path`]s that the caller
//! chooses: bf16 on tensor cores (`mma/`), or f32 for debugging (`plain.cu`).
//!
//! * A tile is [`BLOCK`] consecutive tokens of the batch, whatever documents they are of, and every token has the two ends of
//!   its document: [`documents`]. A grid depends on the number of tokens alone, so that a captured launch fits every batch,
//!   and many short documents fill a tile. Work goes with the sum of squared lengths, to the granularity of tiles.
//! * What a document holds does not change a bit of another's results, as long as it is finite. On tensor cores, NaN or
//!   infinities may spread to documents that share a tile with it.
//! * Memory besides the operands: a float a query and head ([`scratch_floats`]), whatever the lengths.
//! * Deterministic: every sum is one warp's or one thread's, in the order of keys or queries; there are no atomics.

mod list;

pub use list::{BLOCK, Documents, documents, documents_len};

use super::Shape;
use crate::gpu::{Arg, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit};

/// `mma/`.
pub static MMA: Unit = Unit {
    name: "attention",
    source: concat!(
        "#line 1 \"mma.cuh\"\n",
        include_str!("../gpu/mma.cuh"),
        "#line 1 \"attention/mma/tile.cuh\"\n",
        include_str!("mma/tile.cuh"),
        "#line 1 \"attention/mma/forward.cu\"\n",
        include_str!("mma/forward.cu"),
        "#line 1 \"attention/mma/backward.cu\"\n",
        include_str!("mma/backward.cu"),
    ),
    entries: &[
        "attention_forward_64",
        "attention_forward_128",
        "attention_dq_64",
        "attention_dq_128",
        "attention_dkv_64",
        "attention_dkv_128",
    ],
    elems: &[Elem::Bf16],
    needs: Needs::Ampere,
};

/// `plain.cu`.
pub static PLAIN: Unit = Unit {
    name: "attention_plain",
    source: include_str!("plain.cu"),
    entries: &["attention_plain_forward", "attention_plain_dq", "attention_plain_dkv"],
    elems: &[Elem::F32],
    needs: Needs::Ampere,
};

/// Which kernels run. The caller chooses; none stands in for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// f32, for debugging: a warp a token. Head dimensions are multiples of 8 up to 128.
    Plain,
    /// bf16 by mma.sync, sm_80 and newer. Head dimensions are 64 and 128.
    Mma,
}

impl Path {
    /// Every path.
    pub const ALL: [Path; 2] = [Path::Plain, Path::Mma];

    /// Type of the operands; `lse_HT` and the scratch are f32 in any.
    pub fn elem(self) -> Elem {
        match self {
            Path::Plain => Elem::F32,
            Path::Mma => Elem::Bf16,
        }
    }

    /// Name in messages and records.
    pub fn name(self) -> &'static str {
        match self {
            Path::Plain => "plain",
            Path::Mma => "mma",
        }
    }

    /// What it runs on.
    pub fn needs(self) -> Needs {
        match self {
            Path::Plain => PLAIN.needs,
            Path::Mma => MMA.needs,
        }
    }

    /// # Panics
    /// It has no kernels for the shape.
    fn check(self, documents: &Documents, shape: Shape) {
        let (k, name) = (shape.head_dim, self.name());
        assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads), "{shape:?}");
        assert!(documents.tokens <= i32::MAX as usize, "{} tokens are no int", documents.tokens);
        match self {
            Path::Plain => assert!(
                k > 0 && k.is_multiple_of(8) && k <= 128,
                "{name}: heads of {k} are no multiple of 8 up to 128"
            ),
            Path::Mma => assert!(k == 64 || k == 128, "{name}: heads of {k} are neither 64 nor 128"),
        }
    }
}

/// Floats of scratch that [`backward`] needs: δ.
pub fn scratch_floats(tokens: usize, shape: Shape) -> usize {
    tokens * shape.heads
}

/// Threads of a block of any kernel here, as `THREADS` in `mma/`.
const THREADS: u32 = 128;

/// Most blocks of a grid in y.
const MOST_BLOCKS: usize = 65_535;

/// Tokens of a block of `plain.cu`: a warp each.
const PLAIN_TOKENS: usize = THREADS as usize / 32;

/// Rows of a step, as `STREAM` in `mma/`. A block keeps two steps, each of two tiles.
const STREAM: usize = 64;

/// A kernel of `mma/` at a head dimension.
#[derive(Clone, Copy)]
struct Tiling {
    name: &'static str,
    /// Tokens of a block: a tile, or half of one.
    rows: usize,
    /// How many rows of K elements it keeps of each, besides the steps.
    kept: usize,
    /// f32 that it keeps besides.
    floats: usize,
}

/// A kernel's tilings at head dimensions of 64 and 128, and its plain version.
struct Pass {
    tilings: [Tiling; 2],
    plain: &'static str,
}

const FORWARD: Pass = Pass {
    tilings: [
        Tiling { name: "attention_forward_64", rows: 128, kept: 1, floats: 0 },
        Tiling { name: "attention_forward_128", rows: 128, kept: 1, floats: 0 },
    ],
    plain: "attention_plain_forward",
};

const DQ: Pass = Pass {
    tilings: [
        Tiling { name: "attention_dq_64", rows: 128, kept: 2, floats: 0 },
        Tiling { name: "attention_dq_128", rows: 64, kept: 2, floats: 0 },
    ],
    plain: "attention_plain_dq",
};

const DKV: Pass = Pass {
    tilings: [
        Tiling { name: "attention_dkv_64", rows: 64, kept: 2, floats: 4 * STREAM },
        Tiling { name: "attention_dkv_128", rows: 64, kept: 2, floats: 4 * STREAM },
    ],
    plain: "attention_plain_dkv",
};

/// Runs a pass for each of `heads`. `tiles` is their order, which plain kernels do not read; `bounds` the ends of documents
/// that it needs. The operands are those before and those after these two.
///
/// # Safety
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // the operands of the kernels
unsafe fn launch(
    on: &dyn Launcher,
    path: Path,
    pass: &Pass,
    heads: usize,
    (before, tiles, bounds, after): (&[Ptr], Ptr, Ptr, &[Ptr]),
    documents: &Documents,
    shape: Shape,
) -> Result<(), GpuError> {
    path.check(documents, shape);
    if documents.tokens == 0 {
        return Ok(());
    }
    let extents = [documents.tokens, shape.heads, shape.kv_heads].map(|n| Arg::I32(n as i32));
    let operands = |lists: &[Ptr]| -> Vec<Arg> {
        let pointers = [before, lists, after].concat();
        pointers.into_iter().map(Arg::Ptr).chain(extents).collect()
    };
    let (entry, blocks, shared, args) = match path {
        Path::Plain => {
            let mut args = operands(&[bounds]);
            args.extend([Arg::I32(shape.head_dim as i32), Arg::F32(shape.scale())]);
            let blocks = (heads * documents.tokens.div_ceil(PLAIN_TOKENS), 1);
            (PLAIN.entry(pass.plain, path.elem()), blocks, 0, args)
        }
        Path::Mma => {
            let Tiling { name, rows, kept, floats } = pass.tilings[usize::from(shape.head_dim == 128)];
            let blocks = (heads, documents.tiles() * (BLOCK / rows));
            let shared = 2 * (rows * kept + 4 * STREAM) * shape.head_dim + 4 * floats;
            (MMA.entry(name, path.elem()), blocks, shared, operands(&[tiles, bounds]))
        }
    };
    assert!(blocks.1 <= MOST_BLOCKS, "{} tokens are too many for one launch", documents.tokens);
    let grid = Grid { blocks: (blocks.0 as u32, blocks.1 as u32), threads: THREADS, shared: shared as u32 };
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(entry, grid, &args) }
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
    let operands = (&[qkv_TQ][..], documents.by_queries(), documents.begin(), &[out_T, lse_HT][..]);
    // SAFETY: the caller's promise is the same.
    unsafe { launch(on, path, &FORWARD, shape.heads, operands, documents, shape) }
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
    let delta_HT = scratch;
    let inputs = [dout_T, qkv_TQ, out_T, lse_HT];
    let operands = (&inputs[..], documents.by_queries(), documents.begin(), &[delta_HT, dqkv_TQ][..]);
    // SAFETY: the caller's promise is the same.
    unsafe { launch(on, path, &DQ, shape.heads, operands, documents, shape)? };
    let inputs = [dout_T, qkv_TQ, lse_HT, delta_HT];
    let operands = (&inputs[..], documents.by_keys(), documents.end(), &[dqkv_TQ][..]);
    // SAFETY: as above; δ is what the launch before left.
    unsafe { launch(on, path, &DKV, shape.kv_heads, operands, documents, shape) }
}
