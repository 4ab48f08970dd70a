//! The right weights moved, and no others.

use std::collections::BTreeMap;

use chronibench_protocol::record::{Presence, TensorChange, TrialHeader};

use super::{Reason, audit, rounds_updates_away};
use crate::trial::TrialLog;

pub(super) fn check(log: &TrialLog, header: &TrialHeader, out: &mut Vec<Reason>) {
    let Some(tensors) = log.weights.as_deref().filter(|t| !t.is_empty()) else {
        out.push(Reason::NoWeights);
        return;
    };
    let trained: BTreeMap<&str, &[usize]> =
        header.expected_trainable.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
    let is_trained = |t: &TensorChange| trained.contains_key(t.name.as_str());
    let names = |keep: &dyn Fn(&TensorChange) -> bool| -> Vec<String> {
        tensors.iter().filter(|t| keep(t)).map(|t| t.name.clone()).collect()
    };
    let in_both = |t: &TensorChange| t.present == Presence::Both;

    let found = |name: &str, shape: &[usize]| tensors.iter().any(|t| t.name == name && t.shape == shape);
    let missing: Vec<String> =
        trained.iter().filter(|(n, s)| !found(n, s)).map(|(n, _)| n.to_string()).collect();
    let excused = |t: &TensorChange| too_coarse(t, header) || audit::rounds_away(log, &t.name);
    let unchanged = names(&|t| is_trained(t) && stood_still(t) && !excused(t));
    let not_finite = names(&|t| t.present != Presence::Before && (!t.finite || !t.delta_norm.is_finite()));
    let frozen = names(&|t| !is_trained(t) && in_both(t) && t.changed != 0);
    let lost = names(&|t| t.present == Presence::Before);
    let appeared = names(&|t| t.present == Presence::After);

    let mut push = |names: Vec<String>, reason: fn(Vec<String>) -> Reason| {
        if !names.is_empty() {
            out.push(reason(names));
        }
    };
    push(missing, Reason::TrainedMissing);
    push(unchanged, Reason::Unchanged);
    push(not_finite, Reason::WeightsNotFinite);
    push(frozen, Reason::FrozenChanged);
    push(lost, Reason::Lost);
    push(appeared, Reason::Appeared);
}

/// Trained tensors that stood still because they could not move.
pub fn rounded_away(log: &TrialLog) -> Vec<String> {
    let (Some(header), Some(tensors)) = (log.header.as_deref(), log.weights.as_deref()) else {
        return Vec::new();
    };
    let trained = |t: &TensorChange| header.expected_trainable.iter().any(|e| e.name == t.name);
    let stuck = |t: &&TensorChange| trained(t) && stood_still(t) && too_coarse(t, header);
    tensors.iter().filter(stuck).map(|t| t.name.clone()).collect()
}

fn stood_still(t: &TensorChange) -> bool {
    t.present == Presence::Both && (t.delta_norm <= 0.0 || t.changed == 0)
}

/// A rival's weights are held in bf16 without masters, and no update of AdamW at this learning rate can reach the next value.
///
/// An update is at most lr · ((1-β1)/√(1-β2) + λ·|w|) (Kingma & Ba 2015, section 2.1, for (1-β1) > √(1-β2); at most lr · (1 + λ·|w|)
/// otherwise). A norm's weights are near 1, where bf16's values lie 0.004 apart: a rate of 2e-5 never moves them. The native arm
/// rounds stochastically, so that it has no such excuse.
fn too_coarse(t: &TensorChange, header: &TrialHeader) -> bool {
    let Some(least) = t.least_bf16_change.filter(|_| rounds_updates_away(header)) else { return false };
    let train = &header.spec.train;
    let moment = ((1.0 - train.adam_beta1) / (1.0 - train.adam_beta2).sqrt()).max(1.0);
    // The norm of a tensor is no less than any of its elements.
    let update = train.learning_rate * (moment + train.weight_decay * t.norm);
    update < least
}
