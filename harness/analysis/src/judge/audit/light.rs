//! The speed-of-light bound: the fewest operations that a training can do, at the rate of the fastest matrix product measured in
//! the same session.

use chronibench_protocol::{record::ModelShape, spec::Method};

use super::{Audit, Audited, Check, Outcome};
use crate::{format::percent, metrics::metrics};

/// A probe of a second may miss the fastest that a machine can, above all on one that others use too.
const MARGIN: f64 = 2.0;

/// Fewest operations on tokens: two a multiply-add, forward and once or twice backward; the head only where there is a loss. Under LoRA
/// nothing flows below the first block.
fn least_flops(model: &ModelShape, method: &Method, real: u64, loss: u64) -> f64 {
    let per_weight = match method {
        Method::Full {} => 6.0,
        Method::Lora(_) => 4.0 * (1.0 - 0.5 / model.layers.max(1) as f64),
    };
    per_weight * (model.block_matmul_params as f64 * real as f64 + model.head_params as f64 * loss as f64)
}

pub(super) fn check(t: &Audited<'_>) -> Option<Check> {
    let peak = t.found.peak.as_ref()?;
    let m = metrics(t.log);
    if m.timed_s <= 0.0 {
        return None;
    }
    let tokens = m.timed_tokens;
    let flops = least_flops(&t.header.model, &t.header.spec.method, tokens.real, tokens.loss);
    let seen = flops / m.timed_s / 1e9;
    let figure = format!("{} of {:.0} GFLOP/s at least", percent(seen / peak.gflops), peak.gflops);
    Some(match seen <= MARGIN * peak.gflops {
        true => Check::new(Audit::SpeedOfLight, Outcome::Held, figure),
        false => Check::new(
            Audit::SpeedOfLight,
            Outcome::Failed,
            format!("expected no more than the machine can ({}), saw {figure}", peak.method),
        ),
    })
}
