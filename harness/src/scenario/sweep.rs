//! Sweeps: an arm with every combination of its options.

use std::collections::BTreeMap;

use chronibench_protocol::record::SweepCell;

use super::{
    located::Ordered,
    raw::{MockScript, RawArm, RawOptions, Settings},
    settings::object,
};

/// An arm with one combination of its sweep's values; the arm as it is, without a sweep.
#[derive(Clone, Debug)]
pub struct Swept<'a> {
    /// Sweep axis → value.
    values: Vec<(&'a str, &'a str, &'a RawOptions)>,
    /// The arm with what the values change.
    pub def: RawArm,
}

/// Every combination, the last axis changing fastest.
pub fn expand(def: &RawArm) -> Vec<Swept<'_>> {
    let mut all = vec![Swept { values: Vec::new(), def: def.clone() }];
    for (axis, values) in &def.sweep.0 {
        all = all
            .iter()
            .flat_map(|head| values.0.iter().map(|(name, o)| head.with(axis.as_str(), name.as_str(), o)))
            .collect();
    }
    all
}

impl<'a> Swept<'a> {
    fn with(&self, axis: &'a str, name: &'a str, options: &'a RawOptions) -> Self {
        let mut next = self.clone();
        next.values.push((axis, name, options));
        let def = &mut next.def;
        over(&mut def.kernels, &options.kernels);
        over(&mut def.options, &options.options);
        def.precision.dtype = options.precision.dtype.or(def.precision.dtype);
        def.precision.states = options.precision.states.or(def.precision.states);
        def.recompute = options.recompute.unwrap_or(def.recompute);
        def.offload = options.offload.unwrap_or(def.offload);
        def.mock = options.mock.clone().or(def.mock.take());
        next
    }

    /// Whether it is a cell of this value of a sweep's axis.
    pub fn has(&self, axis: &str, value: &str) -> bool {
        self.values.iter().any(|(a, v, _)| *a == axis && *v == value)
    }

    /// `arm`, or `arm@value,value`.
    pub fn name(&self, arm: &str) -> String {
        if self.values.is_empty() {
            return arm.to_string();
        }
        let values: Vec<&str> = self.values.iter().map(|(_, value, _)| *value).collect();
        format!("{arm}@{}", values.join(","))
    }

    /// Settings that go over the matrix's.
    pub fn settings(&self) -> Vec<&'a Settings> {
        self.values.iter().map(|(_, _, o)| &o.settings).collect()
    }

    /// The record of the cell; `of` is the id of its case without a sweep.
    pub fn cell(&self, of: String) -> Option<SweepCell> {
        (!self.values.is_empty()).then(|| SweepCell {
            of,
            values: self
                .values
                .iter()
                .map(|(axis, value, _)| (axis.to_string(), value.to_string()))
                .collect(),
            sets: self.sets(),
        })
    }

    /// Names of what the cell decides, as comparisons have them.
    fn sets(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (_, _, o) in &self.values {
            names.extend(object(&o.settings).into_iter().map(|(key, _)| match key.as_str() {
                "per_device_train_batch_size" | "gradient_accumulation_steps" => "packing".to_string(),
                _ => key,
            }));
            let given = [
                ("kernels", !o.kernels.0.is_empty()),
                ("options", !o.options.0.is_empty()),
                ("precision", !o.precision.is_default()),
                ("recompute", o.recompute.is_some()),
                ("offload", o.offload.is_some()),
            ];
            names.extend(given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name.to_string()));
        }
        names.sort();
        names.dedup();
        names
    }
}

/// Entries of `more` in place of those of the same name.
fn over<T: Clone>(entries: &mut Ordered<T>, more: &Ordered<T>) {
    for (name, value) in &more.0 {
        entries.0.retain(|(known, _)| known.as_str() != name.as_str());
        entries.0.push((name.clone(), value.clone()));
    }
}

/// Arm, with its sweep's values → script, for mock arms.
pub fn scripts(arms: &Ordered<RawArm>) -> BTreeMap<String, MockScript> {
    let mut all = BTreeMap::new();
    for (arm, def) in &arms.0 {
        let named = |s: Swept<'_>| (s.name(arm.as_str()), s.def.mock.clone().unwrap_or_default());
        all.extend(expand(def).into_iter().map(named));
    }
    all
}
