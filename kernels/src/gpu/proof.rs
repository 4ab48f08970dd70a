//! Whether an algorithm of a matrix product sums all of its terms: libraries have had some that left out the last of a sum that is
//! split, and were the faster for it.

use super::{Elem, Product};
use crate::cases::values;

/// Elements of C that are looked at. A part of a sum that is left out moves most of them by more than rounding may.
const WITNESSES: usize = 64;

/// Elements of C, as they should be.
pub(super) struct Proof {
    elem: Elem,
    witnesses: Vec<Witness>,
}

struct Witness {
    /// Place in C.
    at: usize,
    exact: f64,
    /// Sum of the terms' magnitudes.
    terms: f64,
    /// Magnitude of what is rounded before the last sum, where something is.
    early: f64,
}

impl Proof {
    /// Of a product whose operands A, B, C and bias are these numbers, again and again.
    pub fn new(p: &Product, operands: [&[f32]; 4]) -> Self {
        let [a, b, c, bias] = operands.map(|numbers| move |i: usize| f64::from(numbers[i % numbers.len()]));
        let factor = f64::from(p.factor.value());
        let witness = |i: usize| {
            let [row, column, one] =
                [(0, p.m), (1, p.n), (2, p.batch.count)].map(|(which, extent)| spread(i, which, extent));
            let [a_at, b_at, c_at] = p.batch.strides.map(|stride| one * stride);
            let at = c_at + row * p.ldc + column;
            let before = if p.accumulate { c(at) } else { 0.0 };
            let added = before + if p.bias { bias(column) } else { 0.0 };
            let mut witness = Witness { at, exact: added, terms: added.abs(), early: 0.0 };
            for k in 0..p.k {
                let term = factor * a(a_at + p.a.at(row, k)) * b(b_at + p.b.at(k, column));
                witness.exact += term;
                witness.terms += term.abs();
            }
            // Algorithms that add to C may round the product to the element type before they do.
            if p.accumulate {
                witness.early = (witness.exact - before).abs();
            }
            witness
        };
        Self { elem: p.out, witnesses: (0..WITNESSES).map(witness).collect() }
    }

    /// Whether C is that product, as its element type rounds, and a sum in f32.
    pub fn holds<E>(&self, mut read: impl FnMut(usize) -> Result<f32, E>) -> Result<bool, E> {
        let rounding = if self.elem == Elem::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-22) };
        for Witness { at, exact, terms, early } in &self.witnesses {
            let off = (f64::from(read(*at)?) - exact).abs();
            let most = rounding * (exact.abs() + early) + 2f64.powi(-15) * terms;
            if off.is_nan() || off > most {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The `i`th of some places between 0 and `extent`, for rows, columns or products: the first, the last, and others, which rows and columns
/// of one extent do not share.
fn spread(i: usize, which: usize, extent: usize) -> usize {
    const STEPS: [usize; 3] = [0x9e37_79b1, 0x85eb_ca6b, 0xc2b2_ae35];
    match i {
        0 => 0,
        1 => extent - 1,
        _ => (i * STEPS[which]) / 64 % extent,
    }
}

/// Random elements of the operand `which`, which it is filled with again and again. Operands differ, so that sums are not of squares, which
/// the rounding of their parts makes drift; and no leading dimension divides the length of what is repeated.
pub(super) fn block(which: u64, len: usize, elem: Elem) -> Vec<u8> {
    const MOST: usize = (1 << 20) - 8;
    elem.encode(&values(1 + which, len.min(MOST)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::product::{Batch, Factor};

    /// The product, without its last terms; and rounded before it is added to C, or not.
    fn computed(p: &Product, operands: [&[f32]; 4], left_out: usize, early: bool) -> Vec<f32> {
        let [a, b, c, bias] = operands.map(|numbers| move |i: usize| numbers[i % numbers.len()]);
        let mut out = vec![f32::NAN; p.spans()[2]];
        for (one, row, column) in (0..p.batch.count)
            .flat_map(|z| (0..p.m).map(move |r| (z, r)))
            .flat_map(|(z, r)| (0..p.n).map(move |c| (z, r, c)))
        {
            let [a_at, b_at, c_at] = p.batch.strides.map(|stride| one * stride);
            let terms = (0..p.k - left_out).map(|k| a(a_at + p.a.at(row, k)) * b(b_at + p.b.at(k, column)));
            let at = c_at + row * p.ldc + column;
            let round = |x: f32| p.out.decode(&p.out.encode(&[x]))[0];
            let own = p.factor.value() * terms.sum::<f32>() + if p.bias { bias(column) } else { 0.0 };
            let own = if early { round(own) } else { own };
            out[at] = round(own + if p.accumulate { c(at) } else { 0.0 });
        }
        out
    }

    #[test]
    fn a_product_passes_and_one_without_its_last_terms_does_not() {
        let wide = Product::linear_forward(24, 40, 4096, Elem::Bf16);
        let all = [
            wide,
            Product { bias: true, factor: Factor::new(0.125), ..wide },
            Product::linear_dgrad(16, 2048, 24, Elem::Bf16),
            Product::linear_wgrad(3000, 24, 16, Elem::Bf16),
            Product { batch: Batch { count: 3, strides: [24 * 4096, 0, 24 * 40] }, ..wide },
            Product::linear_forward(8, 16, 1000, Elem::F32),
            // As many rows as columns, of operands that lie alike.
            Product::linear_wgrad(32_768, 16, 16, Elem::Bf16),
            // Added to C: as adapters' products are, and gradients of micro-batches.
            Product { accumulate: true, ..Product::linear_forward(24, 16, 512, Elem::Bf16) },
            Product { accumulate: true, ..Product::linear_forward(1, 8, 16, Elem::Bf16) },
            Product { accumulate: true, bias: true, factor: Factor::new(-1.5), ..wide },
            Product { accumulate: true, ..Product::linear_forward(8, 16, 1000, Elem::F32) },
        ];
        for p in all {
            let [a, b, c] = p.spans();
            let numbers = |which, len, elem: Elem| elem.decode(&block(which, len, elem));
            let operands =
                [numbers(0, a, p.elem), numbers(1, b, p.elem), numbers(2, c, p.out), numbers(3, p.n, p.out)];
            let operands = operands.each_ref().map(Vec::as_slice);
            let proof = Proof::new(&p, operands);
            let holds = |left_out, early| {
                let c = computed(&p, operands, left_out, early);
                proof.holds(|at| Ok::<_, ()>(c[at])).unwrap()
            };
            for early in [false, p.accumulate] {
                assert!(holds(0, early), "{}", p.name());
                assert!(!holds(p.k / 128 + 1, early), "{}", p.name());
            }
        }
    }

    #[test]
    fn rows_and_columns_are_not_in_step() {
        let places = |i| [0, 1].map(|which| spread(i, which, 2048));
        assert!((2..WITNESSES).filter(|i| places(*i)[0] == places(*i)[1]).count() < 4);
        let rows: std::collections::BTreeSet<_> = (0..WITNESSES).map(|i| spread(i, 0, 2048)).collect();
        assert!(rows.len() > WITNESSES / 2, "{rows:?}");
    }

    #[test]
    fn what_is_no_number_does_not_pass() {
        let p = Product::linear_forward(8, 8, 8, Elem::Bf16);
        let proof = Proof::new(&p, [&[1.0], &[1.0], &[0.0], &[0.0]]);
        assert_eq!(proof.holds(|_| Ok::<_, ()>(8.0)), Ok(true));
        assert_eq!(proof.holds(|at| Ok::<_, ()>(if at == 63 { f32::NAN } else { 8.0 })), Ok(false));
        assert_eq!(proof.holds(|_| Err(())), Err(()));
    }
}
