//! What a scenario asks of a rival against what the rival says it can do.

use std::collections::BTreeMap;

use chronibench_protocol::{
    record::Case,
    spec::{Method, PrecisionArgs},
};
use serde_json::Value;

use super::{
    located::Word,
    raw::{Raw, RawArm, Runner},
    source::{Source, suggestion},
};
use crate::{
    env::Rival,
    error::{Error, Exit, Result},
};

/// Options of an arm, defaults filled in; empty for an arm that is no rival.
///
/// # Errors
/// Options for an arm that has none, a device or a number format that the rival does not have.
pub fn options(arm: &Word, def: &RawArm, raw: &Raw, source: &Source) -> Result<BTreeMap<String, Value>> {
    let Some(rival) = Rival::named(def.runner.name()) else {
        return match def.options.0.first() {
            None => Ok(BTreeMap::new()),
            Some((word, _)) => {
                let what = format!("runner '{}' has no options of its own", def.runner.name());
                Err(source.error(Exit::Usage, word.place, what).hint("take `options` out"))
            }
        };
    };
    let known = rival.describe();
    let kind = raw.device.as_ref().map_or("cpu", |d| d.as_str().split(':').next().unwrap_or("cpu"));
    if !known.devices.iter().any(|d| d == kind) {
        let what = format!("runner '{}' does not run on {kind}", rival.name);
        let hint = format!("it runs on {}; set `device`, or take the arm out", known.devices.join(" and "));
        return Err(source.error(Exit::Usage, arm.place, what).hint(hint));
    }
    for (name, value) in asked(&def.precision) {
        let formats = known.precision.get(&name).cloned().unwrap_or_default();
        if !formats.contains(&value) {
            let what = format!("runner '{}' has no {name} '{value}'", rival.name);
            let hint = match formats.is_empty() {
                true => format!("take `precision.{name}` out"),
                false => format!("one of {}", formats.join(", ")),
            };
            return Err(source.error(Exit::Usage, arm.place, what).hint(hint));
        }
    }
    rival.resolve_options(&def.options, source)
}

/// A case against the methods and the packing that its rival has.
///
/// # Errors
/// The rival cannot train so.
pub fn check_case(case: &Case, source: &Source) -> Result<()> {
    let Some(rival) = Rival::named(&case.runner) else { return Ok(()) };
    let known = rival.describe();
    let method = if matches!(case.method, Method::Full {}) { "full" } else { "lora" };
    let asked = [("method", method, &known.methods), ("packing", case.batch.packing.name(), &known.packing)];
    match asked.into_iter().find(|(_, value, known)| !known.iter().any(|k| k == value)) {
        None => Ok(()),
        Some((kind, value, known)) => {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let what = format!("runner '{}' has no {kind} '{value}'", rival.name);
            Err(Error::usage(what, format!("{}: case {}", source.name, case.id))
                .hint(format!("{}; `exclude` leaves the case out", suggestion(value, &known))))
        }
    }
}

/// The number formats that an arm is asked for, by name.
fn asked(precision: &PrecisionArgs) -> Vec<(String, String)> {
    match serde_json::to_value(precision) {
        Ok(Value::Object(fields)) => {
            fields.into_iter().filter_map(|(k, v)| Some((k, v.as_str()?.to_string()))).collect()
        }
        _ => Vec::new(),
    }
}

/// A runner that takes `precision`.
pub fn has_precision(runner: Runner) -> bool {
    Rival::named(runner.name()).is_some_and(|r| !r.describe().precision.is_empty())
}
