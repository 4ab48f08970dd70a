//! Reproducible operands for tests and benches.

/// `len` values, uniform in [−1, 1), that depend on `seed` and their index alone (SplitMix64).
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    let value = |i: u64| {
        let mut z = seed
            .wrapping_mul(0xd134_2543_de82_ef95)
            .wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len as u64).map(value).collect()
}
