//! What the harness looked up by itself.

use chronibench_protocol::record::Resolved;

use super::markdown::{code, heading, plain, table};
use crate::{
    gate::pairs,
    judge::audit::{Audit, Check, Outcome},
    summary::RunSummary,
};

/// What was not looked up by the harness itself, and why; `None` where all of it was.
pub(super) fn not_made(resolved: &Resolved, summary: &RunSummary) -> Option<String> {
    let checks = || summary.cases.iter().flat_map(|c| &c.audits);
    let made = |of: &dyn Fn(Audit) -> bool| checks().any(|c| c.outcome != Outcome::Skipped && of(c.audit));
    let of_trials = [Audit::Update, Audit::Replay, Audit::Probe, Audit::Isolation];
    let why = match &resolved.audit {
        _ if pairs::played(summary).is_some() => " (a gate makes none)",
        Some(asked) if asked.steps == 0 => " (audit.steps is 0)",
        Some(_) => "",
        None => " (the record asks for none)",
    };
    let audits = (!made(&|a| of_trials.contains(&a))).then(|| format!("audits: not made{why}"));
    let light = (!made(&|a| a == Audit::SpeedOfLight)).then(|| "speed of light: not measured".to_string());
    let told: Vec<String> = audits.into_iter().chain(light).collect();
    (!told.is_empty()).then(|| told.join(", "))
}

/// The audits of every case; nothing where none was made.
pub(super) fn audits(summary: &RunSummary) -> String {
    // Of the audits of events those alone that leave something open.
    let all = Audit::ALL.into_iter();
    let made: Vec<Audit> =
        all.filter(|a| summary.cases.iter().flat_map(|c| &c.audits).any(|c| c.audit == *a)).collect();
    if made.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = ["case"].into_iter().chain(made.iter().map(|a| a.name())).collect();
    let mut rows = vec![heading(&names)];
    for c in &summary.cases {
        let cell = |a: &Audit| c.audits.iter().find(|check| check.audit == *a).map_or("–".into(), shown);
        rows.push([code(&c.id)].into_iter().chain(made.iter().map(cell)).collect());
    }
    format!("## Audits\n\n{}\n{METHOD}\n", table(&rows))
}

fn shown(check: &Check) -> String {
    let figure = plain(&check.figure);
    match check.outcome {
        Outcome::Held => figure,
        Outcome::Unclear => format!("unclear: {figure}"),
        Outcome::Skipped => format!("not made: {figure}"),
        Outcome::Failed => format!("**failed**: {figure}"),
    }
}

const METHOD: &str = "Found by the harness itself, from files and its own clock. *Update*: rate of every tensor, inferred from the weights before and after the first step of an untimed audit trial. *Replay*: the same steps from the same weights by the reference. *Probe*: loss of samples that nobody trained on, by the harness's forward pass under the saved weights. *Isolation*: what the first document of a row does to the second. *Speed of light*: the fewest operations that the timed tokens need, of what the fastest matrix product of this session reached. [docs/audits.md](../../docs/audits.md) says what each proves and what it does not.";
