//! `report.html`: the report of `report.md` in one file, with plots that answer to the pointer.
//!
//! The text is the Markdown's, so that the two cannot say different things, and every plot has its figures in a table of the
//! page. Style, script and data are inside: nothing is fetched. Text of unknown origin is escaped on the way in, and
//! whatever raw HTML the Markdown holds besides the harness's own is shown as text.

mod charts;
mod page;

use std::collections::BTreeMap;

use chronibench_protocol::record::Resolved;

use crate::{summary::RunSummary, trial::TrialLog};

/// The page of a run of training. `markdown` is its `report.md`, `plots` its drawn plots by file name.
pub fn report_html(
    resolved: &Resolved,
    summary: &RunSummary,
    logs: &[TrialLog],
    markdown: &str,
    plots: &[(String, String)],
) -> String {
    let charts = charts::charts(resolved, summary, logs);
    let after = "](plots/throughput.svg)\n";
    let mut text = markdown.to_string();
    if charts.contains_key(charts::SHAPES) {
        text = text.replacen(after, &format!("{after}\n![Throughput by tokens a step](plots/{})\n", charts::SHAPES), 1);
    }
    page::page(&text, &charts, plots)
}

/// The page of a report without plots.
pub fn plain_html(markdown: &str) -> String {
    page::page(markdown, &BTreeMap::new(), &[])
}
