//! The plots of a report, as SVG text.
//!
//! Every file stands for itself (no scripts, no references) and brings its own white ground, so that it reads the same on
//! a light page and a dark one. Ablated cases have a plot of their own and are left out of the others.

mod bars;
mod canvas;
mod loss;
mod tradeoff;
mod waterfall;

use std::collections::BTreeSet;

use chronibench_protocol::record::{Case, Resolved};
use plotters::style::RGBColor;

use crate::{
    format::{interval_name, mib, number, percent, times},
    stats::{Estimate, median},
    summary::{CaseSummary, RunSummary},
    trial::TrialLog,
};
use bars::{Bar, BarPlot, Key, Segment};

/// Wong's palette, distinct also to the colour-blind, in an order that gives neighbours different lightness.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(178, 130, 0),
    RGBColor(90, 90, 90),
];

const PADDING: RGBColor = RGBColor(208, 215, 222);

/// A plot that a run of this kind has: its file name and what it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plot {
    Throughput,
    Memory,
    Loss,
    Ablation,
    Waterfall,
    Packing,
    Tradeoff,
}

impl Plot {
    pub(crate) fn file(self) -> &'static str {
        match self {
            Plot::Throughput => "throughput.svg",
            Plot::Memory => "memory.svg",
            Plot::Loss => "loss.svg",
            Plot::Ablation => "ablation.svg",
            Plot::Waterfall => "waterfall.svg",
            Plot::Packing => "packing.svg",
            Plot::Tradeoff => "tradeoff.svg",
        }
    }

    /// Whether the run has anything to show in this plot.
    pub(crate) fn has_data(self, summary: &RunSummary) -> bool {
        let case = |f: fn(&CaseSummary) -> bool| main_cases(summary).any(f);
        match self {
            Plot::Throughput => case(|c| c.real_tokens_per_s.is_some()),
            Plot::Memory => case(|c| c.peak_rss.is_some()),
            Plot::Loss => case(|c| c.first_loss.is_some()),
            Plot::Packing => case(|c| c.packing_efficiency.is_some()),
            Plot::Tradeoff => tradeoff::has_choice(summary),
            Plot::Waterfall => !summary.divisions.is_empty(),
            Plot::Ablation => {
                summary.ablations.iter().any(|a| a.result.speed.is_some() && !a.off.contains('+'))
            }
        }
    }
}

/// File name (below `plots/`) and content of every plot that the run has data for.
pub fn plots(resolved: &Resolved, summary: &RunSummary, logs: &[TrialLog]) -> Vec<(String, String)> {
    let draw = |plot: Plot| match plot {
        Plot::Throughput => throughput(resolved, summary).svg(),
        Plot::Memory => memory(resolved, summary).svg(),
        Plot::Loss => loss::loss_svg(resolved, summary, logs),
        Plot::Ablation => ablation(summary).svg(),
        Plot::Waterfall => waterfall::waterfall(summary).svg(),
        Plot::Packing => packing(resolved, summary).svg(),
        Plot::Tradeoff => tradeoff::tradeoff_svg(resolved, summary),
    };
    [
        Plot::Throughput,
        Plot::Memory,
        Plot::Tradeoff,
        Plot::Loss,
        Plot::Ablation,
        Plot::Waterfall,
        Plot::Packing,
    ]
    .into_iter()
    .filter(|p| p.has_data(summary))
    .map(|p| (p.file().to_string(), draw(p)))
    .collect()
}

/// Arms in the scenario's order, without those that stand for ablations alone.
pub(crate) fn arms(resolved: &Resolved) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    resolved.cases.iter().map(|c| c.arm.as_str()).filter(|a| seen.insert(*a)).collect()
}

fn arm_colour(resolved: &Resolved, arm: &str) -> RGBColor {
    let index = arms(resolved).iter().position(|a| *a == arm).unwrap_or(0);
    PALETTE[index % PALETTE.len()]
}

/// Cases that are no ablation of another.
pub(crate) fn main_cases(summary: &RunSummary) -> impl Iterator<Item = &CaseSummary> {
    let ablated: BTreeSet<&str> = summary.ablations.iter().map(|a| a.case.as_str()).collect();
    summary.cases.iter().filter(move |c| !ablated.contains(c.id.as_str()))
}

/// The cell of the matrix that a case belongs to, whatever its arm.
fn cell(c: &CaseSummary) -> String {
    format!("{:?}", c.axes)
}

/// Cells of the matrix one below the other, the arms of a cell together.
pub(crate) fn by_cell(summary: &RunSummary) -> Vec<&CaseSummary> {
    let mut cells: Vec<String> = Vec::new();
    for c in main_cases(summary) {
        if !cells.contains(&cell(c)) {
            cells.push(cell(c));
        }
    }
    let mut cases: Vec<&CaseSummary> = main_cases(summary).collect();
    cases.sort_by_key(|c| cells.iter().position(|x| *x == cell(c)));
    cases
}

fn arm_keys(resolved: &Resolved, shown: &[Bar]) -> Vec<Key> {
    arms(resolved)
        .into_iter()
        .map(|arm| (arm, arm_colour(resolved, arm)))
        .filter(|(_, colour)| shown.iter().any(|b| b.segments.iter().any(|s| s.colour == *colour)))
        .map(|(arm, colour)| Key::Area(arm.to_string(), colour))
        .collect()
}

fn throughput(resolved: &Resolved, summary: &RunSummary) -> BarPlot {
    let bars: Vec<Bar> = by_cell(summary)
        .into_iter()
        .filter_map(|c| {
            let e = c.real_tokens_per_s?;
            let valid = c.trials.iter().filter(|t| t.is_valid());
            Some(Bar {
                group: cell(c),
                label: c.id.clone(),
                segments: vec![Segment { value: e.median, colour: arm_colour(resolved, &c.arm) }],
                interval: e.interval,
                dots: valid.filter_map(|t| t.metrics.real_tokens_per_s).collect(),
                mark: None,
                text: number(e.median),
            })
        })
        .collect();
    let mut keys = arm_keys(resolved, &bars);
    keys.extend([
        Key::Dot("one trial".into()),
        Key::Whisker(whisker(summary.cases.iter().filter_map(|c| c.real_tokens_per_s.as_ref()))),
    ]);
    BarPlot {
        title: "Throughput".into(),
        axis: "real tokens/s (higher is better)".into(),
        origin: 0.0,
        unit: "",
        keys,
        bars,
    }
}

fn memory(resolved: &Resolved, summary: &RunSummary) -> BarPlot {
    let mib_of = |bytes: f64| bytes / (1 << 20) as f64;
    let on_gpu = resolved.cases.iter().all(|c| c.device != "cpu");
    let bars: Vec<Bar> = by_cell(summary)
        .into_iter()
        .filter_map(|c| {
            let valid = || c.trials.iter().filter(|t| t.is_valid());
            let peaks: Vec<f64> = valid().filter_map(|t| t.metrics.peak_memory()).map(|b| b as f64).collect();
            let peak = median(&peaks)?;
            Some(Bar {
                group: cell(c),
                label: c.id.clone(),
                segments: vec![Segment { value: mib_of(peak), colour: arm_colour(resolved, &c.arm) }],
                interval: None,
                dots: peaks.into_iter().map(mib_of).collect(),
                mark: c.planned_bytes.map(|b| mib_of(b as f64)),
                text: mib(peak),
            })
        })
        .collect();
    let mut keys = arm_keys(resolved, &bars);
    keys.push(Key::Dot("one trial".into()));
    if bars.iter().any(|b| b.mark.is_some()) {
        keys.push(Key::Mark("planned by the arm".into()));
    }
    BarPlot {
        title: "Peak memory".into(),
        axis: if on_gpu {
            "peak memory on the GPU, MiB (lower is better)"
        } else {
            "peak resident set, MiB (lower is better)"
        }
        .into(),
        origin: 0.0,
        unit: "",
        keys,
        bars,
    }
}

fn ablation(summary: &RunSummary) -> BarPlot {
    let several = summary.ablations.iter().any(|a| a.of != summary.ablations[0].of);
    let mut rows: Vec<_> = {
        let single = summary.ablations.iter().filter(|a| !a.off.contains('+'));
        single.filter_map(|a| Some((a, a.result.speed?))).collect()
    };
    rows.sort_by(|a, b| a.1.median.total_cmp(&b.1.median));
    let bars = rows
        .into_iter()
        .map(|(a, e)| Bar {
            group: String::new(),
            label: if several { format!("{} ({})", a.off, a.of) } else { a.off.clone() },
            segments: vec![Segment { value: e.median, colour: PALETTE[usize::from(e.median < 1.0)] }],
            interval: e.interval,
            dots: Vec::new(),
            mark: None,
            text: times(e.median),
        })
        .collect();
    let of = if several { "each base" } else { summary.ablations[0].of.as_str() };
    BarPlot {
        title: format!("Ablation of {of}, one seam at a time"),
        axis: "throughput with this seam unfused, relative to the base".into(),
        origin: 1.0,
        unit: "×",
        keys: vec![
            Key::Area("slower without it".into(), PALETTE[1]),
            Key::Area("faster without it".into(), PALETTE[0]),
            Key::Whisker(whisker(summary.ablations.iter().filter_map(|a| a.result.speed.as_ref()))),
        ],
        bars,
    }
}

/// What a line with two ends stands for.
fn whisker<'a>(estimates: impl Iterator<Item = &'a Estimate>) -> String {
    format!("of the median: {}", interval_name(estimates).unwrap_or_else(|| "no interval".into()))
}

/// `bfd, 4 rows`: what decides how full the rows are.
pub(crate) fn geometry(case: &Case) -> String {
    let b = &case.batch;
    let accumulated = match b.gradient_accumulation_steps {
        1 => String::new(),
        n => format!(" × {n}"),
    };
    format!("packing {}, {} rows{accumulated}", b.packing.name(), b.per_device_train_batch_size)
}

fn packing(resolved: &Resolved, summary: &RunSummary) -> BarPlot {
    let mut bars: Vec<Bar> = Vec::new();
    for c in main_cases(summary) {
        let Some(share) = c.packing_efficiency else { continue };
        let Some(case) = resolved.cases.iter().find(|r| r.id == c.id) else { continue };
        let label = geometry(case);
        // Batches are the harness's: every arm has the same at the same geometry.
        if bars.iter().any(|b| b.label == label) {
            continue;
        }
        bars.push(Bar {
            group: String::new(),
            label,
            segments: vec![
                Segment { value: share * 100.0, colour: PALETTE[2] },
                Segment { value: 100.0 * (1.0 - share), colour: PADDING },
            ],
            interval: None,
            dots: Vec::new(),
            mark: None,
            text: percent(share),
        });
    }
    BarPlot {
        title: "Packing efficiency".into(),
        axis: "percent of computed positions".into(),
        origin: 0.0,
        unit: "",
        keys: vec![Key::Area("real tokens".into(), PALETTE[2]), Key::Area("padding".into(), PADDING)],
        bars,
    }
}
