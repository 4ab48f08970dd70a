//! What a case was asked to do, setting by setting: two cases of one name may be two things, in two runs.

use std::collections::BTreeMap;

use chronibench_protocol::record::Case;
use serde_json::Value;

/// Fields of a case that are names, or say what it is for.
const NAMES: [&str; 5] = ["id", "arm", "axes", "ablation", "sweep"];

/// A setting that two cases were not asked alike: its name, and both values, `null` for its default.
pub type Difference = (String, Value, Value);

/// The settings of a case under the names that `resolved.yaml` has for them, `train.learning_rate`; those at a default that it leaves
/// out are not among them.
pub fn asked(case: &Case) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    if let Value::Object(fields) = serde_json::to_value(case).expect("a case is plain data") {
        for (name, value) in fields.iter().filter(|(name, _)| !NAMES.contains(&name.as_str())) {
            leaves(name, value, &mut all);
        }
    }
    all
}

fn leaves(name: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, field)| leaves(&format!("{name}.{key}"), field, out));
        }
        Value::Null => {}
        leaf => _ = out.insert(name.to_string(), leaf.clone()),
    }
}

/// The settings that two cases were not asked alike.
pub fn differences(a: &BTreeMap<String, Value>, b: &BTreeMap<String, Value>) -> Vec<Difference> {
    let of = |all: &BTreeMap<String, Value>, name: &str| all.get(name).cloned().unwrap_or(Value::Null);
    let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let both = names.into_iter().map(|name| (name.clone(), of(a, name), of(b, name)));
    both.filter(|(_, x, y)| x != y).collect()
}

/// Why two cases are not comparable whatever their figures: methods that train other parameters.
pub fn other_method(differences: &[Difference]) -> Option<String> {
    let words = |(name, a, b): &Difference| format!("{name} is {a} and {b}");
    // Settings of LoRA have no counterpart in full fine-tuning: the type says it all.
    if let Some(other) = differences.iter().find(|(name, ..)| name == "method.type") {
        return Some(words(other));
    }
    let method: Vec<String> = differences.iter().filter(|d| is_of_method(d)).map(words).collect();
    (!method.is_empty()).then(|| method.join(", "))
}

/// The setting is one of the method.
pub fn is_of_method((name, ..): &Difference) -> bool {
    name.starts_with("method.")
}
