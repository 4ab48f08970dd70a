//! Throughput as seams are turned on one after the other. The order is in the title: another one gives other bars.

use super::{
    PADDING, PALETTE,
    bars::{Bar, BarPlot, Key, Segment},
};
use crate::{format::times, summary::RunSummary};

pub(super) fn waterfall(summary: &RunSummary) -> BarPlot {
    let several = summary.divisions.len() > 1;
    let mut bars = Vec::new();
    for of in &summary.divisions {
        let d = &of.division;
        let place = if several { format!(" ({})", of.of) } else { String::new() };
        let names = std::iter::once("all off".to_string()).chain(d.players.iter().map(|p| format!("+ {p}")));
        let mut before: f64 = 0.0;
        for (name, value) in names.zip(&d.cumulative) {
            // What was there, then what came: a loss shows as a shorter first part.
            let kept = before.min(*value);
            let colour = PALETTE[usize::from(*value < before)];
            bars.push(Bar {
                group: of.of.clone(),
                label: format!("{name}{place}"),
                segments: vec![
                    Segment { value: kept, colour: PADDING },
                    Segment { value: value - kept, colour },
                ],
                interval: None,
                dots: Vec::new(),
                mark: None,
                text: times(*value),
            });
            before = *value;
        }
    }
    let order = summary.divisions.first().map(|d| d.division.players.join(", ")).unwrap_or_default();
    BarPlot {
        title: format!("Seams turned on in this order: {order}"),
        axis: "throughput relative to all seams unfused, so far".into(),
        origin: 0.0,
        unit: "×",
        keys: vec![Key::Area("this seam".into(), PALETTE[0]), Key::Area("those before it".into(), PADDING)],
        bars,
    }
}
