//! Throughput over memory: a point for each case.

use chronibench_protocol::record::Resolved;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, VPos},
};

use super::{
    arm_colour,
    canvas::{FAINT, INK, SOUND, TEXT, TITLE_HEIGHT, svg, text_width, write},
    main_cases,
};
use crate::{
    stats::median,
    summary::{CaseSummary, RunSummary},
};

const HEIGHT: u32 = 480;
/// Pixels between a point and its name.
const GAP: i32 = 10;

/// Where a case is.
struct Point<'a> {
    case: &'a CaseSummary,
    /// Peak memory on the GPU, GB.
    gigabytes: f64,
    /// Real tokens/s, and its interval.
    rate: f64,
    interval: Option<(f64, f64)>,
}

fn points(summary: &RunSummary) -> Vec<Point<'_>> {
    main_cases(summary)
        .filter_map(|case| {
            let valid = case.trials.iter().filter(|t| t.is_valid());
            let peaks: Vec<f64> = valid.filter_map(|t| t.metrics.peak_gpu_bytes).map(|b| b as f64).collect();
            let rate = case.real_tokens_per_s?;
            Some(Point { case, gigabytes: median(&peaks)? / 1e9, rate: rate.median, interval: rate.interval })
        })
        .collect()
}

/// Whether there is something to choose between: three arms or more with memory on a GPU.
pub(super) fn has_choice(summary: &RunSummary) -> bool {
    let mut arms: Vec<&str> = points(summary).iter().map(|p| p.case.arm.as_str()).collect();
    arms.dedup();
    arms.len() >= 3
}

/// Draws the points of all cases that have a valid trial on a GPU, ablations excepted. There must be one.
pub(super) fn tradeoff_svg(resolved: &Resolved, summary: &RunSummary) -> String {
    let points = points(summary);
    let most = |of: fn(&Point<'_>) -> f64| points.iter().map(of).fold(0.0, f64::max);
    let (widest, fastest) = (1.1 * most(|p| p.gigabytes), 1.15 * most(|p| p.rate));
    svg(HEIGHT, "Throughput over memory", |root| {
        let (_, area) = root.split_vertically(TITLE_HEIGHT);
        let mut chart = ChartBuilder::on(&area)
            .margin_top(12)
            .margin_left(12)
            .margin_right(24)
            .margin_bottom(10)
            .x_label_area_size(44)
            .y_label_area_size(76)
            .build_cartesian_2d(0.0..widest, 0.0..fastest)
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
            .y_label_formatter(&|y| format!("{y:.0}"))
            .x_desc("peak memory on the GPU, GB (left is better)")
            .y_desc("real tokens/s (up is better)")
            .draw()
            .expect(SOUND);
        let mut names: Vec<(i32, i32, i32)> = Vec::new();
        for p in &points {
            let colour = arm_colour(resolved, &p.case.arm);
            if let Some((low, high)) = p.interval {
                let line = PathElement::new([(p.gigabytes, low), (p.gigabytes, high)], INK.stroke_width(2));
                chart.draw_series([line]).expect(SOUND);
            }
            chart.draw_series([Circle::new((p.gigabytes, p.rate), 6, colour.filled())]).expect(SOUND);
            let (x, y) = chart.backend_coord(&(p.gigabytes, p.rate));
            let origin = area.get_base_pixel();
            let place = free(&names, &p.case.id, (x - origin.0, y - origin.1), area.dim_in_pixel().0 as i32);
            names.push(place);
            write(&area, &p.case.id, (place.0, place.2), TEXT - 2, HPos::Left, VPos::Center);
        }
    })
}

/// Left end, right end and height of a point's name, right of it if there is room and else left, below the names that it would
/// lie on.
fn free(names: &[(i32, i32, i32)], name: &str, (x, y): (i32, i32), width: i32) -> (i32, i32, i32) {
    let long = text_width(name) as i32;
    let left = if x + GAP + long < width { x + GAP } else { x - GAP - long };
    let line = TEXT + 2;
    let mut height = y;
    while names.iter().any(|(l, r, at)| left < *r && *l < left + long && (height - at).abs() < line) {
        height += line;
    }
    (left, left + long, height)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lie_on_one_another() {
        let first = free(&[], "none/16x2048", (100, 50), 800);
        assert_eq!(first.0, 110);
        let second = free(&[first], "swiglu/16x2048", (120, 52), 800);
        assert!(second.2 >= first.2 + TEXT);
        let right = free(&[], "none/16x2048", (790, 50), 800);
        assert!(right.1 <= 790);
    }
}
