//! What the script draws, as data.

mod bars;
mod lines;

use chronibench_protocol::record::Resolved;
use serde::Serialize;

use crate::{
    format::interval_name, report::plots::arms, stats::Estimate, summary::RunSummary, trial::TrialLog,
};

/// One chart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Chart {
    /// Name in the page; that of the drawn plot that it stands for, where there is one.
    #[serde(skip)]
    pub(super) id: &'static str,
    /// The section at whose end a chart without a drawn plot stands.
    #[serde(skip)]
    pub(super) section: &'static str,
    pub(super) kind: Kind,
    pub(super) title: String,
    /// What the values are.
    pub(super) y: &'static str,
    pub(super) unit: &'static str,
    /// Where bars begin.
    pub(super) origin: f64,
    /// Whether the vertical axis begins at zero.
    pub(super) zero: bool,
    /// Ways to see the horizontal axis.
    pub(super) axes: Vec<&'static str>,
    pub(super) series: Vec<Series>,
}

/// How a chart is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Bars,
    Lines,
    Points,
}

/// What has one colour.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Series {
    name: String,
    colour: usize,
    dash: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bars: Vec<Bar>,
    /// Places on each horizontal axis.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    x: Vec<Vec<f64>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    y: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Bar {
    label: String,
    /// Place from the top.
    row: usize,
    value: f64,
    /// Where it begins, if not at the chart's origin.
    from: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    /// What these two are.
    interval: Option<String>,
    dots: Vec<f64>,
    mark: Option<f64>,
}

impl Bar {
    fn new(label: &str, row: usize, e: &Estimate) -> Self {
        Self {
            label: label.into(),
            row,
            value: short(e.median),
            low: e.interval.map(|i| short(i.0)),
            high: e.interval.map(|i| short(i.1)),
            interval: interval_name([e]),
            ..Self::default()
        }
    }
}

/// Six digits are more than a plot can show.
fn short(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return 0.0;
    }
    format!("{x:.5e}").parse().unwrap_or(0.0)
}

fn mib(bytes: f64) -> f64 {
    bytes / (1 << 20) as f64
}

fn arm_index(resolved: &Resolved, arm: &str) -> usize {
    arms(resolved).iter().position(|a| *a == arm).unwrap_or(0)
}

/// Every chart that the run has data for.
pub(super) fn charts(resolved: &Resolved, summary: &RunSummary, logs: &[TrialLog]) -> Vec<Chart> {
    let mut all = bars::all(resolved, summary);
    all.extend(lines::all(resolved, summary, logs));
    all.retain(|c| !c.series.is_empty());
    all
}
