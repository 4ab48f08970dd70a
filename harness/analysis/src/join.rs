//! Several sittings joined through an arm that ran in each of them, the anchor: its drift between them is seen, and every other figure
//! is a ratio to the anchor of its own sitting.

use std::collections::BTreeMap;

use chronibench_protocol::record::Resolved;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    format::{bracketed, estimate, number, or_dash, times, verdict},
    report::markdown::{code, heading, plain, table},
    rounds::{self, valid},
    stats::{Estimate, median_ratio},
    summary::{CaseSummary, RunSummary},
};

/// Version of [`Joined`].
pub const SCHEMA: &str = "chronibench.joined/1";

/// What must be equal between sittings unless it is declared: its name, and where `environment.json` has it.
pub const ENVIRONMENT: [(&str, &str); 5] = [
    ("gpu", "/gpu/devices/0/name"),
    ("driver", "/gpu/driver"),
    ("binary", "/program/binary_sha256"),
    ("cpu", "/machine/cpu"),
    ("cores", "/machine/usable_cores"),
];

/// What `environment.json` has at a pointer of [`ENVIRONMENT`].
pub(crate) fn entry(environment: &Value, at: &str) -> Value {
    environment.pointer(at).cloned().unwrap_or(Value::Null)
}

/// One run.
#[derive(Clone, Debug)]
pub struct Sitting {
    /// Name of its folder.
    pub name: String,
    /// Its scenario.
    pub resolved: Resolved,
    /// Its figures.
    pub summary: RunSummary,
    /// Its machine.
    pub environment: Value,
}

/// Sittings joined.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    /// [`SCHEMA`].
    pub schema: String,
    /// Arm that ran in each.
    pub anchor: String,
    /// Names of the sittings, in the order given.
    pub sittings: Vec<String>,
    /// What of the environment differs between them, declared by the user: name → value by sitting.
    pub differences: BTreeMap<String, Vec<Value>>,
    /// The anchor's cases in every sitting.
    pub drift: Vec<Drift>,
    /// Every other case of every sitting.
    pub rows: Vec<Row>,
}

/// One case of the anchor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Case id.
    pub case: String,
    /// Real tokens/s by sitting; `None` where the case has no VALID trial, or is not part of it.
    pub rates: Vec<Option<Estimate>>,
    /// Against the first sitting that has it, by sitting.
    pub ratios: Vec<Option<Estimate>>,
}

/// A case against the anchor of its own sitting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Sitting.
    pub sitting: String,
    /// Case id.
    pub case: String,
    /// The anchor's case with the same axes.
    pub anchor: String,
    /// Real tokens/s.
    pub real_tokens_per_s: Option<Estimate>,
    /// Real tokens/s over the anchor's, paired by round.
    pub ratio: Option<Estimate>,
    /// Verdict on its trials.
    pub verdict: Option<chronibench_protocol::record::Verdict>,
}

/// Joins sittings through `anchor`. `declared` names entries of [`ENVIRONMENT`] that may differ.
///
/// # Errors
/// Everything that forbids it: fewer than two sittings, a sitting without the anchor, an anchor that did other work, environments that
/// differ undeclared.
pub fn join(anchor: &str, sittings: &[Sitting], declared: &[String]) -> Result<Joined, Vec<String>> {
    let mut wrong = Vec::new();
    if sittings.len() < 2 {
        wrong.push("a join needs two sittings or more".to_string());
    }
    for sitting in sittings {
        if !anchors(sitting, anchor).any(|c| c.valid > 0) {
            wrong.push(format!("{} has no valid trial of the anchor '{anchor}'", sitting.name));
        }
    }
    for name in declared.iter().filter(|d| !ENVIRONMENT.iter().any(|(name, _)| name == d)) {
        let known: Vec<&str> = ENVIRONMENT.iter().map(|(name, _)| *name).collect();
        wrong.push(format!("'{name}' cannot be declared; what can: {}", known.join(", ")));
    }
    wrong.extend(other_work(anchor, sittings));
    let differences = differences(sittings);
    for (name, values) in differences.iter().filter(|(name, _)| !declared.contains(name)) {
        let values: Vec<String> = values.iter().map(Value::to_string).collect();
        wrong.push(format!("{name} differs between the sittings and is not declared: {}", values.join(", ")));
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    Ok(Joined {
        schema: SCHEMA.into(),
        anchor: anchor.into(),
        sittings: sittings.iter().map(|s| s.name.clone()).collect(),
        differences,
        drift: drift(anchor, sittings),
        rows: sittings.iter().flat_map(|s| rows(anchor, s)).collect(),
    })
}

fn anchors<'a>(sitting: &'a Sitting, anchor: &'a str) -> impl Iterator<Item = &'a CaseSummary> {
    // A variant with a seam off, or a cell of a sweep, is another program.
    sitting.summary.cases.iter().filter(move |c| c.arm == anchor && c.id.starts_with(&format!("{anchor}/")))
}

fn differences(sittings: &[Sitting]) -> BTreeMap<String, Vec<Value>> {
    let each = ENVIRONMENT.iter().map(|(name, at)| {
        (name.to_string(), sittings.iter().map(|s| entry(&s.environment, at)).collect::<Vec<_>>())
    });
    each.filter(|(_, values)| values.iter().any(|v| *v != values[0])).collect()
}

/// The anchor must have done the same work wherever it has a case of one name: model, data, steps, settings.
fn other_work(anchor: &str, sittings: &[Sitting]) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some((first, rest)) = sittings.split_first() else { return wrong };
    for other in rest {
        let shared = anchors(other, anchor).filter(|c| anchors(first, anchor).any(|f| f.id == c.id));
        let shared: Vec<&str> = shared.map(|c| c.id.as_str()).collect();
        if shared.is_empty() {
            wrong.push(format!("{} and {} share no case of '{anchor}'", first.name, other.name));
        }
        let (a, b) = (&first.resolved, &other.resolved);
        let case = |r: &Resolved, id: &str| r.cases.iter().find(|c| c.id == id).cloned();
        let same_inputs = a.model == b.model && a.data == b.data && a.measure == b.measure;
        for id in shared.iter().filter(|id| !same_inputs || case(a, id) != case(b, id)) {
            wrong.push(format!("{id} is not the same work in {} and {}", first.name, other.name));
        }
    }
    wrong
}

fn rates(case: &CaseSummary) -> Vec<f64> {
    valid(case).filter_map(|t| t.metrics.real_tokens_per_s).collect()
}

fn drift(anchor: &str, sittings: &[Sitting]) -> Vec<Drift> {
    let mut ids: Vec<&str> = Vec::new();
    for case in sittings.iter().flat_map(|s| anchors(s, anchor)) {
        if !ids.contains(&case.id.as_str()) {
            ids.push(&case.id);
        }
    }
    let of = |id: &str| {
        let own: Vec<Option<&CaseSummary>> =
            sittings.iter().map(|s| anchors(s, anchor).find(|c| c.id == id && c.valid > 0)).collect();
        let first = own.iter().flatten().next().map(|c| rates(c)).unwrap_or_default();
        Drift {
            case: id.to_string(),
            rates: own.iter().map(|c| c.and_then(|c| c.real_tokens_per_s)).collect(),
            ratios: own.iter().map(|c| c.and_then(|c| median_ratio(&rates(c), &first))).collect(),
        }
    };
    ids.into_iter().map(of).collect()
}

fn rows(anchor: &str, sitting: &Sitting) -> Vec<Row> {
    let others = sitting.summary.cases.iter().filter(|c| !c.id.starts_with(&format!("{anchor}/")));
    let row = |case: &CaseSummary| {
        let beside = anchors(sitting, anchor).find(|a| a.axes == case.axes)?;
        Some(Row {
            sitting: sitting.name.clone(),
            case: case.id.clone(),
            anchor: beside.id.clone(),
            real_tokens_per_s: case.real_tokens_per_s,
            ratio: rounds::ratio(case, beside, &|t| t.metrics.real_tokens_per_s),
            verdict: case.verdict,
        })
    };
    others.filter_map(row).collect()
}

/// The report of a join.
pub fn report_md(joined: &Joined) -> String {
    let sittings: Vec<String> = joined.sittings.iter().map(|s| code(s)).collect();
    let mut out = format!(
        "# {} sittings joined through {}\n\n{}\n\nEvery ratio is to the anchor of its own sitting, paired by round. Ratios of different \
         sittings may be set side by side as far as the anchor stayed where it was; settings and losses are compared in the report of \
         each sitting.\n",
        joined.sittings.len(),
        code(&joined.anchor),
        sittings.join(", ")
    );
    let rate = |e: &Option<Estimate>| or_dash(e.as_ref(), |e| estimate(e, number));
    let mut rows = vec![[vec!["anchor".to_string()], sittings.clone()].concat()];
    for d in &joined.drift {
        let cell = |(rate_now, ratio): (&Option<Estimate>, &Option<Estimate>)| match ratio {
            Some(r) => format!("{} ({})", rate(rate_now), times(r.median)),
            None => rate(rate_now),
        };
        rows.push([vec![code(&d.case)], d.rates.iter().zip(&d.ratios).map(cell).collect()].concat());
    }
    out += &format!(
        "\n## Drift of the anchor\n\nReal tokens a second; in brackets against the first sitting.\n\n{}",
        table(&rows)
    );
    let rates = bracketed("real tokens/s", joined.rows.iter().filter_map(|r| r.real_tokens_per_s.as_ref()));
    let ratios = bracketed("over the anchor", joined.rows.iter().filter_map(|r| r.ratio.as_ref()));
    let mut rows = vec![heading(&["case", "sitting", &rates, &ratios, "anchor", "verdict"])];
    for r in &joined.rows {
        rows.push(vec![
            code(&r.case),
            code(&r.sitting),
            rate(&r.real_tokens_per_s),
            or_dash(r.ratio.as_ref(), |e| estimate(e, times)),
            code(&r.anchor),
            verdict(r.verdict).replace('_', "\\_"),
        ]);
    }
    out += &format!("\n## Cases\n\n{}", table(&rows));
    if !joined.differences.is_empty() {
        let mut rows = vec![[vec!["declared difference".to_string()], sittings].concat()];
        for (name, values) in &joined.differences {
            let shown = values.iter().map(|v| plain(v.as_str().unwrap_or(&v.to_string())));
            rows.push([vec![plain(name)], shown.collect()].concat());
        }
        out += &format!("\n## Environments\n\n{}", table(&rows));
    }
    out
}
