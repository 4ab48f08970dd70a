//! Launches of `kernel.cu`. The same contract as the CPU's functions; the table's gradient is f32.
//!
//! The gradient is deterministic without atomics: the host makes an [`index`] of the batch, tokens in the order of their
//! ids, and each row of the table is summed by one block at a time. Rows of an id that has more than [`PIECE`] tokens are
//! summed in pieces, by several blocks, and the pieces by one. Sums therefore depend on the batch alone. Grids depend on T
//! alone, so that launches can be replayed with another batch.

use std::cmp::Reverse;

use super::cases::{backward_bytes, forward_bytes};
use crate::gpu::{Arg, Cost, Elem, GpuError, Grid, Launcher, Needs, Ptr, Unit};

/// `kernel.cu`.
pub static UNIT: Unit = Unit {
    name: "embedding",
    source: include_str!("kernel.cu"),
    entries: &["embedding_gather", "embedding_scatter", "embedding_combine"],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Tokens that one block sums.
pub const PIECE: usize = 64;

const GATHER_THREADS: usize = 256;

/// Packs of a thread of the gather, as `PACKS` in the kernel.
const GATHER_PACKS: usize = 4;

/// Extent of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens `T`.
    pub tokens: usize,
    /// Rows of the table `V`.
    pub vocabulary: usize,
    /// Row length `D`, a multiple of 8.
    pub hidden: usize,
}

/// Ids with more than [`PIECE`] tokens, at most.
fn most_long(tokens: usize) -> usize {
    tokens / (PIECE + 1)
}

/// Length of [`index`], i32.
pub fn index_len(tokens: usize) -> usize {
    4 + 4 * tokens + 3 * most_long(tokens)
}

/// Rows of the scratch of [`backward`]: pieces of long ids, at most.
fn most_parts(tokens: usize) -> usize {
    // A long id has at most one piece that is not full.
    tokens / PIECE + most_long(tokens)
}

/// Floats of scratch that [`backward`] needs.
pub fn scratch_floats(shape: Shape) -> usize {
    most_parts(shape.tokens).max(1) * shape.hidden
}

/// Ids as the kernels take them.
///
/// # Panics
/// If an id is not below `vocabulary`.
pub fn checked(ids: &[u32], vocabulary: usize) -> Vec<i32> {
    assert!(ids.iter().all(|&id| (id as usize) < vocabulary), "a token id is not below {vocabulary}");
    ids.iter().map(|&id| i32::try_from(id).expect("a vocabulary below 2^31")).collect()
}

/// What the gradient needs to know of a batch; [`index_len`] i32, zeros at the end of each part:
///
/// ```text
/// pieces, long ids, 0, 0
/// order_T                                tokens by id, those of an id in the order of the batch
/// T × (begin, end, target)               pieces: a span of order, and the row of the table, or −1 − the row of scratch
/// T/65 × (begin, end, id)                long ids: a span of rows of scratch, and the row of the table
/// ```
///
/// Pieces are ordered by length, longest first, so that none of them starts late.
///
/// # Panics
/// If an id is not below `vocabulary`.
pub fn index(ids: &[u32], vocabulary: usize) -> Vec<i32> {
    let (t, ids) = (ids.len(), checked(ids, vocabulary));
    let mut order: Vec<i32> = (0..i32::try_from(t).expect("fewer than 2^31 tokens")).collect();
    order.sort_by_key(|&token| ids[token as usize]); // stable
    let (mut pieces, mut long, mut parts, mut begin) = (Vec::new(), Vec::new(), 0i32, 0i32);
    for tokens in order.chunk_by(|&a, &b| ids[a as usize] == ids[b as usize]) {
        let (id, end) = (ids[tokens[0] as usize], begin + tokens.len() as i32);
        if tokens.len() <= PIECE {
            pieces.push([begin, end, id]);
        } else {
            let first = parts;
            for piece in (begin..end).step_by(PIECE) {
                pieces.push([piece, end.min(piece + PIECE as i32), -1 - parts]);
                parts += 1;
            }
            long.push([first, parts, id]);
        }
        begin = end;
    }
    pieces.sort_by_key(|[begin, end, _]| Reverse(end - begin));
    let mut index = vec![pieces.len() as i32, long.len() as i32, 0, 0];
    index.extend(order);
    index.extend(pieces.iter().flatten());
    index.resize(4 + 4 * t, 0);
    index.extend(long.iter().flatten());
    index.resize(index_len(t), 0);
    index
}

fn check(shape: Shape) {
    assert!(
        shape.hidden > 0 && shape.hidden.is_multiple_of(8),
        "rows of {} are no multiple of 8",
        shape.hidden
    );
    assert!(shape.tokens > 0, "no tokens");
    assert!(shape.tokens * shape.hidden / 8 <= i32::MAX as usize, "{shape:?} is too large");
}

fn extent(shape: Shape) -> [Arg; 2] {
    [Arg::I32(shape.tokens as i32), Arg::I32(shape.hidden as i32)]
}

/// `x_TD[t] = table_VD[ids_T[t]]`; `ids_T` is i32.
///
/// # Safety
/// As [`Launcher::launch`]: operands have the lengths that their names say, 16-byte aligned, outputs overlap nothing, and
/// ids are [`checked`].
///
/// # Errors
/// As [`Launcher::launch`].
pub unsafe fn forward(
    on: &dyn Launcher,
    elem: Elem,
    ids_T: Ptr,
    table_VD: Ptr,
    x_TD: Ptr,
    shape: Shape,
) -> Result<(), GpuError> {
    check(shape);
    let packs = shape.tokens * shape.hidden / 8;
    let blocks = packs.div_ceil(GATHER_THREADS * GATHER_PACKS) as u32;
    let grid = Grid { blocks: (blocks, 1), threads: GATHER_THREADS as u32, shared: 0 };
    let args = [[ids_T, table_VD, x_TD].map(Arg::Ptr).as_slice(), &extent(shape)].concat();
    let Shape { tokens, vocabulary, hidden } = shape;
    // Rows of ids that come again are read again: from the cache, where they are few.
    on.costs(Cost::bytes(forward_bytes(tokens, tokens.min(vocabulary), hidden, elem.bytes())));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry("embedding_gather", elem), grid, &args) }
}

/// `dtable_VD[ids[t]] += dx_TD[t]`; `dtable_VD` is f32, `index` that of the ids, `scratch` holds [`scratch_floats`].
///
/// # Safety
/// As [`forward`]; `index` is that of [`index`] for T ids below V.
///
/// # Errors
/// As [`Launcher::launch`].
pub unsafe fn backward(
    on: &dyn Launcher,
    elem: Elem,
    index: Ptr,
    dx_TD: Ptr,
    dtable_VD: Ptr,
    scratch: Ptr,
    shape: Shape,
) -> Result<(), GpuError> {
    check(shape);
    let threads = (shape.hidden / 8).next_multiple_of(32).min(256) as u32;
    let grid = |blocks: usize| Grid { blocks: (blocks as u32, 1), threads, shared: 0 };
    let args = [[index, dx_TD, dtable_VD, scratch].map(Arg::Ptr).as_slice(), &extent(shape)].concat();
    let Shape { tokens, vocabulary, hidden } = shape;
    // As if no id came twice: which do is known to the index alone, and changes from batch to batch.
    on.costs(Cost::bytes(backward_bytes(tokens, tokens.min(vocabulary), hidden, elem.bytes())));
    // SAFETY: the caller's promise is the same; an index has at most T pieces.
    unsafe { on.launch(UNIT.entry("embedding_scatter", elem), grid(shape.tokens), &args)? };
    let long = most_long(shape.tokens);
    if long == 0 {
        return Ok(());
    }
    let args = [[index, scratch, dtable_VD].map(Arg::Ptr).as_slice(), &extent(shape)].concat();
    // The index alone; how many of the blocks have something to add changes from batch to batch.
    on.costs(Cost::bytes(4 * 3 * long as u64));
    // SAFETY: as above.
    unsafe { on.launch(UNIT.entry("embedding_combine", elem), grid(long), &args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(index: &[i32], t: usize) -> (&[i32], Vec<[i32; 3]>, Vec<[i32; 3]>) {
        let (pieces, long) = (index[0] as usize, index[1] as usize);
        let triples = |from: usize, count: usize| index[from..][..3 * count].as_chunks().0.to_vec();
        (&index[4..][..t], triples(4 + t, pieces), triples(4 + 4 * t, long))
    }

    #[test]
    fn an_index_is_stable_and_longest_first() {
        let index = index(&[5, 2, 5, 2, 5, 0], 6);
        assert_eq!(index.len(), index_len(6));
        let (order, pieces, long) = parts(&index, 6);
        assert_eq!(order, [5, 1, 3, 0, 2, 4]);
        assert_eq!(pieces, [[3, 6, 5], [1, 3, 2], [0, 1, 0]]);
        assert!(long.is_empty());
    }

    #[test]
    fn pieces_cover_every_token_once() {
        // Runs at the edges of a piece: 1, 63, 64, 65, 128, 129 and 1000 tokens.
        let runs = [1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1, 1000];
        let mut ids: Vec<u32> = runs.iter().enumerate().flat_map(|(id, &n)| vec![id as u32; n]).collect();
        let t = ids.len();
        (0..t).for_each(|i| ids.swap(i, i * 7919 % t));
        let index = index(&ids, runs.len());
        let (order, pieces, long) = parts(&index, t);
        let mut seen = vec![0; t];
        for [begin, end, target] in &pieces {
            assert!(begin < end && end - begin <= PIECE as i32, "{begin}..{end}");
            let id = if *target >= 0 {
                *target
            } else {
                long.iter().find(|[from, to, _]| (*from..*to).contains(&(-1 - target))).unwrap()[2]
            };
            for &token in &order[*begin as usize..*end as usize] {
                assert_eq!(ids[token as usize] as i32, id);
                seen[token as usize] += 1;
            }
        }
        assert!(seen.iter().all(|&n| n == 1));
        assert_eq!(long.iter().map(|l| l[1] - l[0]).collect::<Vec<_>>(), [2, 2, 3, 16]);
        assert!(long.last().unwrap()[1] as usize <= most_parts(t));
    }

    #[test]
    fn capacities_hold_at_their_edges() {
        // As many long ids as there can be, and one id alone.
        for (run, ids) in [(PIECE + 1, 40), (2 * PIECE + 1, 20), (5000, 1)] {
            let ids: Vec<u32> = (0..ids * run).map(|i| (i / run) as u32).collect();
            let index = index(&ids, 40);
            let (_, _, long) = parts(&index, ids.len());
            assert_eq!(index.len(), index_len(ids.len()));
            assert!(long.len() <= most_long(ids.len()));
            assert!(long.last().unwrap()[1] as usize <= most_parts(ids.len()));
        }
        assert_eq!(index(&[], 1).len(), index_len(0));
    }

    #[test]
    #[should_panic(expected = "not below 7")]
    fn an_id_outside_the_table_is_refused() {
        index(&[1, 7], 7);
    }
}
