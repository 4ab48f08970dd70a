//! Strips of an operand, cut into bf16 parts and laid out as tiles.
//!
//! An f32 has 24 significant bits, a bf16 has 8: `x = high + middle + low` exactly, each what is left rounded to a bf16.

use std::arch::x86_64::*;

use super::tile::{PLANES, STEP, STEP_BYTES, STRIP, TILE, TILE_BYTES};

/// Part of an operand: element (x, k) is at `x·x_stride + k·k_stride`; x is the row of A, or the column of B.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub at: *const f32,
    pub x_stride: usize,
    pub k_stride: usize,
    /// Up to [`STRIP`] for a strip.
    pub xs: usize,
    pub ks: usize,
}

/// Which operand a strip is of: a tile of A has a row for each x, one of B a row for each pair of k.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
    A,
    B,
}

/// One of the strides is 1, so that an operand is read in vectors.
pub(super) fn is_dense(x_stride: usize, k_stride: usize) -> bool {
    x_stride == 1 || k_stride == 1
}

/// Bytes of a strip of `ks` terms.
pub(super) fn strip_bytes(ks: usize) -> usize {
    ks.div_ceil(STEP) * STEP_BYTES
}

/// Packs a strip; what is beyond `xs` and `ks` is 0.
///
/// # Safety
/// The processor has AVX-512 F and BW; every element lies in the operand; `out` has [`strip_bytes`], 64-byte aligned.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn strip(source: Source, side: Side, out: *mut u8) {
    for step in 0..source.ks.div_ceil(STEP) {
        for tile in 0..STRIP / TILE {
            let (k, x) = (step * STEP, tile * TILE);
            let part = Source {
                at: source.at.wrapping_add(x * source.x_stride + k * source.k_stride),
                xs: source.xs.saturating_sub(x).min(TILE),
                ks: (source.ks - k).min(STEP),
                ..source
            };
            // SAFETY: the tile's elements are among the strip's; its planes lie in `out`, two tiles apart.
            unsafe {
                let to = out.add(step * STEP_BYTES + tile * TILE_BYTES);
                let by_pair = part.k_stride != 1;
                if by_pair {
                    pairs(part, to)
                } else {
                    rows(part, to)
                }
                if by_pair != (side == Side::B) {
                    for plane in 0..PLANES {
                        transpose(to.add(plane * 2 * TILE_BYTES));
                    }
                }
            }
        }
    }
}

/// Steps that what is read next is asked for ahead.
const AHEAD: usize = 2;

/// The three parts of 16 values, each in the upper half of its word.
#[target_feature(enable = "avx512f")]
fn split(x: __m512) -> [__m512i; PLANES] {
    let high = nearest(x);
    let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(high));
    let middle = nearest(rest);
    let low = _mm512_sub_ps(rest, _mm512_castsi512_ps(middle));
    [high, middle, _mm512_castps_si512(low)]
}

/// The nearest bf16: rests are of either sign, so that what the product leaves out has no bias.
#[target_feature(enable = "avx512f")]
fn nearest(x: __m512) -> __m512i {
    let half = _mm512_set1_epi32(0x8000);
    let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
    _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), upper)
}

/// Mask of the first `n` of 16.
pub(super) fn first(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

/// A tile that is contiguous along k: a row of pairs for each x.
///
/// # Safety
/// As [`strip`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn rows(source: Source, out: *mut u8) {
    // The upper halves of the words of one vector, then of the other.
    let halves: [i16; 32] = std::array::from_fn(|i| 2 * i as i16 + 1);
    // SAFETY: the array has 64 bytes; elements that masks leave out are not read; rows of a tile are 64 bytes.
    unsafe {
        let halves = _mm512_loadu_si512(halves.as_ptr().cast());
        let (left, right) = (first(source.ks), first(source.ks.saturating_sub(16)));
        for x in 0..TILE {
            let (at, inside) = (source.at.wrapping_add(x * source.x_stride), x < source.xs);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * STEP).cast());
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * STEP + 16).cast());
            let load = |mask: __mmask16, at| _mm512_maskz_loadu_ps(if inside { mask } else { 0 }, at);
            let (a, b) = (split(load(left, at)), split(load(right, at.wrapping_add(16))));
            for plane in 0..PLANES {
                let pairs = _mm512_permutex2var_epi16(a[plane], halves, b[plane]);
                _mm512_store_si512(out.add(plane * 2 * TILE_BYTES + 64 * x).cast(), pairs);
            }
        }
    }
}

/// A tile that is contiguous along x: a row of x for each pair of k.
///
/// # Safety
/// As [`strip`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pairs(source: Source, out: *mut u8) {
    let mask = first(source.xs);
    for pair in 0..TILE {
        // SAFETY: as in `rows`.
        unsafe {
            let load = |k: usize| {
                let at = source.at.wrapping_add(k * source.k_stride);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * STEP * source.k_stride).cast());
                split(_mm512_maskz_loadu_ps(if k < source.ks { mask } else { 0 }, at))
            };
            let (even, odd) = (load(2 * pair), load(2 * pair + 1));
            for plane in 0..PLANES {
                let lower = _mm512_srli_epi32::<16>(even[plane]);
                let both = _mm512_mask_mov_epi16(lower, 0xaaaa_aaaa, odd[plane]);
                _mm512_store_si512(out.add(plane * 2 * TILE_BYTES + 64 * pair).cast(), both);
            }
        }
    }
}

/// Transposes a tile of 16 by 16 pairs in place.
///
/// # Safety
/// The processor has AVX-512 F, and the tile is at `tile`, 64-byte aligned.
#[target_feature(enable = "avx512f")]
unsafe fn transpose(tile: *mut u8) {
    // SAFETY: every row is one of the tile's 16.
    unsafe {
        let mut r = [_mm512_setzero_si512(); TILE];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm512_load_si512(tile.add(64 * i).cast());
        }
        // Within groups of four rows: pairs of words, then pairs of those; now a lane of 128 bits is a column's four.
        let mut quads = [_mm512_setzero_si512(); TILE];
        for g in 0..4 {
            let [a, b, c, d] = [r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]];
            let (ab, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            quads[4 * g] = _mm512_unpacklo_epi64(ab, cd);
            quads[4 * g + 1] = _mm512_unpackhi_epi64(ab, cd);
            quads[4 * g + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
            quads[4 * g + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
        }
        // Column 4·lane + i is lane `lane` of quads[i], [4 + i], [8 + i] and [12 + i].
        for i in 0..4 {
            let [a, b, c, d] = [quads[i], quads[4 + i], quads[8 + i], quads[12 + i]];
            let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
            let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
            let store = |column: usize, x| _mm512_store_si512(tile.add(64 * column).cast(), x);
            store(i, _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even));
            store(4 + i, _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd));
            store(8 + i, _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even));
            store(12 + i, _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd));
        }
    }
}
