//! Horizontal bars, because names of cases are long.

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, VPos},
};

pub(super) use super::canvas::Key;
use super::canvas::{
    Area, FAINT, INK, SOUND, TEXT, TITLE_HEIGHT, WIDTH, dot, fit, legend, legend_height, mark, svg,
    text_width, whisker, write,
};
use crate::format::grouped;

const ROW: u32 = 30;
/// Longest label, pixels.
const MAX_LABEL: u32 = WIDTH / 2;
const GROUP_GAP: u32 = 12;
const HALF_BAR: i32 = 9;
/// Below the bars: tick labels and the name of the axis.
const AXIS_HEIGHT: u32 = 56;

/// A plot of bars.
pub(super) struct BarPlot {
    /// Heading.
    pub title: String,
    /// Name and unit of the values.
    pub axis: String,
    /// Where bars begin.
    pub origin: f64,
    /// What follows the number of a tick.
    pub unit: &'static str,
    /// Legend.
    pub keys: Vec<Key>,
    /// From top to bottom.
    pub bars: Vec<Bar>,
}

/// One row.
pub(super) struct Bar {
    /// Bars of one group stand together.
    pub group: String,
    /// At the left.
    pub label: String,
    /// One after the other.
    pub segments: Vec<Segment>,
    /// Whisker.
    pub interval: Option<(f64, f64)>,
    /// Single trials.
    pub dots: Vec<f64>,
    /// A value to set against the bar.
    pub mark: Option<f64>,
    /// The figure, at the right of everything in the row.
    pub text: String,
}

/// Part of a bar.
pub(super) struct Segment {
    /// Length in the axis' unit; of the first, its end.
    pub value: f64,
    /// Fill.
    pub colour: RGBColor,
}

impl Bar {
    fn end(&self) -> f64 {
        self.segments.iter().map(|s| s.value).sum()
    }

    /// Every value that must lie inside the axis.
    fn extent(&self) -> impl Iterator<Item = f64> + '_ {
        let interval = self.interval.into_iter().flat_map(|(low, high)| [low, high]);
        self.dots.iter().copied().chain(interval).chain(self.mark).chain([self.end()])
    }
}

/// Values to pixels.
struct Scale {
    low: f64,
    high: f64,
    left: i32,
    right: i32,
}

impl Scale {
    fn x(&self, value: f64) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        self.left + (share * f64::from(self.right - self.left)).round() as i32
    }

    /// Round values some 100 pixels apart, and the decimals that tell them apart.
    fn ticks(&self) -> (Vec<f64>, usize) {
        let span = self.high - self.low;
        let magnitude = 10f64.powf((span / 5.0).log10().floor());
        let fitting = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * magnitude).find(|s| span / s <= 7.0);
        let step = fitting.unwrap_or(span);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        let decimals = (0..6).find(|&d| (step * 10f64.powi(d)).fract().abs() < 1e-6).unwrap_or(6);
        ((first..=last).map(|i| i as f64 * step).collect(), decimals as usize)
    }
}

impl BarPlot {
    /// Draws it. There must be a bar.
    pub(super) fn svg(&self) -> String {
        let legend_top = TITLE_HEIGHT;
        let top = legend_top + legend_height(&self.keys) + 8;
        let middles = self.middles(top);
        let bottom = middles.last().map_or(top, |y| y + ROW / 2);
        svg(bottom + AXIS_HEIGHT, &self.title, |area| {
            legend(area, &self.keys, legend_top);
            let scale = self.scale();
            self.axis(area, &scale, top as i32, bottom as i32);
            for (bar, y) in self.bars.iter().zip(middles) {
                self.bar(area, &scale, bar, y as i32);
            }
            let origin = scale.x(self.origin);
            let line = [(origin, top as i32), (origin, bottom as i32)];
            area.draw(&PathElement::new(line, INK.stroke_width(1))).expect(SOUND);
        })
    }

    /// Height of every bar's middle.
    fn middles(&self, top: u32) -> Vec<u32> {
        let mut y = top + ROW / 2;
        let mut previous: Option<&Bar> = None;
        let place = |bar| {
            if let Some(p) = previous.replace(bar) {
                y += ROW + if p.group == bar.group { 0 } else { GROUP_GAP };
            }
            y
        };
        self.bars.iter().map(place).collect()
    }

    fn scale(&self) -> Scale {
        let label = self.bars.iter().map(|b| text_width(&b.label)).max().unwrap_or(0);
        let text = self.bars.iter().map(|b| text_width(&b.text)).max().unwrap_or(0);
        let all = || self.bars.iter().flat_map(Bar::extent).chain([self.origin]).filter(|v| v.is_finite());
        let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
        let pad = if low < self.origin { (high - low) * 0.03 } else { 0.0 };
        // A run of equal values at the origin still needs an axis of some length.
        let high = if high - low > 1e-9 * high.abs() { high } else { low + 1.0 };
        Scale {
            low: low - pad,
            high,
            left: (label.min(MAX_LABEL) + 28) as i32,
            right: (WIDTH - text - 32) as i32,
        }
    }

    fn axis(&self, area: &Area<'_>, scale: &Scale, top: i32, bottom: i32) {
        let (ticks, decimals) = scale.ticks();
        for tick in ticks {
            let text = format!("{}{}", grouped(tick, decimals), self.unit);
            let x = scale.x(tick);
            area.draw(&PathElement::new([(x, top), (x, bottom)], FAINT.stroke_width(1))).expect(SOUND);
            write(area, &text, (x, bottom + 6), TEXT - 1, HPos::Center, VPos::Top);
        }
        let middle = (scale.left + scale.right) / 2;
        write(area, &self.axis, (middle, bottom + 30), TEXT, HPos::Center, VPos::Top);
    }

    fn bar(&self, area: &Area<'_>, scale: &Scale, bar: &Bar, y: i32) {
        write(area, &fit(&bar.label, MAX_LABEL), (scale.left - 12, y), TEXT, HPos::Right, VPos::Center);
        let mut from = self.origin;
        let mut to = 0.0;
        for segment in &bar.segments {
            to += segment.value;
            let (a, b) = (scale.x(from), scale.x(to));
            let corners = [(a.min(b), y - HALF_BAR), (a.max(b), y + HALF_BAR)];
            area.draw(&Rectangle::new(corners, segment.colour.filled())).expect(SOUND);
            from = to;
        }
        if let Some(value) = bar.mark {
            mark(area, (scale.x(value), y), HALF_BAR + 3);
        }
        if let Some((low, high)) = bar.interval {
            whisker(area, (scale.x(low), scale.x(high)), y);
        }
        for value in &bar.dots {
            dot(area, (scale.x(*value), y));
        }
        let end = bar.extent().chain([self.origin]).map(|v| scale.x(v)).max().unwrap_or(scale.left);
        write(area, &bar.text, (end + 10, y), TEXT, HPos::Left, VPos::Center);
    }
}
