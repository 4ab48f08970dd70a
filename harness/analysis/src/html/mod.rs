//! `report.html`: the report of `report.md` in one file, with plots that answer to the pointer.
//!
//! The text is the Markdown's, so that the two cannot say different things, and every plot has its figures in a table of the
//! page. Style, script and data are inside: nothing is fetched. Text of unknown origin is escaped on the way in, and
//! whatever raw HTML the Markdown holds besides the harness's own is shown as text.

mod charts;
mod page;

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
    page::page(markdown, &charts::charts(resolved, summary, logs), plots)
}

/// The page of a report without plots: of kernels, of claims.
pub fn plain_html(markdown: &str) -> String {
    page::page(markdown, &[], &[])
}
