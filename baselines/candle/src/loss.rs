//! Cross-entropy over the full logits, as eager frameworks compute it.

use candle_core::{D, Result, Tensor};
use chronibench_protocol::spec::TrainArgs;

use crate::{batch::Batch, ops::log_sum_exp};

/// Sum of the losses of all targets in `batch`, a scalar; `logits` `[N, V]`.
///
/// With `ε = label_smoothing_factor`, a target `t` costs `lse − (1 − ε)·z_t − ε·mean(z)`, which is PyTorch's
/// `cross_entropy(label_smoothing=ε)`, plus `z_loss · lse²` (PaLM, arXiv 2204.02311, section 5). Slots without a target
/// are computed and then weighted with 0, as `ignore_index` does.
///
/// # Errors
/// candle refuses an operation.
pub fn cross_entropy(logits: &Tensor, batch: &Batch, args: &TrainArgs) -> Result<Tensor> {
    let smoothing = args.label_smoothing_factor;
    let lse = log_sum_exp(logits)?;
    let target = logits.gather(&batch.targets, D::Minus1)?;
    let mut loss = (&lse - (target * (1.0 - smoothing))?)?;
    if smoothing > 0.0 {
        loss = (loss - (logits.mean_keepdim(D::Minus1)? * smoothing)?)?;
    }
    if args.z_loss > 0.0 {
        loss = (loss + (lse.sqr()? * args.z_loss)?)?;
    }
    (loss * &batch.weights)?.sum_all()
}
