//! Loss by step: a panel for each batch geometry, a colour for each arm, a dash for each method.

use std::collections::{BTreeMap, BTreeSet};

use chronibench_protocol::record::{Case, Resolved};
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, VPos},
};

use super::{
    arm_colour, arms,
    canvas::{Area, FAINT, INK, Key, SOUND, TEXT, TITLE_HEIGHT, legend, legend_height, svg, write},
    geometry, main_cases,
};
use crate::{stats::median, summary::RunSummary, trial::TrialLog};

const PANEL_HEIGHT: u32 = 320;
/// Pixels drawn and left out.
const DASHES: [Option<(i32, i32)>; 4] = [None, Some((9, 5)), Some((2, 4)), Some((16, 6))];
/// The ground behind untimed steps.
const UNTIMED: RGBColor = RGBColor(238, 240, 243);

/// One case's losses.
struct Curve<'a> {
    case: &'a Case,
    /// Step and median loss over valid trials.
    points: Vec<(f64, f64)>,
}

/// What all panels share.
struct Frame<'a> {
    resolved: &'a Resolved,
    variants: Vec<String>,
    steps: f64,
    low: f64,
    high: f64,
}

/// Draws the curves of all cases that have a valid trial, ablations excepted. There must be one.
pub(super) fn loss_svg(resolved: &Resolved, summary: &RunSummary, logs: &[TrialLog]) -> String {
    let curves = curves(resolved, summary, logs);
    let panels = distinct(curves.iter().map(|c| geometry(c.case)));
    let variants = distinct(curves.iter().map(|c| variant(c.case)));
    let all = || curves.iter().flat_map(|c| c.points.iter().copied());
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), (_, y)| (l.min(y), h.max(y)));
    let pad = ((high - low) * 0.05).max(1e-3);
    let steps = all().fold(1.0, |s: f64, (x, _)| s.max(x));
    let frame = Frame { resolved, variants, steps, low: low - pad, high: high + pad };

    let keys = frame.keys(&curves);
    let columns = panels.len().min(2);
    let rows = panels.len().div_ceil(columns);
    let top = TITLE_HEIGHT + legend_height(&keys) + 8;
    svg(top + rows as u32 * PANEL_HEIGHT, "Training loss: mean over the loss tokens of each step", |root| {
        legend(root, &keys, TITLE_HEIGHT);
        let (_, below) = root.split_vertically(top);
        for (area, panel) in below.split_evenly((rows, columns)).iter().zip(&panels) {
            let own: Vec<&Curve<'_>> = curves.iter().filter(|c| geometry(c.case) == *panel).collect();
            frame.panel(area, panel, &own);
        }
    })
}

fn curves<'a>(resolved: &'a Resolved, summary: &RunSummary, logs: &[TrialLog]) -> Vec<Curve<'a>> {
    let by_id: BTreeMap<&str, &TrialLog> =
        logs.iter().filter_map(|l| Some((l.header.as_ref()?.spec.trial_id.as_str(), l))).collect();
    let points = |trials: Vec<&TrialLog>| {
        let mut by_step: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for step in trials.iter().flat_map(|l| &l.steps).map(|s| &s.event) {
            by_step.entry(step.step).or_default().push(step.loss);
        }
        by_step.into_iter().filter_map(|(s, l)| Some((f64::from(s), median(&l)?))).collect::<Vec<_>>()
    };
    main_cases(summary)
        .filter_map(|c| {
            let case = resolved.cases.iter().find(|r| r.id == c.id)?;
            let valid = c.trials.iter().filter(|t| t.is_valid());
            let points = points(valid.filter_map(|t| by_id.get(t.id.as_str()).copied()).collect());
            (!points.is_empty()).then_some(Curve { case, points })
        })
        .collect()
}

/// Axis values without the packing, which has its own panel: `full`, `lora`.
fn variant(case: &Case) -> String {
    let values: Vec<&str> =
        case.axes.iter().filter(|(axis, _)| *axis != "packing").map(|(_, value)| value.as_str()).collect();
    values.join(" ")
}

fn distinct(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.filter(|n| seen.insert(n.clone())).collect()
}

impl Frame<'_> {
    fn dash(&self, case: &Case) -> Option<(i32, i32)> {
        let index = self.variants.iter().position(|v| *v == variant(case)).unwrap_or(0);
        DASHES[index % DASHES.len()]
    }

    fn keys(&self, curves: &[Curve<'_>]) -> Vec<Key> {
        let shown = |arm: &str| curves.iter().any(|c| c.case.arm == arm);
        let arms = arms(self.resolved).into_iter().filter(|a| shown(a));
        let mut keys: Vec<Key> =
            arms.map(|a| Key::Area(a.to_string(), arm_colour(self.resolved, a))).collect();
        if self.variants.len() > 1 {
            let dash = |i: usize| DASHES[i % DASHES.len()];
            keys.extend(self.variants.iter().enumerate().map(|(i, v)| Key::Line(v.clone(), INK, dash(i))));
        }
        if self.resolved.measure.untimed_steps > 0 {
            keys.push(Key::Area("untimed steps".into(), UNTIMED));
        }
        keys
    }

    fn panel(&self, area: &Area<'_>, title: &str, curves: &[&Curve<'_>]) {
        write(area, title, (54, 4), TEXT, HPos::Left, VPos::Top);
        let mut chart = ChartBuilder::on(area)
            .margin_top(28)
            .margin_right(16)
            .margin_bottom(10)
            .x_label_area_size(44)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..self.steps, self.low..self.high)
            .expect(SOUND);
        let untimed = f64::from(self.resolved.measure.untimed_steps).min(self.steps);
        if untimed > 0.0 {
            // Half a step early: the first timed step itself lies on the white ground.
            let ground = Rectangle::new([(0.0, self.low), (untimed - 0.5, self.high)], UNTIMED.filled());
            chart.draw_series([ground]).expect(SOUND);
        }
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(FAINT.stroke_width(1))
            .axis_style(INK.stroke_width(1))
            .label_style(("sans-serif", TEXT - 2).into_font().color(&INK))
            .x_labels(6)
            .y_labels(6)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.2}"))
            .x_desc("step")
            .draw()
            .expect(SOUND);
        for (i, curve) in curves.iter().enumerate() {
            // Arms that do the same work have the same curve: a thinner one on top leaves the one below in sight.
            let arms_below = curves[..i].iter().filter(|c| variant(c.case) == variant(curve.case)).count();
            let width = [9, 5, 2, 1][arms_below.min(3)];
            let style = arm_colour(self.resolved, &curve.case.arm).stroke_width(width);
            let points = curve.points.iter().copied();
            match self.dash(curve.case) {
                None => chart.draw_series(LineSeries::new(points, style)).map(|_| ()),
                Some((on, off)) => {
                    chart.draw_series(DashedLineSeries::new(points, on, off, style)).map(|_| ())
                }
            }
            .expect(SOUND);
        }
    }
}
