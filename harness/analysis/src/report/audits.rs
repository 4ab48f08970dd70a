//! What the harness looked up by itself.

use super::markdown::{code, heading, plain, table};
use crate::{
    judge::audit::{Audit, Check, Outcome},
    summary::RunSummary,
};

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
