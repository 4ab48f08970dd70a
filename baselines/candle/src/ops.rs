//! Operations whose gradients flow, where candle's own fused ones have no backward.

use candle_core::{
    CpuStorage, CustomOp1, D, Layout, Result, Shape, Storage, Tensor, backend::BackendStorage, bail,
};

/// `x · gain / sqrt(mean(x²) + eps)` over the last dimension; any leading shape.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    let inv_rms = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    x.broadcast_mul(&inv_rms)?.broadcast_mul(gain)
}

/// Softmax over the last dimension.
///
/// The maximum is a constant to autograd: the result does not depend on it, so its gradient is zero by algebra and
/// only costs time. One reciprocal a row replaces a division an element, forward and backward.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&row_max(x)?)?.exp()?;
    e.broadcast_mul(&e.sum_keepdim(D::Minus1)?.recip()?)
}

/// `log Σ exp` over the last dimension, which stays with size 1.
pub fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    let max = row_max(x)?;
    x.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?.log()? + max
}

fn row_max(x: &Tensor) -> Result<Tensor> {
    x.detach().max_keepdim(D::Minus1)
}

/// Rotates the pairs `(i, i + K/2)` of `x` `[.., K]`; `cos` and `sin` broadcast to `x`'s shape.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (lo, hi) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let rotated = Tensor::cat(&[&hi.neg()?, &lo], D::Minus1)?;
    (x * cos)? + (rotated * sin)?
}

/// `x · Wᵀ` for a weight that does not train: `x` `[N, in]`, `W` `[out, in]`.
///
/// candle's own product computes the gradient of both factors whether anyone wants them or not; eager frameworks that
/// know frozen tensors spend two products on such a layer, not three.
pub struct FrozenLinear(pub Tensor);

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, inner) = layout.shape().dims2()?;
        let (storage, weight_layout) = self.0.storage_and_layout();
        let (out, weight_inner) = weight_layout.shape().dims2()?;
        let Storage::Cpu(weight) = &*storage else { bail!("the weight is not on the CPU") };
        if inner != weight_inner {
            bail!("cannot multiply [{n}, {inner}] by the transpose of [{out}, {weight_inner}]");
        }
        let y = x.matmul(weight, (1, n, out, inner), layout, &weight_layout.transpose(0, 1)?)?;
        Ok((y, Shape::from((n, out))))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.matmul(&self.0).map(Some)
    }
}
