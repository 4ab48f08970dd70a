//! Charts of figures by case.

use chronibench_protocol::record::Resolved;

use super::{Bar, Chart, Kind, Series, arm_index, mib, short};
use crate::{
    TrialMetrics,
    report::plots::{by_cell, geometry, main_cases},
    stats::{Estimate, median},
    summary::{CaseSummary, RunSummary},
};

const ENERGY: &str = "Utilisation and energy";

/// All charts of bars; one without series has nothing to show.
pub(super) fn all(resolved: &Resolved, summary: &RunSummary) -> Vec<Chart> {
    let figure = |name: &str, value: Option<f64>| {
        let e = Estimate { median: value?, interval: None, n: 1 };
        Some(Bar::new(name, 0, &e))
    };
    let speed = by_arm(resolved, summary, |c| {
        let dots = valid(c, |m| m.real_tokens_per_s);
        Some(Bar { dots, ..Bar::new(&c.id, 0, &c.real_tokens_per_s?) })
    });
    let memory = by_arm(resolved, summary, |c| {
        let dots = valid(c, |m| m.peak_memory().map(|b| mib(b as f64)));
        let mark = c.planned_bytes.map(|b| short(mib(b as f64)));
        Some(Bar { dots: dots.clone(), mark, ..figure(&c.id, median(&dots))? })
    });
    let mfu = by_arm(resolved, summary, |c| figure(&c.id, c.efficiency.as_ref()?.mfu.map(|m| m * 100.0)));
    let power = by_arm(resolved, summary, |c| figure(&c.id, c.efficiency.as_ref()?.power_w));
    let energy = by_arm(resolved, summary, |c| {
        figure(&c.id, c.efficiency.as_ref()?.joules_per_token.map(|j| j * 1e3))
    });
    let peak = summary.cases.iter().filter_map(|c| c.efficiency.as_ref()?.peak_source.as_deref()).next();
    let mfu_title = format!("Model FLOPs utilisation, of the peak by {}", peak.unwrap_or("no source"));
    vec![
        bars("throughput.svg", "", "Throughput", ("real tokens/s (more is better)", "tok/s"), speed),
        bars("memory.svg", "", "Peak memory", ("MiB (less is better)", "MiB"), memory),
        bars("mfu", ENERGY, &mfu_title, ("percent of the peak", "%"), mfu),
        bars("power", ENERGY, "Mean power of the board", ("W", "W"), power),
        bars("energy", ENERGY, "Energy of 1,000 real tokens", ("J (less is better)", "J"), energy),
        bars(
            "packing.svg",
            "",
            "Packing efficiency",
            ("percent of computed positions", "%"),
            packing(resolved, summary),
        ),
        Chart {
            origin: 1.0,
            ..bars(
                "ablation.svg",
                "",
                "Ablation: throughput with one seam unfused",
                ("times the base", "×"),
                ablation(summary),
            )
        },
        waterfall(summary),
        Chart {
            origin: 1.0,
            ..bars(
                "shapley",
                "Ablation",
                "The gain divided: Shapley values",
                ("factor that a seam brings", "×"),
                shapley(summary),
            )
        },
    ]
}

fn bars(
    id: &'static str,
    section: &'static str,
    title: &str,
    (y, unit): (&'static str, &'static str),
    series: Vec<Series>,
) -> Chart {
    let title = title.into();
    Chart { id, section, kind: Kind::Bars, title, y, unit, origin: 0.0, zero: true, axes: Vec::new(), series }
}

pub(super) fn valid(c: &CaseSummary, f: impl Fn(&TrialMetrics) -> Option<f64>) -> Vec<f64> {
    c.trials.iter().filter(|t| t.is_valid()).filter_map(|t| f(&t.metrics)).map(short).collect()
}

/// Adds a bar to the series of a name.
fn add(series: &mut Vec<Series>, name: &str, colour: usize, bar: Bar) {
    match series.iter_mut().find(|s| s.name == name) {
        Some(s) => s.bars.push(bar),
        None => series.push(Series { name: name.into(), colour, bars: vec![bar], ..Series::default() }),
    }
}

/// Bars of all cases, a series for each arm.
fn by_arm(
    resolved: &Resolved,
    summary: &RunSummary,
    of: impl Fn(&CaseSummary) -> Option<Bar>,
) -> Vec<Series> {
    let mut series = Vec::new();
    for (row, c) in by_cell(summary).into_iter().enumerate() {
        if let Some(bar) = of(c) {
            add(&mut series, &c.arm, arm_index(resolved, &c.arm), Bar { row, ..bar });
        }
    }
    series
}

/// Batches are the harness's: a bar for each geometry.
fn packing(resolved: &Resolved, summary: &RunSummary) -> Vec<Series> {
    let mut one = Series { name: "real tokens".into(), colour: 2, ..Series::default() };
    for c in main_cases(summary) {
        let Some(share) = c.packing_efficiency else { continue };
        let Some(case) = resolved.cases.iter().find(|r| r.id == c.id) else { continue };
        let label = geometry(case);
        if !one.bars.iter().any(|b| b.label == label) {
            let e = Estimate { median: share * 100.0, interval: None, n: 1 };
            one.bars.push(Bar::new(&label, one.bars.len(), &e));
        }
    }
    if one.bars.is_empty() { Vec::new() } else { vec![one] }
}

fn ablation(summary: &RunSummary) -> Vec<Series> {
    let single = summary.ablations.iter().filter(|a| !a.off.contains('+'));
    let mut rows: Vec<_> = single.filter_map(|a| Some((a, a.result.speed?))).collect();
    rows.sort_by(|a, b| a.1.median.total_cmp(&b.1.median));
    let mut series = Vec::new();
    for (row, (a, e)) in rows.into_iter().enumerate() {
        let colour = series.len();
        add(&mut series, &a.of, colour, Bar::new(&a.off, row, &e));
    }
    series
}

/// Throughput as seams are turned on, in the order that is written.
fn waterfall(summary: &RunSummary) -> Chart {
    let mut series = Vec::new();
    let mut row = 0;
    for (colour, of) in summary.divisions.iter().enumerate() {
        let d = &of.division;
        let names = std::iter::once("all off".to_string()).chain(d.players.iter().map(|p| format!("+ {p}")));
        let mut before = None;
        for (name, value) in names.zip(&d.cumulative) {
            let e = Estimate { median: *value, interval: None, n: 1 };
            let bar = Bar { from: before.map(short), ..Bar::new(&name, row, &e) };
            add(&mut series, &of.of, colour, bar);
            before = Some(*value);
            row += 1;
        }
    }
    let order = summary.divisions.first().map(|d| d.division.players.join(", ")).unwrap_or_default();
    let title = format!("Waterfall: seams turned on in this order: {order}");
    bars("waterfall.svg", "", &title, ("throughput so far, relative to all seams unfused", "×"), series)
}

fn shapley(summary: &RunSummary) -> Vec<Series> {
    let mut series = Vec::new();
    let mut row = 0;
    for (colour, of) in summary.divisions.iter().enumerate() {
        let d = &of.division;
        for (name, f) in d.players.iter().zip(&d.factors) {
            let e = Estimate { median: f.factor, interval: f.interval, n: 1 };
            let interval = f.interval.map(|_| "bootstrap over rounds".into());
            add(&mut series, &of.of, colour, Bar { interval, ..Bar::new(name, row, &e) });
            row += 1;
        }
    }
    series
}
