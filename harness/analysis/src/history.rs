//! Figures of many runs, in time: where did the level change?

use std::collections::BTreeMap;

use chronibench_protocol::digest::sha256_hex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    changepoint::changes,
    format::number,
    summary::{CaseSummary, RunSummary},
};

/// Version of [`Entry`].
pub const SCHEMA: &str = "chronibench.history/1";

/// One line of a history: a case of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// [`SCHEMA`].
    pub schema: String,
    /// When the run began.
    pub at: String,
    /// Name of its folder.
    pub run: String,
    /// Hash over its evidence: the run is in a history once.
    pub head: String,
    /// Name of the scenario.
    pub scenario: String,
    /// Hash of what the case was to do: scenario and steps, model and data, its settings.
    pub work: String,
    /// Hash of the machine with its GPU: figures of two machines are two series.
    pub machine: String,
    /// Case.
    pub case: String,
    /// Revision of the program's sources, where known.
    pub revision: Option<String>,
    /// Median of real tokens/s.
    pub real_tokens_per_s: f64,
    /// Its interval.
    pub interval: Option<(f64, f64)>,
    /// VALID trials.
    pub trials: usize,
}

/// The entries of a run: one for each case that has a VALID trial. `work` is the hash of what a case was to do.
pub fn entries(
    run: &str,
    head: &str,
    work: &dyn Fn(&CaseSummary) -> String,
    summary: &RunSummary,
    environment: &Value,
) -> Vec<Entry> {
    let word = |pointer: &str| environment.pointer(pointer).and_then(Value::as_str).map(str::to_string);
    let mut gpu = environment.pointer("/gpu/devices").cloned().unwrap_or(Value::Null);
    // Older records do not tell the mode: one that changes nothing leaves the machine the one that it was.
    for device in gpu.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        if device.get("mig").is_some_and(|mode| mode != "enabled") {
            device.remove("mig");
        }
    }
    let machine = format!("{}{gpu}", environment.get("machine").unwrap_or(&Value::Null));
    let dirty = environment.pointer("/program/git/dirty").and_then(Value::as_bool).unwrap_or(false);
    let revision = word("/program/git/revision").map(|r| if dirty { r + "-dirty" } else { r });
    let entry = |c: &CaseSummary| {
        let e = c.real_tokens_per_s?;
        Some(Entry {
            schema: SCHEMA.into(),
            at: word("/started_at").unwrap_or_default(),
            run: run.into(),
            head: head.into(),
            scenario: summary.name.clone(),
            work: work(c),
            machine: sha256_hex(machine.as_bytes())[..16].into(),
            case: c.id.clone(),
            revision: revision.clone(),
            real_tokens_per_s: e.median,
            interval: e.interval,
            trials: c.valid,
        })
    };
    summary.cases.iter().filter_map(entry).collect()
}

/// Figures that can be compared: one case of one scenario on one machine, by time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Name of the scenario.
    pub scenario: String,
    /// Case.
    pub case: String,
    /// Hash of the machine.
    pub machine: String,
    /// Its entries.
    pub entries: Vec<Entry>,
    /// Where the level changed.
    pub steps: Vec<Step>,
}

/// A change of level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Index of the first entry of the new level.
    pub at: usize,
    /// Median before.
    pub before: f64,
    /// Median after.
    pub after: f64,
}

impl Series {
    /// The last change of level was to a slower one.
    pub fn is_slower(&self) -> bool {
        self.steps.last().is_some_and(|s| s.after < s.before)
    }
}

/// Sorts entries into series and looks for steps in each.
pub fn series(entries: &[Entry]) -> Vec<Series> {
    let mut by: BTreeMap<(String, String, String, String), Vec<Entry>> = BTreeMap::new();
    for e in entries {
        let key = (e.scenario.clone(), e.case.clone(), e.work.clone(), e.machine.clone());
        by.entry(key).or_default().push(e.clone());
    }
    let one =
        |((scenario, case, _, machine), mut entries): ((String, String, String, String), Vec<Entry>)| {
            entries.sort_by(|a, b| a.at.cmp(&b.at));
            let values: Vec<f64> = entries.iter().map(|e| e.real_tokens_per_s).collect();
            let steps =
                changes(&values).into_iter().map(|c| Step { at: c.at, before: c.before, after: c.after });
            Series { scenario, case, machine, steps: steps.collect(), entries }
        };
    by.into_iter().map(one).collect()
}

/// Rows for a terminal or a CSV file, the first of them the heading.
pub fn rows(all: &[Series]) -> Vec<Vec<String>> {
    let heading = ["scenario", "case", "machine", "at", "run", "revision", "real tokens/s", "step"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for s in all {
        for (i, e) in s.entries.iter().enumerate() {
            let step = s.steps.iter().find(|c| c.at == i);
            let step = step.map(|c| format!("{:+.1} %", (c.after / c.before - 1.0) * 100.0));
            let revision: String = e.revision.as_deref().unwrap_or("–").chars().take(12).collect();
            rows.push(vec![
                s.scenario.clone(),
                s.case.clone(),
                s.machine.chars().take(8).collect(),
                e.at.chars().take(19).collect(),
                e.run.clone(),
                revision,
                number(e.real_tokens_per_s),
                step.unwrap_or_default(),
            ]);
        }
    }
    rows
}
