//! What a matrix product is, whoever runs it.

use super::{Elem, GpuError, Ptr};

/// `C = factor · A·B (+ bias) (+ C)`, all row-major: C is m × n, A is m × k and B is k × n after their transpositions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Terms of a sum.
    pub k: usize,
    /// Left operand.
    pub a: Matrix,
    /// Right operand.
    pub b: Matrix,
    /// Elements from one row of C to the next.
    pub ldc: usize,
    /// Element type of C; A and B share `elem`.
    pub out: Elem,
    /// Element type of A and B.
    pub elem: Elem,
    /// Adds a vector of n elements of type `out` to every row.
    pub bias: bool,
    /// Adds to what C holds.
    pub accumulate: bool,
    /// How often, and how far apart.
    pub batch: Batch,
    /// What the products are multiplied by.
    pub factor: Factor,
}

/// A finite f32 that compares by its bits, as a part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Factor(u32);

impl Factor {
    /// No factor.
    pub const ONE: Factor = Factor::new(1.0);

    /// A factor.
    pub const fn new(value: f32) -> Self {
        Self(value.to_bits())
    }

    /// Its value.
    pub const fn value(self) -> f32 {
        f32::from_bits(self.0)
    }
}

/// Products of one shape, in operands that lie a stride apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    /// How many, at least 1.
    pub count: usize,
    /// Elements from one A, B and C to the next; the Cs do not overlap. Not read of one product alone.
    pub strides: [usize; 3],
}

impl Batch {
    /// One product alone.
    pub const ONE: Batch = Batch { count: 1, strides: [0; 3] };
}

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// Elements from one row to the next, as stored.
    pub ld: usize,
    /// Whether its transpose is meant.
    pub transposed: bool,
}

impl Matrix {
    /// Place of the element in row `i` and column `j` of what is meant.
    pub fn at(self, i: usize, j: usize) -> usize {
        if self.transposed { j * self.ld + i } else { i * self.ld + j }
    }
}

impl Product {
    /// `y_TN = x_TK · w_NKᵀ`, all dense.
    pub fn linear_forward(t: usize, n: usize, k: usize, elem: Elem) -> Self {
        let (a, b) = (Matrix { ld: k, transposed: false }, Matrix { ld: k, transposed: true });
        Self {
            m: t,
            n,
            k,
            a,
            b,
            ldc: n,
            out: elem,
            elem,
            bias: false,
            accumulate: false,
            batch: Batch::ONE,
            factor: Factor::ONE,
        }
    }

    /// `dx_TK = dy_TN · w_NK`, all dense.
    pub fn linear_dgrad(t: usize, n: usize, k: usize, elem: Elem) -> Self {
        let (a, b) = (Matrix { ld: n, transposed: false }, Matrix { ld: k, transposed: false });
        Self {
            m: t,
            n: k,
            k: n,
            a,
            b,
            ldc: k,
            out: elem,
            elem,
            bias: false,
            accumulate: false,
            batch: Batch::ONE,
            factor: Factor::ONE,
        }
    }

    /// `dw_NK += dy_TNᵀ · x_TK`, dense, the gradient in f32.
    pub fn linear_wgrad(t: usize, n: usize, k: usize, elem: Elem) -> Self {
        let (a, b) = (Matrix { ld: n, transposed: true }, Matrix { ld: k, transposed: false });
        Self {
            m: n,
            n: k,
            k: t,
            a,
            b,
            ldc: k,
            out: Elem::F32,
            elem,
            bias: false,
            accumulate: true,
            batch: Batch::ONE,
            factor: Factor::ONE,
        }
    }

    /// As [`Products::product`], without a bias; nothing where an operation is only counted.
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// As there.
    pub(crate) unsafe fn run(
        &self,
        on: Option<&dyn Products>,
        a: Ptr,
        b: Ptr,
        c: Ptr,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        on.map_or(Ok(()), |on| unsafe { on.product(self, a, b, Ptr::NULL, c) })
    }

    /// Floating-point operations.
    pub fn flops(&self) -> u64 {
        2 * self.m as u64 * self.n as u64 * self.k as u64 * self.batch.count as u64
    }

    /// Bytes that it reads and writes, each operand once: C twice where it is added to.
    pub fn bytes(&self) -> u64 {
        let Product { m, n, k, elem, out, .. } = *self;
        let of_c = if self.accumulate { 2 } else { 1 };
        let bias = if self.bias { n } else { 0 };
        let one = (m * k + k * n) * elem.bytes() + (of_c * m * n + bias) * out.bytes();
        (one * self.batch.count) as u64
    }

    /// Elements from the first to the last of A, B and C, with what lies between their rows.
    pub fn spans(&self) -> [usize; 3] {
        let last = |x: Matrix, rows: usize, columns: usize| x.at(rows.max(1) - 1, columns.max(1) - 1) + 1;
        let c = Matrix { ld: self.ldc, transposed: false };
        let spans = [last(self.a, self.m, self.k), last(self.b, self.k, self.n), last(c, self.m, self.n)];
        let more = self.batch.count.max(1) - 1;
        [0, 1, 2].map(|i| spans[i] + more * self.batch.strides[i])
    }

    /// Its name in the file of algorithms: what differs has another.
    pub fn name(&self) -> String {
        let flag = |x: bool| u8::from(x);
        let Product { m, n, k, a, b, ldc, .. } = self;
        let (ta, tb) = (flag(a.transposed), flag(b.transposed));
        let (bias, add) = (flag(self.bias), flag(self.accumulate));
        let batch = match self.batch {
            Batch { count: 1, .. } => String::new(),
            Batch { count, strides: [a, b, c] } => format!(" batch{count} a{a} b{b} c{c}"),
        };
        format!(
            "{m}x{n}x{k} a{}t{ta} b{}t{tb} c{ldc} {}-{} bias{bias} add{add}{batch}",
            a.ld,
            b.ld,
            self.elem.name(),
            self.out.name()
        )
    }
}

/// Runs matrix products, in order with the launches of the same machine.
pub trait Products {
    /// Puts `C = A·B (+ bias) (+ C)`, as often as the batch says, behind what came before.
    ///
    /// # Safety
    /// Operands lie in this machine's memory with the extents of `product`, 16-byte aligned, until the product has run, and
    /// C overlaps nothing. `bias` is read only where the product has one. The 16 bytes in which a row of A or B ends may be
    /// read beyond its end.
    ///
    /// # Errors
    /// The shape has no algorithm, or the operands are refused.
    unsafe fn product(&self, product: &Product, a: Ptr, b: Ptr, bias: Ptr, c: Ptr) -> Result<(), GpuError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_that_differ_have_names_that_differ() {
        let one = Product::linear_forward(8, 16, 24, Elem::Bf16);
        let batch = |count, strides| Product { batch: Batch { count, strides }, ..one };
        let all = [
            one,
            batch(2, [1, 2, 3]),
            batch(3, [1, 2, 3]),
            batch(2, [2, 2, 3]),
            batch(2, [1, 3, 3]),
            batch(2, [1, 2, 4]),
        ];
        let names: std::collections::BTreeSet<String> = all.iter().map(Product::name).collect();
        assert_eq!(names.len(), all.len(), "{names:?}");
        assert_eq!(one.name(), "8x16x24 a24t0 b24t1 c16 bf16-bf16 bias0 add0");
        assert_eq!(batch(3, [200, 400, 128]).spans(), [592, 1184, 384]);
    }

    #[test]
    fn bytes_are_those_of_each_operand_once_and_of_a_sum_twice() {
        let one = Product::linear_forward(8, 16, 24, Elem::Bf16);
        assert_eq!(one.bytes(), 2 * (8 * 24 + 24 * 16 + 8 * 16));
        assert_eq!(Product { bias: true, ..one }.bytes(), one.bytes() + 2 * 16);
        assert_eq!(Product { batch: Batch { count: 3, strides: [0; 3] }, ..one }.bytes(), 3 * one.bytes());
        let sum = Product::linear_wgrad(8, 16, 24, Elem::Bf16);
        assert_eq!(sum.bytes(), 2 * (8 * 16 + 8 * 24) + 2 * 4 * 16 * 24);
    }
}
