//! Scalar functions and reductions that the compiler turns into vector code.
//!
//! The build targets a baseline processor, so that one binary runs everywhere; wider instructions are chosen at run
//! time. Everything here is `#[inline(always)]` and meant to be called inside the body of `passes::vectorised`, which is
//! compiled once per instruction set. A closure given to [`sum_map`] is marked `#[inline(always)]` too: out of line it
//! would be compiled for the baseline. Reductions keep [`LANES`] independent accumulators in a fixed order, so
//! their bits depend on the operands only, never on the instruction set or the number of threads.

/// Independent accumulators of a reduction: four AVX2 registers, enough to hide the latency of an addition.
pub const LANES: usize = 32;

/// eˣ with a relative error below 1.5e-7; NaN stays NaN and an overflow is +∞.
///
/// Below −87 the result is exactly 0 instead of a subnormal number: softmax terms of that size are lost in any sum, and
/// subnormal operands slow later arithmetic down by an order of magnitude on some processors.
///
/// Cody and Waite range reduction `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`, the Cephes minimax polynomial for `eʳ`, and
/// the exponent added as an integer.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves round(x) in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Comparisons instead of `max`/`min`, which would replace NaN by the bound.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.8 { 88.8 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    let mut p = 1.987_569_1e-4_f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, c);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    // 2ⁿ⁻¹, because 2¹²⁸ has no encoding; n = −126 gives an exponent field of 0, which is the value 0.
    let half_scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
    (p + p) * half_scale
}

/// Largest element; −∞ of nothing, and NaN elements are passed over.
#[inline(always)]
pub fn max(xs: &[f32]) -> f32 {
    let (blocks, tail) = xs.as_chunks::<LANES>();
    let mut acc = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for (a, &x) in acc.iter_mut().zip(block) {
            *a = if x > *a { x } else { *a };
        }
    }
    let mut max = f32::NEG_INFINITY;
    for &x in tail.iter().chain(&acc) {
        max = if x > max { x } else { max };
    }
    max
}

/// `Σ x`
#[inline(always)]
pub fn sum(xs: &[f32]) -> f32 {
    sum_map(
        xs,
        #[inline(always)]
        |x| x,
    )
}

/// `Σ exp(x − max)`
#[inline(always)]
pub fn sum_exp(xs: &[f32], max: f32) -> f32 {
    sum_map(
        xs,
        #[inline(always)]
        |x| exp(x - max),
    )
}

/// `Σ f(x)`
#[inline(always)]
pub fn sum_map(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (blocks, tail) = xs.as_chunks::<LANES>();
    let mut acc = [0.0; LANES];
    for block in blocks {
        for (a, &x) in acc.iter_mut().zip(block) {
            *a += f(x);
        }
    }
    for (a, &x) in acc.iter_mut().zip(tail) {
        *a += f(x);
    }
    fold(acc)
}

/// `x ← exp(x − max)` and the sum of the results.
#[inline(always)]
pub fn exp_in_place(xs: &mut [f32], max: f32) -> f32 {
    let (blocks, tail) = xs.as_chunks_mut::<LANES>();
    let mut acc = [0.0; LANES];
    for block in blocks {
        for (a, x) in acc.iter_mut().zip(block) {
            *x = exp(*x - max);
            *a += *x;
        }
    }
    for (a, x) in acc.iter_mut().zip(tail) {
        *x = exp(*x - max);
        *a += *x;
    }
    fold(acc)
}

/// `Σ a·b`
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut acc = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            acc[i] = a[i].mul_add(b[i], acc[i]);
        }
    }
    for (i, (&a, &b)) in a_tail.iter().zip(b_tail).enumerate() {
        acc[i] = a.mul_add(b, acc[i]);
    }
    fold(acc)
}

/// Pairwise sum of the accumulators.
#[inline(always)]
pub fn fold(mut acc: [f32; LANES]) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            acc[i] += acc[i + n];
        }
        n /= 2;
    }
    acc[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        let mut worst = 0f64;
        for i in -86_900_000..88_700_000i64 {
            if i % 37 != 0 {
                continue;
            }
            let x = i as f32 * 1e-6;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(worst < 1.5e-7, "largest relative error {worst:e}");
    }

    #[test]
    fn exp_at_its_limits() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(-87.1), 0.0);
        assert!(exp(-86.9) > 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(88.73), f32::INFINITY);
        assert!(exp(88.72).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_agree_with_f64_at_every_tail_length() {
        let a: Vec<f32> = (0..100).map(|i| ((i * 37) % 41) as f32 * 0.1 - 2.0).collect();
        let b: Vec<f32> = (0..100).map(|i| ((i * 23) % 29) as f32 * 0.2 - 3.0).collect();
        for n in 0..a.len() {
            let (a, b) = (&a[..n], &b[..n]);
            let want_dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            let want_sum: f64 = a.iter().map(|&a| f64::from(a)).sum();
            assert!((f64::from(dot(a, b)) - want_dot).abs() < 1e-4, "dot of {n}");
            assert!((f64::from(sum(a)) - want_sum).abs() < 1e-4, "sum of {n}");
            assert_eq!(max(a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max), "max of {n}");
        }
    }

    #[test]
    fn exponentials_in_place_are_those_that_are_summed() {
        for n in 0..100 {
            let xs: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() * 20.0).collect();
            let mut got = xs.clone();
            assert_eq!(exp_in_place(&mut got, 1.5), sum_exp(&xs, 1.5));
            assert_eq!(got, xs.iter().map(|x| exp(x - 1.5)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_instruction_set() {
        let a: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 20.0).collect();
        let wide = crate::passes::vectorised(
            #[inline(always)]
            || (sum_exp(&a, 1.5), dot(&a, &a)),
        );
        assert_eq!((sum_exp(&a, 1.5), dot(&a, &a)), wide);
    }
}
