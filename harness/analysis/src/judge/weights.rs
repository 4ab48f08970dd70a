//! The right weights moved, and no others.

use std::collections::BTreeMap;

use chronibench_protocol::record::{Presence, TensorChange, TrialHeader};

use super::Reason;
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
    let unchanged = names(&|t| is_trained(t) && in_both(t) && (t.delta_norm <= 0.0 || t.changed == 0));
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
