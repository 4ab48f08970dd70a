//! 8-bit moments: blocks of [`BLOCK`] share the largest magnitude `a`, f32. A code is a small float of `|x|/a`, rounded
//! stochastically:
//!
//! * first moment: sign, 4 bits of exponent, 3 of mantissa; wrong by less than `max(|x|/8, 2⁻¹⁷·a)`;
//! * second moment: 5 bits of exponent, 3 of mantissa; wrong by less than `max(x/8, 2⁻³³·a)`. Its range is the square of the
//!   first's, and what is not zero never becomes zero: below the range it is rounded up, so the quotient stays bounded.
//!   Apart from that, both are unbiased.
//!
//! A code is the top bits of an f32 whose exponents begin at that of zero: decoding is a shift and two products. The bits
//! that round are Philox4x32-7 (Salmon et al., SC 2011; seven rounds pass BigCrush) of seed, step, array and place, so that a
//! run is reproduced whatever the device or the number of threads. `kernel.cu` computes the same codes of the same moments.

/// Moments that share a scale: elements of a warp, as `CHUNK` in the kernel.
pub const BLOCK: usize = 256;

/// Scales of so many moments.
pub fn scales(n: usize) -> usize {
    n.div_ceil(BLOCK)
}

/// Bytes of so many moments: codes and scales.
pub fn bytes(n: usize) -> usize {
    n + size_of::<f32>() * scales(n)
}

/// A first moment of its code and its block's scale.
pub fn decode_first(code: u8, scale: f32) -> f32 {
    decode::<true>(code) * scale
}

/// A second moment of its code and its block's scale.
pub fn decode_second(code: u8, scale: f32) -> f32 {
    decode::<false>(code) * scale
}

/// Where a code lies in an f32.
const SHIFT: u32 = 20;

/// Exponent between a code's f32 and what it stands for; of first moments (`SIGNED`) or second.
const fn bias<const SIGNED: bool>() -> u32 {
    if SIGNED { 112 } else { 96 }
}

const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

#[inline(always)]
fn decode<const SIGNED: bool>(code: u8) -> f32 {
    let code = u32::from(code);
    let bits = if SIGNED { (code & 127) << SHIFT | (code & 128) << 24 } else { code << SHIFT };
    f32::from_bits(bits) * power_of_two(bias::<SIGNED>() as i32)
}

/// Moments of a block, zero behind the last code.
#[inline(always)]
pub(super) fn decode_block<const SIGNED: bool>(codes: &[u8], scale: f32) -> [f32; BLOCK] {
    let mut x = [0.0; BLOCK];
    for (x, &code) in x.iter_mut().zip(codes) {
        *x = decode::<SIGNED>(code) * scale;
    }
    x
}

/// Codes of a block's moments, and their scale; `random` has 16 bits for each. NaN spreads to the block.
#[inline(always)]
pub(super) fn encode_block<const SIGNED: bool>(
    x: &[f32; BLOCK],
    random: &[u32; BLOCK],
    codes: &mut [u8],
) -> f32 {
    let mut bits = 0;
    for x in x {
        bits = bits.max(x.to_bits() & 0x7fff_ffff);
    }
    // What is so small that its inverse might overflow is nothing, beside eps also as a root.
    let largest = if bits < 0x0380_0000 { 0.0 } else { f32::from_bits(bits) };
    let inverse = if largest == 0.0 { 0.0 } else { 1.0 / largest };
    for ((code, &x), &random) in codes.iter_mut().zip(x).zip(random) {
        let y = x.abs() * inverse * power_of_two(-(bias::<SIGNED>() as i32));
        let rounded = (y.to_bits() & 0x7fff_ffff).wrapping_add(random << (SHIFT - 16)) >> SHIFT;
        *code = if SIGNED {
            rounded.min(120) | (x.to_bits() >> 24 & 128)
        } else {
            rounded.clamp(x.to_bits().min(1), 248)
        } as u8;
    }
    largest
}

/// Which moments bits are for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Array {
    First = 0,
    Second = 1,
}

/// 16 bits for each element of block number `block`, at step `step`.
#[inline(always)]
pub(super) fn random_block(block: usize, array: Array, step: u32, seed: u32) -> [u32; BLOCK] {
    const LANES: usize = BLOCK / 8;
    let first = (block * LANES) as u64;
    let octets: [u64; LANES] = std::array::from_fn(|lane| first + lane as u64);
    let mut words = [
        octets.map(|octet| octet as u32),
        octets.map(|octet| (octet >> 32) as u32),
        [array as u32; LANES],
        [step; LANES],
    ];
    let [mut key0, mut key1] = [seed, 0x4164_6d57];
    for _ in 0..7 {
        let [a, b, c, d] = &mut words;
        for lane in 0..LANES {
            let x = 0xd251_1f53_u64 * u64::from(a[lane]);
            let y = 0xcd9e_8d57_u64 * u64::from(c[lane]);
            a[lane] = (y >> 32) as u32 ^ b[lane] ^ key0;
            b[lane] = y as u32;
            c[lane] = (x >> 32) as u32 ^ d[lane] ^ key1;
            d[lane] = x as u32;
        }
        key0 = key0.wrapping_add(0x9e37_79b9);
        key1 = key1.wrapping_add(0xbb67_ae85);
    }
    // A lane of the GPU has two quads, half a block apart, and two elements a word.
    let mut random = [0; BLOCK];
    for (half, pair) in words.as_chunks::<2>().0.iter().enumerate() {
        for lane in 0..LANES {
            let quad = &mut random[half * BLOCK / 2 + 4 * lane..][..4];
            for (two, word) in quad.as_chunks_mut::<2>().0.iter_mut().zip(pair) {
                *two = [word[lane] & 0xffff, word[lane] >> 16];
            }
        }
    }
    random
}
