//! Arrays of a bench.

use rayon::prelude::*;

use super::Testbed;
use crate::{
    cases::normals,
    gpu::{Elem, GpuError, Ptr},
};

/// Elements after which an operand repeats: a prime number of packs, so that rows of any length differ.
const BLOCK: usize = 8 * 131_071;

/// A byte that makes every element a NaN which no arithmetic makes.
const POISON: u8 = 0xff;

/// What was put into an array: a block of values again and again, as the element type holds them.
#[derive(Clone, Debug, Default)]
pub struct Values {
    block: Vec<f32>,
}

impl Values {
    /// The value at `i`.
    pub fn at(&self, i: usize) -> f64 {
        f64::from(self.block[i % self.block.len()])
    }

    /// The `len` values from `start` on, in pieces.
    fn slices(&self, start: usize, len: usize) -> impl Iterator<Item = &[f32]> {
        let (block, mut at, mut left) = (self.block.as_slice(), start % self.block.len(), len);
        std::iter::from_fn(move || {
            let piece = &block[at..block.len().min(at + left)];
            (at, left) = (0, left - piece.len());
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// The `len` values from `start` on.
    pub fn narrow(&self, start: usize, len: usize) -> Vec<f32> {
        self.slices(start, len).flatten().copied().collect()
    }

    /// The `len` values from `start` on.
    pub fn elements(&self, start: usize, len: usize) -> Vec<f64> {
        self.slices(start, len).flatten().map(|x| f64::from(*x)).collect()
    }

    /// Row `t` of so many columns.
    pub fn row(&self, t: usize, columns: usize) -> Vec<f64> {
        self.elements(t * columns, columns)
    }

    /// `Σ x_i·v_i` of the values from `start` on.
    pub fn dot(&self, start: usize, v: &[f64]) -> f64 {
        self.slices(start, v.len()).flatten().zip(v).map(|(x, v)| f64::from(*x) * v).sum()
    }

    /// `Σ x_i²` of the first `len` values.
    pub fn square_sum(&self, len: usize) -> f64 {
        let squares = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let (whole, rest) = (len / self.block.len(), len % self.block.len());
        whole as f64 * squares(&self.block) + squares(&self.block[..rest])
    }

    /// `Σ c_t·row_t` over rows of so many columns.
    pub fn combine(&self, coefficients: &[f64], columns: usize) -> Vec<f64> {
        // Parts of fixed length, in order: the same bits whatever the number of threads.
        const PART: usize = 1024;
        let add = |part: usize, coefficients: &[f64]| {
            let mut sum = vec![0.0; columns];
            for (i, c) in coefficients.iter().enumerate() {
                let row = self.slices((part * PART + i) * columns, columns).flatten();
                sum.iter_mut().zip(row).for_each(|(s, x)| *s += c * f64::from(*x));
            }
            sum
        };
        let parts: Vec<Vec<f64>> =
            coefficients.par_chunks(PART).enumerate().map(|(part, c)| add(part, c)).collect();
        parts.into_iter().fold(vec![0.0; columns], |mut sum, part| {
            sum.iter_mut().zip(part).for_each(|(s, x)| *s += x);
            sum
        })
    }
}

/// An array on a test bed, and what was put there.
pub struct Operand<M> {
    memory: M,
    elem: Elem,
    len: usize,
    values: Values,
    /// What is written there again and again; nothing for an array that a kernel fills.
    block: Vec<u8>,
}

impl<M> Operand<M> {
    /// `len` values, standard normal times `scale`.
    ///
    /// # Errors
    /// There is no room.
    pub fn normal<B: Testbed<Memory = M>>(
        on: &B,
        elem: Elem,
        seed: u64,
        len: usize,
        scale: f32,
    ) -> Result<Self, GpuError> {
        let block: Vec<f32> = normals(seed, BLOCK.min(len)).into_iter().map(|v| v * scale).collect();
        Self::of(on, elem, len, &block)
    }

    /// `block` again and again.
    ///
    /// # Errors
    /// There is no room.
    pub fn of<B: Testbed<Memory = M>>(
        on: &B,
        elem: Elem,
        len: usize,
        block: &[f32],
    ) -> Result<Self, GpuError> {
        let encoded = elem.encode(block);
        let values = Values { block: elem.decode(&encoded) };
        Self::new(on, elem, len, values, encoded)
    }

    /// `bytes` bytes that are no elements: `block` again and again.
    ///
    /// # Errors
    /// There is no room.
    ///
    /// # Panics
    /// If there are no whole words.
    pub fn bytes_of<B: Testbed<Memory = M>>(on: &B, bytes: usize, block: &[u8]) -> Result<Self, GpuError> {
        assert!(bytes.is_multiple_of(4), "{bytes} bytes are no whole words");
        Self::new(on, Elem::F32, bytes / 4, Values::default(), block.to_vec())
    }

    /// Integers or other bytes that are no elements.
    ///
    /// # Errors
    /// There is no room.
    ///
    /// # Panics
    /// As [`bytes_of`](Self::bytes_of).
    pub fn raw<B: Testbed<Memory = M>>(on: &B, bytes: &[u8]) -> Result<Self, GpuError> {
        Self::bytes_of(on, bytes.len(), bytes)
    }

    /// Room for `len` values, poisoned.
    ///
    /// # Errors
    /// There is no room.
    pub fn output<B: Testbed<Memory = M>>(on: &B, elem: Elem, len: usize) -> Result<Self, GpuError> {
        Self::new(on, elem, len, Values::default(), Vec::new())
    }

    fn new<B: Testbed<Memory = M>>(
        on: &B,
        elem: Elem,
        len: usize,
        values: Values,
        block: Vec<u8>,
    ) -> Result<Self, GpuError> {
        let memory = on.alloc(len * elem.bytes())?;
        let operand = Self { memory, elem, len, values, block };
        operand.restore(on)?;
        Ok(operand)
    }

    /// Puts there what was there at first: the values, or the poison.
    ///
    /// # Errors
    /// As [`Testbed::fill`].
    pub fn restore<B: Testbed<Memory = M>>(&self, on: &B) -> Result<(), GpuError> {
        match self.is_output() {
            true => on.fill(&self.memory, POISON),
            false => on.repeat(&self.memory, &self.block),
        }
    }

    /// Whether it begins as nothing but poison.
    pub fn is_output(&self) -> bool {
        self.block.is_empty()
    }

    /// What was put there; nothing where it is an output or no elements.
    pub fn values(&self) -> &Values {
        &self.values
    }

    pub(super) fn memory(&self) -> &M {
        &self.memory
    }

    /// Where it begins.
    pub fn ptr<B: Testbed<Memory = M>>(&self, on: &B) -> Ptr {
        on.ptr(&self.memory)
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> usize {
        self.len * self.elem.bytes()
    }

    /// The `len` values that are there now from `start` on.
    ///
    /// # Errors
    /// A launch before failed.
    pub fn now<B: Testbed<Memory = M>>(
        &self,
        on: &B,
        start: usize,
        len: usize,
    ) -> Result<Vec<f32>, GpuError> {
        let size = self.elem.bytes();
        Ok(self.elem.decode(&on.read(&self.memory, start * size, len * size)?))
    }

    /// The `len` bytes that are there now from `start` on.
    ///
    /// # Errors
    /// A launch before failed.
    pub fn bytes_now<B: Testbed<Memory = M>>(
        &self,
        on: &B,
        start: usize,
        len: usize,
    ) -> Result<Vec<u8>, GpuError> {
        on.read(&self.memory, start, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_repeat_across_the_end_of_the_block() {
        let v = Values { block: vec![1.0, 2.0, 3.0] };
        assert_eq!(v.elements(2, 5), [3.0, 1.0, 2.0, 3.0, 1.0]);
        assert_eq!(v.narrow(1, 0), []);
        assert_eq!(v.at(7), 2.0);
        assert_eq!(v.dot(2, &[1.0, 10.0, 100.0]), 3.0 + 10.0 + 200.0);
        assert_eq!(v.square_sum(7), 2.0 * (1.0 + 4.0 + 9.0) + 1.0);
        // Rows (1, 2), (3, 1), (2, 3).
        assert_eq!(v.combine(&[1.0, 10.0, 100.0], 2), [231.0, 312.0]);
    }
}
