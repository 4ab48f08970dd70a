//! Memory over time, as the harness sampled it.

use chronibench_protocol::record::Resolved;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, VPos},
};

use super::{
    arm_colour,
    canvas::{Area, FAINT, INK, Key, SOUND, TEXT, TITLE_HEIGHT, legend, legend_height, svg, write},
    main_cases,
};
use crate::{summary::RunSummary, trial::TrialLog};

const HEIGHT: u32 = 320;
/// More points than pixels say nothing more.
const POINTS: usize = 160;
const DASHES: [Option<(i32, i32)>; 4] = [None, Some((9, 5)), Some((2, 4)), Some((16, 6))];

/// Whether arms of this run have memory on a GPU.
pub(crate) fn on_gpu(logs: &[TrialLog]) -> bool {
    logs.iter().flat_map(|l| &l.samples).any(|s| s.gpu.as_ref().is_some_and(|g| g.process_bytes > 0))
}

pub(crate) fn title(on_gpu: bool) -> &'static str {
    if on_gpu { "Memory on the GPU over time" } else { "Resident set over time" }
}

/// Seconds and MiB; of several samples that fall on one point, the largest.
pub(crate) fn points(log: &TrialLog, on_gpu: bool) -> Vec<(f64, f64)> {
    let bytes = |s: &chronibench_protocol::record::Sample| match on_gpu {
        true => s.gpu.as_ref().map_or(0, |g| g.process_bytes),
        false => s.rss_bytes,
    };
    let all: Vec<(f64, f64)> = log
        .samples
        .iter()
        .map(|s| (s.t_ns as f64 * 1e-9, bytes(s) as f64 / (1 << 20) as f64))
        .collect();
    let together = all.len().div_ceil(POINTS).max(1);
    let peak = |part: &[(f64, f64)]| part.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
    all.chunks(together).filter_map(peak).collect()
}

struct Curve {
    label: String,
    colour: RGBColor,
    dash: Option<(i32, i32)>,
    points: Vec<(f64, f64)>,
}

fn curves(resolved: &Resolved, summary: &RunSummary, logs: &[TrialLog]) -> Vec<Curve> {
    let on_gpu = on_gpu(logs);
    let mut arms: Vec<&str> = Vec::new();
    main_cases(summary)
        .filter_map(|c| {
            let id = &c.trials.iter().find(|t| t.is_valid())?.id;
            let log = logs.iter().find(|l| l.header.as_ref().is_some_and(|h| h.spec.trial_id == *id))?;
            let points = points(log, on_gpu);
            let seen = arms.iter().filter(|a| **a == c.arm).count();
            arms.push(&c.arm);
            let dash = DASHES[seen % DASHES.len()];
            let colour = arm_colour(resolved, &c.arm);
            (points.len() > 1).then(|| Curve { label: c.id.clone(), colour, dash, points })
        })
        .collect()
}

/// Whether any case was sampled more than once.
pub(super) fn has_data(summary: &RunSummary) -> bool {
    main_cases(summary).any(|c| c.trials.iter().any(|t| t.is_valid() && t.metrics.peak_rss_sampled.is_some()))
}

/// Memory of the first VALID trial of each case.
pub(super) fn timeline_svg(resolved: &Resolved, summary: &RunSummary, logs: &[TrialLog]) -> String {
    let curves = curves(resolved, summary, logs);
    let keys: Vec<Key> =
        curves.iter().map(|c| Key::Line(c.label.clone(), c.colour, c.dash)).collect();
    let top = TITLE_HEIGHT + legend_height(&keys) + 8;
    let end = |f: fn(&(f64, f64)) -> f64| {
        curves.iter().flat_map(|c| &c.points).map(f).fold(1e-3, f64::max)
    };
    let (seconds, high) = (end(|p| p.0), end(|p| p.1) * 1.05);
    svg(top + HEIGHT, title(on_gpu(logs)), |root| {
        legend(root, &keys, TITLE_HEIGHT);
        let (_, below) = root.split_vertically(top);
        panel(&below, &curves, seconds, high);
    })
}

fn panel(area: &Area<'_>, curves: &[Curve], seconds: f64, high: f64) {
    write(area, "MiB", (16, 2), TEXT, HPos::Left, VPos::Top);
    let mut chart = ChartBuilder::on(area)
        .margin_top(24)
        .margin_right(16)
        .margin_bottom(10)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..seconds, 0.0..high)
        .expect(SOUND);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT.stroke_width(1))
        .axis_style(INK.stroke_width(1))
        .label_style(("sans-serif", TEXT - 2).into_font().color(&INK))
        .x_labels(8)
        .y_labels(6)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| crate::format::grouped(*y, 0))
        .x_desc("seconds since the start of the trial")
        .draw()
        .expect(SOUND);
    for curve in curves {
        let style = curve.colour.stroke_width(2);
        let points = curve.points.iter().copied();
        match curve.dash {
            None => chart.draw_series(LineSeries::new(points, style)).map(|_| ()),
            Some((on, off)) => chart.draw_series(DashedLineSeries::new(points, on, off, style)).map(|_| ()),
        }
        .expect(SOUND);
    }
}
