//! The outcome of a gate for people: a table, and the comment on a pull request.

use super::{CaseGate, GateReport, GateVerdict, Program, change, percent};
use crate::{
    format::{bracketed, estimate, number, or_dash},
    report::markdown::{self, heading, plain},
};

/// Rows of a table: heading, then one a case.
pub fn table(report: &GateReport) -> Vec<Vec<String>> {
    let rows = report.cases.iter().map(row);
    std::iter::once(heading(&[
        "case",
        "verdict",
        "change [bounds]",
        &bracketed("median ratio", report.cases.iter().filter_map(|c| c.ratio.as_ref())),
        "pairs",
        "in words",
    ]))
    .chain(rows)
    .collect()
}

fn row(case: &CaseGate) -> Vec<String> {
    vec![
        case.case.clone(),
        case.verdict.name().into(),
        or_dash(case.looks.last(), change),
        or_dash(case.ratio.as_ref(), |r| estimate(r, |x| format!("{x:.4}"))),
        case.ratios.len().to_string(),
        case.words(),
    ]
}

/// The comment on a pull request, GitHub-flavoured.
pub fn comment(report: &GateReport) -> String {
    let (mark, said) = match (report.verdict, report.enforced) {
        (GateVerdict::Pass, _) => ("✅", "no loss of speed that matters"),
        (GateVerdict::Fail, true) => ("❌", "slower"),
        (GateVerdict::Fail, false) => ("⚠️", "slower, as far as this machine can tell"),
        (GateVerdict::Inconclusive, _) => ("❔", "inconclusive"),
        (GateVerdict::Invalid, _) => ("🚫", "the figures are not valid"),
    };
    let mut out = format!("### {mark} chronibench gate `{}`: {said}\n\n", report.scenario);
    out += &format!("{} against {}\n\n", name(&report.candidate), name(&report.baseline));
    let rows: Vec<Vec<String>> = table(report)
        .into_iter()
        .enumerate()
        .map(|(i, row)| if i == 0 { row } else { row.iter().map(|cell| plain(cell)).collect() })
        .collect();
    out += &markdown::table(&rows);
    let figures: Vec<String> = report.cases.iter().filter_map(figures).collect();
    if !figures.is_empty() {
        out += &format!("\n{}\n", figures.join("\n"));
    }
    out += &format!(
        "\n<sub>Paired processes in ABBA order; one-sided bounds of a sequential t test at α = {} over all looks and cases.",
        percent(report.alpha)
    );
    if !report.enforced {
        out += &format!(" **Advisory**: {}.", plain(&report.advisory.join("; ")));
    }
    out + "</sub>\n"
}

fn figures(case: &CaseGate) -> Option<String> {
    let (baseline, candidate) = (case.baseline.as_ref()?, case.candidate.as_ref()?);
    Some(format!(
        "- {}: {} → {} {}, losses of {} and more matter",
        plain(&case.case),
        estimate(baseline, number),
        estimate(candidate, number),
        case.unit,
        percent(case.min_effect)
    ))
}

fn name(program: &Program) -> String {
    let short = |hash: &String| hash.chars().take(12).collect::<String>();
    match program.revision.as_ref().map(short) {
        Some(revision) => format!("`{}` ({revision})", program.name),
        None => format!("`{}`", program.name),
    }
}
