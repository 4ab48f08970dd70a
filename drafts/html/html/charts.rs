//! What the script draws, as data.

use std::collections::BTreeMap;

use chronibench_protocol::record::Resolved;
use serde::Serialize;

use crate::{
    report::plots::{arms, by_cell, main_cases, timeline},
    stats::{Estimate, median},
    summary::{CaseSummary, RunSummary},
    trial::TrialLog,
};

/// A chart that has no drawn plot beside it.
pub(super) const SHAPES: &str = "shapes.svg";

/// One chart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Chart {
    kind: &'static str,
    pub(super) title: String,
    /// What the values are.
    y: &'static str,
    unit: &'static str,
    /// Where bars begin.
    origin: f64,
    /// Whether the vertical axis begins at zero.
    zero: bool,
    /// Ways to see the horizontal axis.
    axes: Vec<&'static str>,
    series: Vec<Series>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Series {
    name: String,
    colour: usize,
    dash: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bars: Vec<Bar>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    x: Vec<Vec<f64>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    y: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Bar {
    label: String,
    /// Place from the top.
    row: usize,
    value: f64,
    low: Option<f64>,
    high: Option<f64>,
    dots: Vec<f64>,
    mark: Option<f64>,
}

/// Six digits are more than a plot can show.
fn short(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return 0.0;
    }
    format!("{x:.5e}").parse().unwrap_or(0.0)
}

/// Every chart that the run has data for, by the file of the plot that it stands for.
pub(super) fn charts(resolved: &Resolved, summary: &RunSummary, logs: &[TrialLog]) -> BTreeMap<&'static str, Chart> {
    let mib = |b: f64| b / (1 << 20) as f64;
    let all = [
        ("throughput.svg", by_arm(resolved, summary, "Throughput", "real tokens/s", |c| {
            let dots = valid(c, |m| m.real_tokens_per_s);
            c.real_tokens_per_s.map(|e| (e, dots, None))
        })),
        ("memory.svg", by_arm(resolved, summary, "Peak memory", "MiB", |c| {
            let dots: Vec<f64> = valid(c, |m| m.peak_memory().map(|b| mib(b as f64)));
            let peak = Estimate { median: median(&dots)?, interval: None, n: dots.len() };
            Some((peak, dots, c.planned_bytes.map(|b| mib(b as f64))))
        })),
        ("energy.svg", by_arm(resolved, summary, "Energy of the GPU for a thousand real tokens", "J", |c| {
            let joules = c.efficiency.as_ref()?.joules_per_token? * 1e3;
            Some((Estimate { median: joules, interval: None, n: c.valid }, Vec::new(), None))
        })),
        ("ablation.svg", ablation(summary)),
        ("tradeoff.svg", tradeoff(resolved, summary)),
        (SHAPES, shapes(resolved, summary)),
        ("loss.svg", loss(resolved, summary, logs)),
        ("timeline.svg", over_time(resolved, summary, logs)),
    ];
    all.into_iter().filter(|(_, c)| !c.series.is_empty()).collect()
}

fn valid(c: &CaseSummary, f: impl Fn(&crate::TrialMetrics) -> Option<f64>) -> Vec<f64> {
    c.trials.iter().filter(|t| t.is_valid()).filter_map(|t| f(&t.metrics)).map(short).collect()
}

fn arm_index(resolved: &Resolved, arm: &str) -> usize {
    arms(resolved).iter().position(|a| *a == arm).unwrap_or(0)
}

/// Bars of all cases, a series for each arm.
fn by_arm(
    resolved: &Resolved,
    summary: &RunSummary,
    title: &str,
    unit: &'static str,
    of: impl Fn(&CaseSummary) -> Option<(Estimate, Vec<f64>, Option<f64>)>,
) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    for (row, c) in by_cell(summary).into_iter().enumerate() {
        let Some((e, dots, mark)) = of(c) else { continue };
        let bar = Bar {
            label: c.id.clone(),
            row,
            value: short(e.median),
            low: e.interval.map(|i| short(i.0)),
            high: e.interval.map(|i| short(i.1)),
            dots,
            mark: mark.map(short),
        };
        match series.iter_mut().find(|s| s.name == c.arm) {
            Some(s) => s.bars.push(bar),
            None => series.push(Series {
                name: c.arm.clone(),
                colour: arm_index(resolved, &c.arm),
                bars: vec![bar],
                ..Series::default()
            }),
        }
    }
    Chart { kind: "bars", title: title.into(), y: unit, unit, origin: 0.0, zero: true, axes: Vec::new(), series }
}

fn ablation(summary: &RunSummary) -> Chart {
    let mut rows: Vec<_> = summary.ablations.iter().filter_map(|a| Some((a, a.result.speed?))).collect();
    rows.sort_by(|a, b| a.1.median.total_cmp(&b.1.median));
    let mut series: Vec<Series> = Vec::new();
    for (row, (a, e)) in rows.into_iter().enumerate() {
        let bar = Bar {
            label: a.off.clone(),
            row,
            value: short(e.median),
            low: e.interval.map(|i| short(i.0)),
            high: e.interval.map(|i| short(i.1)),
            dots: Vec::new(),
            mark: None,
        };
        let colour = series.len();
        match series.iter_mut().find(|s| s.name == a.of) {
            Some(s) => s.bars.push(bar),
            None => series.push(Series { name: a.of.clone(), colour, bars: vec![bar], ..Series::default() }),
        }
    }
    Chart {
        kind: "bars",
        title: "Ablation: throughput with one seam unfused, relative to its base".into(),
        y: "times the base",
        unit: "×",
        origin: 1.0,
        zero: false,
        axes: Vec::new(),
        series,
    }
}

/// Points of all cases that have both figures, a series for each arm.
fn points(
    resolved: &Resolved,
    summary: &RunSummary,
    (title, axis): (&str, &'static str),
    x: impl Fn(&CaseSummary) -> Option<f64>,
) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    for c in main_cases(summary) {
        let Some((x, y)) = x(c).zip(c.real_tokens_per_s) else { continue };
        let index = series.iter().position(|s| s.name == c.arm).unwrap_or_else(|| {
            let colour = arm_index(resolved, &c.arm);
            let (x, labels) = (vec![Vec::new()], Some(Vec::new()));
            series.push(Series { name: c.arm.clone(), colour, x, labels, ..Series::default() });
            series.len() - 1
        });
        let s = &mut series[index];
        s.x[0].push(short(x));
        s.y.push(short(y.median));
        s.labels.get_or_insert_default().push(c.id.clone());
    }
    // One place on the axis is no axis.
    let mut places: Vec<f64> = series.iter().flat_map(|s| s.x[0].clone()).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    if places.len() < 2 {
        series.clear();
    }
    let (y, unit) = ("real tokens/s", "tok/s");
    Chart { kind: "points", title: title.into(), y, unit, origin: 0.0, zero: true, axes: vec![axis], series }
}

fn tradeoff(resolved: &Resolved, summary: &RunSummary) -> Chart {
    points(resolved, summary, ("Throughput over peak memory", "MiB"), |c| {
        median(&valid(c, |m| m.peak_memory().map(|b| b as f64 / (1 << 20) as f64)))
    })
}

fn shapes(resolved: &Resolved, summary: &RunSummary) -> Chart {
    points(resolved, summary, ("Throughput by the shape of the batch", "positions a step, padding included"), |c| {
        Some((c.slots_per_s?.median * c.step_ms?.median / 1e3).round())
    })
}

/// Arms have colours and what else tells cases apart has dashes.
fn style(resolved: &Resolved, c: &CaseSummary, variants: &mut Vec<String>) -> Series {
    let variant = format!("{:?}", c.axes);
    let dash = variants.iter().position(|v| *v == variant).unwrap_or_else(|| {
        variants.push(variant);
        variants.len() - 1
    });
    let colour = arm_index(resolved, &c.arm);
    Series { name: c.id.clone(), colour, dash, ..Series::default() }
}

/// The first VALID trial of a case.
fn first_valid<'a>(c: &CaseSummary, logs: &'a [TrialLog]) -> Option<&'a TrialLog> {
    let id = &c.trials.iter().find(|t| t.is_valid())?.id;
    logs.iter().find(|l| l.header.as_ref().is_some_and(|h| h.spec.trial_id == *id))
}

/// Loss of the first VALID trial, by step, by tokens and by time.
fn loss(resolved: &Resolved, summary: &RunSummary, logs: &[TrialLog]) -> Chart {
    let mut variants = Vec::new();
    let series = main_cases(summary).filter_map(|c| {
        let log = first_valid(c, logs)?;
        let counted = log.counted();
        let start = log.steps.first()?.event.start_ns;
        let mut tokens = 0;
        let mut s = style(resolved, c, &mut variants);
        s.x = vec![Vec::new(); 3];
        for step in log.steps.iter().map(|s| &s.event).filter(|s| s.loss.is_finite()) {
            tokens += counted.get(&step.step).map_or(0, |t| t.real);
            let seconds = step.end_ns.saturating_sub(start) as f64 * 1e-9;
            for (axis, x) in s.x.iter_mut().zip([f64::from(step.step), tokens as f64, seconds]) {
                axis.push(short(x));
            }
            s.y.push(short(step.loss));
        }
        (!s.y.is_empty()).then_some(s)
    });
    let series = series.collect();
    Chart {
        kind: "lines",
        title: "Training loss of the first VALID trial".into(),
        y: "mean loss of the step",
        unit: "",
        origin: 0.0,
        zero: false,
        axes: vec!["step", "real tokens", "seconds"],
        series,
    }
}

/// Memory of the first VALID trial of each case.
fn over_time(resolved: &Resolved, summary: &RunSummary, logs: &[TrialLog]) -> Chart {
    let mut variants = Vec::new();
    let on_gpu = timeline::on_gpu(logs);
    let series = main_cases(summary).filter_map(|c| {
        let points = timeline::points(first_valid(c, logs)?, on_gpu);
        let mut s = style(resolved, c, &mut variants);
        s.x = vec![points.iter().map(|p| short(p.0)).collect()];
        s.y = points.iter().map(|p| short(p.1)).collect();
        (!s.y.is_empty()).then_some(s)
    });
    let series = series.collect();
    Chart {
        kind: "lines",
        title: timeline::title(on_gpu).into(),
        y: "MiB",
        unit: "MiB",
        origin: 0.0,
        zero: true,
        axes: vec!["seconds since the start"],
        series,
    }
}
