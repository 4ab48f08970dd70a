//! Charts over time, steps, tokens, memory, and shapes of batches.

use std::collections::BTreeMap;

use chronibench_protocol::record::{Resolved, Sample};

use super::{Chart, Kind, Series, arm_index, bars::valid, mib, short};
use crate::{
    report::plots::main_cases,
    stats::median,
    summary::{CaseSummary, RunSummary},
    trial::TrialLog,
};

/// More points than pixels say nothing more.
const POINTS: usize = 160;

const TIME: &str = "seconds since the start of the trial";

/// All charts of lines and points; one without series has nothing to show.
pub(super) fn all(resolved: &Resolved, summary: &RunSummary, logs: &[TrialLog]) -> Vec<Chart> {
    let on_gpu = on_gpu(logs);
    let memory = if on_gpu { "Memory on the GPU over time (NVML)" } else { "Resident set over time" };
    let bytes = |s: &Sample| match on_gpu {
        true => s.gpu.as_ref().map(|g| mib(g.process_bytes as f64)),
        false => Some(mib(s.rss_bytes as f64)),
    };
    let watts = |s: &Sample| {
        let gpu = s.gpu.as_ref().filter(|g| g.power_mw > 0)?;
        Some(f64::from(gpu.power_mw) * 1e-3)
    };
    let over_time = |of: &dyn Fn(&Sample) -> Option<f64>| {
        curves(resolved, summary, logs, |valid| {
            let points = thinned(valid[0], of);
            let (x, y): (Vec<f64>, Vec<f64>) = points.into_iter().map(|p| (short(p.0), short(p.1))).unzip();
            (vec![x], y)
        })
    };
    let loss = curves(resolved, summary, logs, losses);
    let step_tokens_time = vec!["step", "real tokens", "seconds of training"];
    let first = "first VALID trial of each case";
    vec![
        chart(
            "loss.svg",
            "",
            "Training loss, median over VALID trials".into(),
            ("mean loss of the step", ""),
            step_tokens_time,
            loss,
        ),
        Chart {
            zero: true,
            ..chart(
                "timeline",
                "Memory",
                format!("{memory}, {first}"),
                ("MiB", "MiB"),
                vec![TIME],
                over_time(&bytes),
            )
        },
        Chart {
            zero: true,
            ..chart(
                "power-over-time",
                "Utilisation and energy",
                format!("Power of the board over time, {first}"),
                ("W", "W"),
                vec![TIME],
                over_time(&watts),
            )
        },
        tradeoff(resolved, summary),
        shapes(resolved, summary),
    ]
}

fn chart(
    id: &'static str,
    section: &'static str,
    title: String,
    (y, unit): (&'static str, &'static str),
    axes: Vec<&'static str>,
    series: Vec<Series>,
) -> Chart {
    Chart { id, section, kind: Kind::Lines, title, y, unit, origin: 0.0, zero: false, axes, series }
}

/// Whether arms of this run have memory on a GPU.
fn on_gpu(logs: &[TrialLog]) -> bool {
    logs.iter().flat_map(|l| &l.samples).any(|s| s.gpu.as_ref().is_some_and(|g| g.process_bytes > 0))
}

/// Seconds and values; of several samples that fall on one point, the largest.
fn thinned(log: &TrialLog, of: &dyn Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    let all: Vec<(f64, f64)> =
        log.samples.iter().filter_map(|s| Some((s.t_ns as f64 * 1e-9, of(s)?))).collect();
    let together = all.len().div_ceil(POINTS).max(1);
    let peak = |part: &[(f64, f64)]| part.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
    all.chunks(together).filter_map(peak).collect()
}

/// Median loss of every step, by step, by tokens, and by the time of the first trial.
fn losses(valid: &[&TrialLog]) -> (Vec<Vec<f64>>, Vec<f64>) {
    let mut by_step: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for step in valid.iter().flat_map(|l| &l.steps).map(|s| &s.event) {
        by_step.entry(step.step).or_default().push(step.loss);
    }
    let counted = valid[0].counted();
    let start = valid[0].steps.first().map_or(0, |s| s.event.start_ns);
    let mut tokens = 0;
    let (mut x, mut y) = (vec![Vec::new(); 3], Vec::new());
    for step in valid[0].steps.iter().map(|s| &s.event) {
        tokens += counted.get(&step.step).map_or(0, |t| t.real);
        let Some(loss) = by_step.get(&step.step).and_then(|l| median(l)) else { continue };
        let seconds = step.end_ns.saturating_sub(start) as f64 * 1e-9;
        for (axis, at) in x.iter_mut().zip([f64::from(step.step), tokens as f64, seconds]) {
            axis.push(short(at));
        }
        y.push(short(loss));
    }
    (x, y)
}

/// A line for each case that has a VALID trial: the arm is its colour, and all else that tells cases apart its dash.
fn curves(
    resolved: &Resolved,
    summary: &RunSummary,
    logs: &[TrialLog],
    of: impl Fn(&[&TrialLog]) -> (Vec<Vec<f64>>, Vec<f64>),
) -> Vec<Series> {
    let mut variants: Vec<String> = Vec::new();
    let line = |c: &CaseSummary| {
        let valid = valid_logs(c, logs);
        let (x, y) = if valid.is_empty() { return None } else { of(&valid) };
        let variant = format!("{:?}", c.axes);
        let dash = variants.iter().position(|v| *v == variant).unwrap_or_else(|| {
            variants.push(variant);
            variants.len() - 1
        });
        let colour = arm_index(resolved, &c.arm);
        (y.len() > 1).then(|| Series { name: c.id.clone(), colour, dash, x, y, ..Series::default() })
    };
    main_cases(summary).filter_map(line).collect()
}

fn valid_logs<'a>(c: &CaseSummary, logs: &'a [TrialLog]) -> Vec<&'a TrialLog> {
    let of = |id: &str| logs.iter().find(|l| l.header.as_ref().is_some_and(|h| h.spec.trial_id == id));
    c.trials.iter().filter(|t| t.is_valid()).filter_map(|t| of(&t.id)).collect()
}

/// Points of all cases that have both figures, a series for each arm.
fn points(
    resolved: &Resolved,
    summary: &RunSummary,
    (id, section, title): (&'static str, &'static str, &str),
    axis: &'static str,
    x: impl Fn(&CaseSummary) -> Option<f64>,
) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    for c in main_cases(summary) {
        let Some((x, y)) = x(c).zip(c.real_tokens_per_s) else { continue };
        let index = series.iter().position(|s| s.name == c.arm).unwrap_or_else(|| {
            let colour = arm_index(resolved, &c.arm);
            series.push(Series { name: c.arm.clone(), colour, x: vec![Vec::new()], ..Series::default() });
            series.len() - 1
        });
        let s = &mut series[index];
        s.x[0].push(short(x));
        s.y.push(short(y.median));
        s.labels.push(c.id.clone());
    }
    // One place on the axis is no axis.
    let mut places: Vec<f64> = series.iter().flat_map(|s| s.x[0].clone()).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    if places.len() < 2 {
        series.clear();
    }
    let of = chart(id, section, title.into(), ("real tokens/s", "tok/s"), vec![axis], series);
    Chart { kind: Kind::Points, zero: true, ..of }
}

fn tradeoff(resolved: &Resolved, summary: &RunSummary) -> Chart {
    let about = ("tradeoff.svg", "Memory", "Throughput over peak memory");
    points(resolved, summary, about, "peak memory, MiB", |c| {
        median(&valid(c, |m| m.peak_memory().map(|b| mib(b as f64))))
    })
}

/// Cells of a sweep of batch shapes are points of one arm.
fn shapes(resolved: &Resolved, summary: &RunSummary) -> Chart {
    let about = ("shapes", "Results", "Throughput by the shape of the batch");
    points(resolved, summary, about, "positions a step, padding included", |c| {
        Some((c.slots_per_s?.median * c.step_ms?.median / 1e3).round())
    })
}
