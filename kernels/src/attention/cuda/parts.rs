//! The gradients of keys and values where several blocks share the query heads of a key/value head.

use super::Path;
use crate::{
    attention::Shape,
    gpu::{Arg, Cost, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit},
};

/// `parts.cu`.
pub static UNIT: Unit = Unit {
    name: "attention_parts",
    source: concat!(
        "#line 1 \"attention/common.cuh\"\n",
        include_str!("../common.cuh"),
        "#line 1 \"attention/parts.cu\"\n",
        include_str!("../parts.cu"),
    ),
    entries: &["attention_dkv_sum_64", "attention_dkv_sum_128"],
    elems: &[Elem::Bf16],
    needs: Needs::Ampere,
};

/// Keys of a block on tensor cores, as `KEYS` in the kernels.
pub(super) const KEYS: usize = 64;

/// How often every multiprocessor is to be filled: a block has as much to do as there are queries behind its keys, and where all
/// blocks begin at once, that with most of them decides. Measured on an H200 (8,192 tokens, 24 layers, with the sum of the parts): one
/// part 5.7 ms, two 4.3, four 3.5, seven 3.8.
const FILLS: usize = 2;

/// Into how many parts the query heads of a key/value head are divided: a block each, since with one block for all, few tokens and
/// few key/value heads leave multiprocessors idle. A power of two, so many that there is enough to do for all, but no part without
/// a head.
pub(super) fn parts(path: Path, processors: u32, tokens: usize, shape: Shape) -> usize {
    // Blocks that a multiprocessor holds at once.
    let of_processor = match (path, shape.head_dim) {
        (Path::Plain, _) => return 1,
        (Path::Mma, _) | (Path::Hopper, 128) => 2,
        (Path::Hopper, _) => 3,
    };
    let (blocks, group) = (tokens.div_ceil(KEYS) * shape.kv_heads, shape.heads / shape.kv_heads);
    let room = processors as usize * of_processor * FILLS;
    let mut parts = 1;
    while 2 * parts <= group && blocks * parts < room {
        parts *= 2;
    }
    parts
}

/// Floats that the parts take on any path for so many tokens or fewer: there are more parts where there are fewer tokens.
pub(super) fn floats(processors: u32, tokens: usize, shape: Shape) -> usize {
    let of = |path: Path, tokens: usize| match parts(path, processors, tokens, shape) {
        1 => 0,
        parts => parts * tokens * shape.kv_heads * 2 * shape.head_dim,
    };
    let fewer = |path| (1..=tokens.div_ceil(KEYS)).map(move |tiles| of(path, (tiles * KEYS).min(tokens)));
    Path::ALL.into_iter().flat_map(fewer).max().unwrap_or(0)
}

/// Gradients of keys and values from the sums of their parts; those of queries are left alone.
///
/// # Safety
/// As [`super::backward`].
pub(super) unsafe fn add(
    on: &dyn Launcher,
    parts_at: Ptr,
    dqkv_TQ: Ptr,
    tokens: usize,
    shape: Shape,
    parts: usize,
) -> Result<(), GpuError> {
    const THREADS: usize = 256;
    let name = if shape.head_dim == 128 { "attention_dkv_sum_128" } else { "attention_dkv_sum_64" };
    let values = tokens * shape.kv_heads * 2 * shape.head_dim;
    let grid = Grid { blocks: (values.div_ceil(8 * THREADS) as u32, 1), threads: THREADS as u32, shared: 0 };
    let extents = [tokens, shape.heads, shape.kv_heads, parts].map(|n| Arg::I32(n as i32));
    let args = [&[parts_at, dqkv_TQ].map(Arg::Ptr)[..], &extents].concat();
    on.costs(Cost::bytes((values * (4 * parts + 2)) as u64));
    // SAFETY: the caller's promise is the same; it waits before it reads.
    unsafe { on.launch_early(UNIT.entry(name, Elem::Bf16), grid, &args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of Qwen2.5-0.5B on an H200: one part where there are blocks enough, and no part without a head.
    #[test]
    fn parts_fill_the_multiprocessors() {
        let shape = Shape { heads: 14, kv_heads: 2, head_dim: 64 };
        let of = |tokens| parts(Path::Hopper, 132, tokens, shape);
        assert_eq!([32_768, 16_384, 8_192, 4_096, 1_024, 1].map(of), [1, 2, 4, 4, 4, 4]);
        let one_head_each = Shape { kv_heads: 14, ..shape };
        assert_eq!(parts(Path::Hopper, 132, 64, one_head_each), 1);
        for tokens in [1, 100, 5_000, 32_768] {
            let room = floats(132, tokens, shape);
            for fewer in (1..=tokens).step_by(61) {
                for path in Path::ALL {
                    let parts = parts(path, 132, fewer, shape);
                    let taken = parts * fewer * 2 * 2 * 64;
                    assert!(
                        parts == 1 || taken <= room,
                        "{fewer} of {tokens} by {}: {parts} parts",
                        path.name()
                    );
                }
            }
        }
    }
}
