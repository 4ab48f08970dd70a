//! The section that divides a gain among seams.

use super::{
    markdown::{code, heading, image, table},
    plots::Plot,
};
use crate::{
    format::times,
    shapley::Factor,
    summary::{DivisionSummary, RunSummary},
};

/// Shapley values, interactions, and the waterfall with its order; empty without a design.
pub(super) fn division(summary: &RunSummary) -> String {
    let parts: String = summary.divisions.iter().map(one).collect();
    match parts.is_empty() {
        true => parts,
        false => format!(
            "\n### The gain divided\n\nShapley values: the mean of what a seam's fused variant brings over the orders in which seams can be turned on. These factors multiply to the total.\n{parts}\n{}",
            image(
                Plot::Waterfall.file(),
                "Throughput as seams are turned on, in the order that is written beside the bars"
            )
        ),
    }
}

fn one(of: &DivisionSummary) -> String {
    let d = &of.division;
    let mut rows = vec![heading(&["seam", "factor [95 %]"])];
    rows.extend(d.players.iter().zip(&d.factors).map(|(name, f)| vec![code(name), factor(f)]));
    rows.push(vec!["all".into(), factor(&d.total)]);
    let orders = match d.orders.len() {
        0 => format!("all {} combinations", 1u32 << d.players.len()),
        n => format!("{n} sampled orders"),
    };
    let mut out = format!("\n{}, {orders}:\n\n{}", code(&of.of), table(&rows));
    let unlike_one = |f: &Factor| f.interval.is_some_and(|(low, high)| low > 1.0 || high < 1.0);
    let told: Vec<String> = d
        .interactions
        .iter()
        .filter(|(_, _, f)| unlike_one(f))
        .map(|(i, j, f)| format!("- {} with {}: {}\n", code(&d.players[*i]), code(&d.players[*j]), factor(f)))
        .collect();
    if !told.is_empty() {
        out +=
            &format!("\nPairs that bring more (above 1) or less together than apart:\n\n{}", told.concat());
    } else if d.orders.is_empty() {
        out += "\nNo pair of seams brings more or less together than apart, as far as the intervals tell.\n";
    }
    out
}

fn factor(f: &Factor) -> String {
    match f.interval {
        Some((low, high)) => format!("{} [{}, {}]", times(f.factor), times(low), times(high)),
        None => times(f.factor),
    }
}
