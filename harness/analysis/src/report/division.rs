//! The section that divides a gain among seams.

use super::{
    markdown::{code, heading, image, table},
    plots::Plot,
};
use crate::{
    format::times,
    shapley::Factor,
    stats::FEWEST_FOR_A_CLAIM,
    summary::{DivisionSummary, RunSummary},
};

/// Shapley values, interactions, and the waterfall with its order; empty without a design.
pub(super) fn division(summary: &RunSummary) -> String {
    let parts: String = summary.divisions.iter().map(|d| one(d, rounds(summary, &d.of))).collect();
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

/// Rounds that every case of a design has, at most.
fn rounds(summary: &RunSummary, of: &str) -> usize {
    let off = summary.ablations.iter().filter(|a| a.of == of).map(|a| a.case.as_str());
    let valid = |id: &str| summary.cases.iter().find(|c| c.id == id).map_or(0, |c| c.valid);
    off.chain([of]).map(valid).min().unwrap_or(0)
}

/// The interval of a factor resamples rounds, and of a few of them it is too narrow for 95 %.
fn factor_heading(rounds: usize) -> String {
    match rounds {
        0 | 1 => "factor".into(),
        n if n < FEWEST_FOR_A_CLAIM => format!("factor [bootstrap of {n} rounds]"),
        _ => "factor [95 %]".into(),
    }
}

fn one(of: &DivisionSummary, rounds: usize) -> String {
    let d = &of.division;
    let mut rows = vec![heading(&["seam", &factor_heading(rounds)])];
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
