//! Numbers for people.

use chronibench_protocol::record::Verdict;

use crate::stats::{Estimate, FEWEST_FOR_A_CLAIM};

/// The name of a verdict, as stored.
pub(crate) fn verdict(v: Option<Verdict>) -> &'static str {
    match v {
        None => "NOT RUN",
        Some(Verdict::Valid) => "VALID",
        Some(Verdict::Invalid) => "INVALID",
        Some(Verdict::NotComparable) => "NOT_COMPARABLE",
        Some(Verdict::Error) => "ERROR",
        Some(Verdict::Timeout) => "TIMEOUT",
    }
}

/// What stands where there is no figure.
pub(crate) const NONE: &str = "–";

/// `f` of a figure, or a dash.
pub(crate) fn or_dash<T>(value: Option<T>, f: impl Fn(T) -> String) -> String {
    value.map_or(NONE.into(), f)
}

/// `12,345`, and three significant digits below 100.
pub(crate) fn number(x: f64) -> String {
    if x.abs() < 9.995 {
        return format!("{x:.2}");
    }
    if x.abs() < 99.95 {
        return format!("{x:.1}");
    }
    grouped(x, 0)
}

/// With this many decimals, and a comma between groups of three digits before them.
pub(crate) fn grouped(x: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", x.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::from(if x < 0.0 { "-" } else { "" });
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out + rest
}

/// Mebibytes.
pub(crate) fn mib(bytes: f64) -> String {
    format!("{} MiB", number(bytes / (1 << 20) as f64))
}

/// `87.3 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `1.52×`; of small ratios three digits, `0.0251×`.
pub fn times(x: f64) -> String {
    // Digits behind the point: two, and one more for every zero there.
    let digits = if x > 0.0 && x < 0.1 { (2.0 - x.log10().floor()).min(9.0) as usize } else { 2 };
    format!("{x:.digits$}×")
}

/// What the intervals of these estimates are, in two or three words; `None` where there is none. A bootstrap's interval of fewer than
/// [`FEWEST_FOR_A_CLAIM`] values is their range, and is called so.
pub(crate) fn interval_name<'a>(estimates: impl IntoIterator<Item = &'a Estimate>) -> Option<String> {
    let mut values: Vec<usize> =
        estimates.into_iter().filter(|e| e.interval.is_some()).map(|e| e.n).collect();
    values.sort_unstable();
    let (fewest, most) = (*values.first()?, *values.last()?);
    Some(match (fewest < FEWEST_FOR_A_CLAIM, most < FEWEST_FOR_A_CLAIM) {
        (false, _) => "95 %".into(),
        (true, false) => format!("95 %, or range of fewer than {FEWEST_FOR_A_CLAIM}"),
        (true, true) if fewest == most => format!("range of {most}"),
        (true, true) => format!("range of {fewest} to {most}"),
    })
}

/// The name of a column of estimates, with what its brackets hold.
pub(crate) fn bracketed<'a>(name: &str, estimates: impl IntoIterator<Item = &'a Estimate>) -> String {
    interval_name(estimates).map_or_else(|| name.into(), |what| format!("{name} [{what}]"))
}

/// `median [low, high]`.
pub(crate) fn estimate(e: &Estimate, f: impl Fn(f64) -> String) -> String {
    match e.interval {
        Some((low, high)) => format!("{} [{}, {}]", f(e.median), f(low), f(high)),
        None => f(e.median),
    }
}

#[cfg(test)]
mod tests {
    use super::times;

    #[test]
    fn small_ratios_keep_their_digits() {
        let told = [1.516, 0.1, 0.0913, 0.02506, 0.004, 0.0].map(times);
        assert_eq!(told, ["1.52×", "0.10×", "0.0913×", "0.0251×", "0.00400×", "0.00×"]);
    }
}
