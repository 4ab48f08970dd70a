//! The matrix products of a step, run alone to see what share of the step they are.

use std::{sync::Mutex, time::Instant};

use candle_core::{Result, Tensor};

use crate::ops::FrozenLinear;

/// Does the model's matrix products, and notes them while a recording is on.
#[derive(Default)]
pub struct Products(Mutex<Option<Vec<Product>>>);

/// One product of a forward with the very operands it had.
pub struct Product {
    a: Tensor,
    b: Tensor,
    backward: Backward,
}

/// The products that autograd adds to a forward one.
#[derive(Clone, Copy, PartialEq)]
enum Backward {
    /// Nothing before it trains.
    None,
    /// `dA = dC·Bᵀ` only: `B` is frozen.
    Left,
    /// `dA = dC·Bᵀ` and `dB = Aᵀ·dC`.
    Both,
}

impl Products {
    /// `a · b`, batched over leading dimensions.
    pub fn matmul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let c = a.matmul(b)?;
        self.note(a, b, if c.track_op() { Backward::Both } else { Backward::None });
        Ok(c)
    }

    /// `x · Wᵀ`: `x` `[N, in]`, `W` `[out, in]`, trainable or not.
    pub fn linear(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        if weight.track_op() {
            return self.matmul(x, &weight.t()?);
        }
        let y = x.apply_op1(FrozenLinear(weight.clone()))?;
        self.note(x, &weight.t()?, if y.track_op() { Backward::Left } else { Backward::None });
        Ok(y)
    }

    fn note(&self, a: &Tensor, b: &Tensor, backward: Backward) {
        if let Some(list) = self.lock().as_mut() {
            list.push(Product { a: a.detach(), b: b.detach(), backward });
        }
    }

    /// Runs `forward` and returns the products it did.
    ///
    /// # Errors
    /// Those of `forward`.
    pub fn record<T, E>(
        &self,
        forward: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<Vec<Product>, E> {
        *self.lock() = Some(Vec::new());
        let outcome = forward();
        let products = self.lock().take().unwrap_or_default();
        outcome.map(|_| products)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Vec<Product>>> {
        // A list of noted products is whole after every push, so a poisoned lock still guards a good one.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Runs the products of a forward and those of its backward, in order and nothing else; returns nanoseconds and
/// floating-point operations. The products' own results stand in for the gradients, which have the same layout.
///
/// # Errors
/// candle refuses a product.
pub fn replay(products: &[Product]) -> Result<(u64, u64)> {
    let clock = Instant::now();
    let results = products.iter().map(|p| p.a.matmul(&p.b)).collect::<Result<Vec<_>>>()?;
    for (p, grad) in products.iter().zip(&results).rev() {
        if p.backward != Backward::None {
            grad.matmul(&p.b.t()?)?;
        }
        if p.backward == Backward::Both {
            p.a.t()?.matmul(grad)?;
        }
    }
    let ns = clock.elapsed().as_nanos() as u64;
    let flops = |(p, c): (&Product, &Tensor)| {
        let inner = p.a.dims()[p.a.rank() - 1] as u64;
        let times = match p.backward {
            Backward::None => 1,
            Backward::Left => 2,
            Backward::Both => 3,
        };
        2 * times * inner * c.elem_count() as u64
    };
    Ok((ns, products.iter().zip(&results).map(flops).sum()))
}
