//! Findings as Markdown.

use super::{Finding, Ledger, Verdict};
use crate::{
    format::NONE,
    report::markdown::{code, heading, plain, table},
};

/// A relative tolerance in percent, as short as it can be said.
pub(super) fn tolerance(share: f64) -> String {
    format!("{} %", (share * 1e4).round() / 1e2)
}

/// The table of a whole ledger, with what is claimed and what decided.
pub fn markdown(ledger: &Ledger, findings: &[Finding]) -> String {
    let mut out = format!("# Claims: {}\n\nSource: {}.", plain(&ledger.title), plain(&ledger.source));
    if !ledger.conditions.is_empty() {
        out += &format!(" {}", plain(&ledger.conditions));
    }
    let count = |v: Verdict| findings.iter().filter(|f| f.verdict == v).count();
    let verdicts = [Verdict::Reproduced, Verdict::Refuted, Verdict::Inconsistent, Verdict::Untestable];
    let counts: Vec<String> = verdicts.iter().map(|v| format!("{} {}", count(*v), v.name())).collect();
    out += &format!("\n\n{} findings: {}.\n\n", findings.len(), counts.join(", "));
    let mut rows = vec![heading(&["id", "claim", "figures", "verdict", "run"])];
    rows.extend(findings.iter().map(row));
    out += &table(&rows);
    out += "\nREPRODUCED: the figures bear the claim out. REFUTED: measured, and they do not. INCONSISTENT: published numbers \
            contradict one another. UNTESTABLE: nothing here can decide it, or the interval holds the bound. A claim of a kernel \
            without a shape is taken at the forward shape that serves it best.\n";
    let conditions: Vec<String> = ledger
        .claims
        .iter()
        .filter(|c| !c.conditions.is_empty())
        .map(|c| format!("- **{}**: {}\n", plain(&c.id), plain(&c.conditions)))
        .collect();
    if conditions.is_empty() { out } else { format!("{out}\n## Conditions\n\n{}", conditions.concat()) }
}

fn row(f: &Finding) -> Vec<String> {
    let id = match &f.part {
        Some(part) => format!("{} {}", plain(&f.id), code(part)),
        None => plain(&f.id),
    };
    let verdict = match f.expected {
        Some(expected) if expected != f.verdict => {
            format!("**{}**, expected {}", plain(&f.verdict_words()), expected.name())
        }
        None => format!("**{}**, not expected", plain(&f.verdict_words())),
        Some(_) => plain(&f.verdict_words()),
    };
    vec![id, plain(&f.quote), plain(&f.figures), verdict, f.run.as_ref().map_or(NONE.into(), |r| plain(r))]
}
