//! Launches of attention on a GPU. The same contract as the CPU's fused variant, in bf16 on tensor cores (`mma/`, sm_80 and
//! newer) and, for debugging, in f32 (`plain.cu`). Head dimensions are 64 and 128; in f32 any multiple of 8 up to 128.
//!
//! * The host knows the documents and lists their blocks of [`BLOCK`] tokens: [`tiles`]. A launch has a block for each of
//!   them and each head, heaviest first, so that time goes with the sum of squared lengths and no token of another document
//!   is ever read into a score. The list is padded, so that a launch with a fixed grid can be replayed with other documents.
//! * Memory besides the operands: a float a query and head ([`scratch_floats`]), whatever the lengths.
//! * Deterministic: every sum is one warp's or one thread's, in the order of keys or queries; there are no atomics.

use super::Shape;
use crate::gpu::{Arg, Elem, Entry, GpuError, Grid, Launcher, Needs, Ptr, Unit};

/// `mma/`.
pub static MMA: Unit = Unit {
    name: "attention",
    source: concat!(
        "#line 1 \"mma.cuh\"\n",
        include_str!("../gpu/mma.cuh"),
        "#line 1 \"attention/tiles.cuh\"\n",
        include_str!("tiles.cuh"),
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
    source: concat!(include_str!("tiles.cuh"), include_str!("plain.cu")),
    entries: &["attention_plain_forward", "attention_plain_dq", "attention_plain_dkv"],
    elems: &[Elem::F32],
    needs: Needs::Ampere,
};

/// Tokens of a block, as `BLOCK` in the kernels.
pub const BLOCK: usize = 128;

/// Tiles that hold any split of so many tokens into so many documents.
pub fn most_tiles(tokens: usize, documents: usize) -> usize {
    tokens / BLOCK + documents
}

/// Length of [`tiles`], u32.
pub fn tiles_len(count: usize) -> usize {
    2 * 4 * count
}

/// Blocks of the documents, padded to `count`: twice, in the order of the forward pass (the last blocks of long documents
/// first) and in that of keys (the first blocks of long documents first). A tile is four u32: first token of the document,
/// its length, which of its blocks, 0.
///
/// # Panics
/// If `cu_seqlens` falls, or there are more blocks than `count`.
pub fn tiles(cu_seqlens: &[u32], count: usize) -> Vec<u32> {
    assert!(cu_seqlens.is_sorted(), "cu_seqlens falls");
    let documents = cu_seqlens.windows(2).map(|w| (w[0], w[1] - w[0]));
    let mut blocks: Vec<[u32; 4]> = documents
        .flat_map(|(begin, len)| (0..len.div_ceil(BLOCK as u32)).map(move |block| [begin, len, block, 0]))
        .collect();
    assert!(blocks.len() <= count, "{} blocks of documents, {count} are planned", blocks.len());
    let mut all = Vec::with_capacity(tiles_len(count));
    // Stable: documents of one length stay in their order.
    blocks.sort_by_key(|&[_, _, block, _]| std::cmp::Reverse(block));
    all.extend(blocks.iter().flatten());
    all.resize(4 * count, 0);
    blocks.sort_by_key(|&[_, len, block, _]| std::cmp::Reverse(len - block * BLOCK as u32));
    all.extend(blocks.iter().flatten());
    all.resize(tiles_len(count), 0);
    all
}

/// The documents of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Documents {
    /// [`tiles`], u32.
    pub tiles: Ptr,
    /// How many the list is padded to.
    pub count: usize,
    /// Tokens of the batch: T.
    pub tokens: usize,
}

/// Floats of scratch that [`backward`] needs: δ.
pub fn scratch_floats(tokens: usize, shape: Shape) -> usize {
    tokens * shape.heads
}

/// A kernel on tensor cores, at a head dimension, as `mma/` has it.
#[derive(Clone, Copy)]
struct Tiling {
    name: &'static str,
    threads: u32,
    /// Rows of K elements that a block keeps in shared memory, and of one of the two steps that follow.
    rows: usize,
    step: usize,
    /// f32 that it keeps besides.
    floats: usize,
}

/// A kernel's tilings at head dimensions of 64 and 128, and its plain version. Measured: larger steps are faster as long as
/// the scores of one leave no register to spill.
struct Pass {
    tilings: [Tiling; 2],
    plain: &'static str,
}

const FORWARD: Pass = Pass {
    tilings: [
        Tiling { name: "attention_forward_64", threads: 128, rows: BLOCK, step: 2 * 128, floats: 0 },
        Tiling { name: "attention_forward_128", threads: 128, rows: BLOCK, step: 2 * 32, floats: 0 },
    ],
    plain: "attention_plain_forward",
};

const DQ: Pass = Pass {
    tilings: [
        Tiling { name: "attention_dq_64", threads: 128, rows: 2 * BLOCK, step: 2 * 32, floats: 2 * BLOCK },
        Tiling { name: "attention_dq_128", threads: 128, rows: 2 * BLOCK, step: 2 * 16, floats: 2 * BLOCK },
    ],
    plain: "attention_plain_dq",
};

const DKV: Pass = Pass {
    tilings: [
        Tiling { name: "attention_dkv_64", threads: 256, rows: 2 * BLOCK, step: 2 * 128, floats: 4 * 128 },
        Tiling { name: "attention_dkv_128", threads: 256, rows: 2 * BLOCK, step: 2 * 64, floats: 4 * 64 },
    ],
    plain: "attention_plain_dkv",
};

/// The entry of a pass, and its grid: a block for each tile and each of `heads`.
fn choose(elem: Elem, shape: Shape, pass: &Pass, tiles: usize, heads: usize) -> (Entry, Grid) {
    let k = shape.head_dim;
    assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads), "{shape:?}");
    let blocks = ((tiles * heads) as u32, 1);
    if elem == Elem::F32 {
        assert!(k.is_multiple_of(8) && k <= 128, "heads of {k} are no multiple of 8 up to 128");
        let entry = PLAIN.entry(pass.plain, elem);
        return (entry, Grid { blocks, threads: 128, shared: 0 });
    }
    assert!(k == 64 || k == 128, "heads of {k} are neither 64 nor 128");
    let Tiling { name, threads, rows, step, floats } = pass.tilings[usize::from(k == 128)];
    let shared = ((rows + 2 * step) * k * elem.bytes() + 4 * floats) as u32;
    (MMA.entry(name, elem), Grid { blocks, threads, shared })
}

/// T, H, G, for plain kernels K, and the scale.
fn extents(elem: Elem, documents: &Documents, shape: Shape, scale: f32) -> Vec<Arg> {
    let mut args = vec![Arg::I64(documents.tokens as i64)];
    args.extend([shape.heads, shape.kv_heads].map(|n| Arg::I32(n as i32)));
    if elem == Elem::F32 {
        args.push(Arg::I32(shape.head_dim as i32));
    }
    args.push(Arg::F32(scale));
    args
}

/// `out_T` and `lse_HT` (f32, H × T) of `qkv_TQ`.
///
/// # Safety
/// As [`Launcher::launch`]: operands have the lengths that their names say, 16-byte aligned, the tiles are those of documents
/// inside T, and outputs overlap nothing.
///
/// # Errors
/// As [`Launcher::launch`].
pub unsafe fn forward(
    on: &dyn Launcher,
    elem: Elem,
    qkv_TQ: Ptr,
    documents: &Documents,
    out_T: Ptr,
    lse_HT: Ptr,
    shape: Shape,
) -> Result<(), GpuError> {
    let (entry, grid) = choose(elem, shape, &FORWARD, documents.count, shape.heads);
    if documents.count == 0 {
        return Ok(());
    }
    // Tensor cores' scores are exponentiated to the base 2.
    let scale = shape.scale() * if elem == Elem::F32 { 1.0 } else { std::f32::consts::LOG2_E };
    let mut args = [qkv_TQ, documents.tiles, out_T, lse_HT].map(Arg::Ptr).to_vec();
    args.extend(extents(elem, documents, shape, scale));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(entry, grid, &args) }
}

/// `dqkv_TQ`, overwritten, from `dout_T` and what the forward pass left. `scratch` holds [`scratch_floats`].
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
    dout_T: Ptr,
    qkv_TQ: Ptr,
    out_T: Ptr,
    lse_HT: Ptr,
    documents: &Documents,
    scratch: Ptr,
    dqkv_TQ: Ptr,
    shape: Shape,
) -> Result<(), GpuError> {
    if documents.count == 0 {
        return Ok(());
    }
    let extents = extents(elem, documents, shape, shape.scale());
    let mut args = [dout_T, qkv_TQ, out_T, lse_HT, documents.tiles, scratch, dqkv_TQ].map(Arg::Ptr).to_vec();
    args.extend(&extents);
    let (entry, grid) = choose(elem, shape, &DQ, documents.count, shape.heads);
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(entry, grid, &args)? };
    let by_keys = documents.tiles.offset(4 * 4 * documents.count);
    let mut args = [dout_T, qkv_TQ, lse_HT, scratch, by_keys, dqkv_TQ].map(Arg::Ptr).to_vec();
    args.extend(&extents);
    let (entry, grid) = choose(elem, shape, &DKV, documents.count, shape.kv_heads);
    // SAFETY: as above; what the launch before left of δ is there.
    unsafe { on.launch(entry, grid, &args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_heaviest_first_and_padded() {
        let list = tiles(&[0, 300, 300, 301, 429], 7);
        assert_eq!(list.len(), tiles_len(7));
        let (forward, keys) = list.split_at(28);
        let rows = |list: &[u32]| list.as_chunks::<4>().0.to_vec();
        let blocks = |list: &[u32]| rows(list).iter().map(|t| (t[0], t[1], t[2])).collect::<Vec<_>>();
        let padding = (0, 0, 0);
        assert_eq!(
            blocks(forward),
            [(0, 300, 2), (0, 300, 1), (0, 300, 0), (300, 1, 0), (301, 128, 0), padding, padding]
        );
        assert_eq!(
            blocks(keys),
            [(0, 300, 0), (0, 300, 1), (301, 128, 0), (0, 300, 2), (300, 1, 0), padding, padding]
        );
    }

    #[test]
    fn any_split_fits_the_most_tiles() {
        for lengths in [vec![128u32; 5], vec![129; 5], vec![1; 40], vec![0, 127, 0, 500, 2]] {
            let cu = super::super::cu_seqlens(&lengths);
            let count = most_tiles(*cu.last().unwrap() as usize, lengths.len());
            tiles(&cu, count);
        }
    }
}
