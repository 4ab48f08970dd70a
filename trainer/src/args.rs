//! Settings of the optimizer that make no sense.

use chronibench_protocol::spec::TrainArgs;

use crate::error::Error;

/// Checks every number's range.
///
/// # Errors
/// One is out of it; the first is named.
pub fn check(a: &TrainArgs) -> Result<(), Error> {
    // As they are used: in f32.
    let in_unit = |v: f64| v >= 0.0 && (v as f32) < 1.0;
    let rules = [
        ("learning_rate", a.learning_rate >= 0.0 && a.learning_rate.is_finite(), "0 or more"),
        ("weight_decay", a.weight_decay >= 0.0 && a.weight_decay.is_finite(), "0 or more"),
        ("adam_beta1", in_unit(a.adam_beta1), "in [0, 1), and not so near 1 that it is 1 in f32"),
        ("adam_beta2", in_unit(a.adam_beta2), "in [0, 1), and not so near 1 that it is 1 in f32"),
        ("adam_epsilon", (a.adam_epsilon as f32).is_normal() && a.adam_epsilon > 0.0, "from 1.2e-38 to 3e38"),
        ("max_grad_norm", a.max_grad_norm >= 0.0, "0 (off) or more"),
        ("label_smoothing_factor", in_unit(a.label_smoothing_factor), "in [0, 1)"),
        ("z_loss", a.z_loss >= 0.0 && a.z_loss.is_finite(), "0 or more"),
        ("loss_chunk_rows", a.loss_chunk_rows != Some(0), "1 or more"),
    ];
    match rules.iter().find(|(_, ok, _)| !ok) {
        Some((name, _, range)) => Err(Error::new(format!("{name} is out of range"), format!("train.{name}"))
            .hint(format!("give a number {range}"))),
        None => Ok(()),
    }
}
