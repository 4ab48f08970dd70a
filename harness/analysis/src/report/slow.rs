//! Steps that are slow again and again, in words.

use super::markdown::{code, plain};
use crate::{
    compare::Compared,
    format::{estimate, number, percent, times},
    slow::{SLOW, SlowSteps},
    summary::RunSummary,
};

/// What is said of the cases that have such steps; nothing where none has.
pub(super) fn of_cases(summary: &RunSummary) -> String {
    let told: String =
        cases(summary).map(|(id, slow)| format!("- {}: {}\n", code(id), words(slow))).collect();
    match told.is_empty() {
        true => told,
        false => format!(
            "Timed steps that are slow in most trials, over {SLOW} times the median time of a slot:\n\n{told}\nA program that compiles or tunes \
             itself for a new shape has such steps. Its figures have them; raise `measure.untimed_steps` to leave them out.\n\n"
        ),
    }
}

/// The ratios that such steps are in.
pub(super) fn of_comparisons(summary: &RunSummary) -> String {
    let told: String =
        ratios(summary).map(|(label, words)| format!("- {}: {words}\n", plain(label))).collect();
    if told.is_empty() { told } else { format!("\n{told}") }
}

/// The same in lines for a terminal.
pub(super) fn lines(summary: &RunSummary) -> Vec<String> {
    let cases = cases(summary).map(|(id, slow)| format!("slow steps of {id}: {}", words(slow)));
    cases.chain(ratios(summary).map(|(label, words)| format!("{label}: {words}"))).collect()
}

fn cases(summary: &RunSummary) -> impl Iterator<Item = (&str, &SlowSteps)> {
    summary.cases.iter().filter_map(|c| Some((c.id.as_str(), c.slow_steps.as_ref()?)))
}

/// Label of a comparison, and its ratio without these steps.
fn ratios(summary: &RunSummary) -> impl Iterator<Item = (&str, String)> {
    let comparisons = summary.comparisons.iter().map(|c| (c.label.as_str(), &c.result));
    let ablations = summary.ablations.iter().map(|a| (a.case.as_str(), &a.result));
    comparisons.chain(ablations).filter_map(|(label, result)| Some((label, without(result)?)))
}

fn without(result: &Compared) -> Option<String> {
    let (with, without) = (result.speed.as_ref()?, result.speed_without_slow_steps.as_ref()?);
    Some(format!(
        "{}, and {} if the steps that are slow in most trials took as long as the median one",
        estimate(with, times),
        estimate(without, times)
    ))
}

fn words(slow: &SlowSteps) -> String {
    let step = |s: &crate::slow::SlowStep| {
        format!(
            "step {} takes {} in {} of {} trials ({} s at the median)",
            s.step,
            span(s.seconds, number, " s"),
            s.trials,
            slow.of,
            number(s.usual_s)
        )
    };
    let steps: Vec<String> = slow.steps.iter().map(step).collect();
    let rate = slow.real_tokens_per_s_without.as_ref().map(|e| estimate(e, number));
    format!(
        "{}; {} of the timed time; {} real tokens/s without",
        steps.join(", "),
        span(slow.share, |x| percent(x).trim_end_matches(" %").to_string(), " %"),
        rate.unwrap_or_default()
    )
}

/// `1.42 to 1.71 s`, or one figure where both ends read alike.
fn span((least, most): (f64, f64), show: impl Fn(f64) -> String, unit: &str) -> String {
    match (show(least), show(most)) {
        (a, b) if a == b => format!("{a}{unit}"),
        (a, b) => format!("{a} to {b}{unit}"),
    }
}
