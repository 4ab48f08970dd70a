//! Two runs side by side, case by case: was one faster, and may that be said?
//!
//! Runs of two sessions are unpaired: each side's trials are resampled by themselves. Two cases of one run took turns, and are
//! paired by round. A difference is said to be seen only where the whole interval lies on one side of 1, and where there are
//! trials enough ([`FEWEST_FOR_A_CLAIM`]) to believe the interval.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    agreement::{F32, tolerance},
    asked::{Difference, differences, other_method},
    format::{estimate, number, or_dash, times},
    join::{ENVIRONMENT, entry},
    rounds::{self, memory_source, valid},
    stats::{Estimate, FEWEST_FOR_A_CLAIM, median_ratio},
    summary::{CaseSummary, RunSummary, TrialSummary},
};

/// Version of [`Across`].
pub const SCHEMA: &str = "chronibench.across/1";

/// What two runs come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Across {
    /// [`SCHEMA`].
    pub schema: String,
    /// The first side.
    pub a: String,
    /// The second side, whose figures are divided by the first's.
    pub b: String,
    /// Whether trials are paired by round.
    pub paired: bool,
    /// Cases of both.
    pub cases: Vec<CaseAcross>,
    /// Cases of one side alone.
    pub only: Vec<String>,
    /// What of machine and program differs: name, first, second.
    pub environment: Vec<(String, Value, Value)>,
}

/// One case on both sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseAcross {
    /// Case of the first side.
    pub case: String,
    /// Real tokens/s of the first side.
    pub a: Option<Estimate>,
    /// Real tokens/s of the second side.
    pub b: Option<Estimate>,
    /// Second over first.
    pub speed: Option<Estimate>,
    /// Peak memory, second over first.
    pub memory: Option<Estimate>,
    /// What that comes to.
    pub seen: Seen,
    /// Why it is not comparable, or what a verdict lacks.
    pub reasons: Vec<String>,
    /// Settings that the two were not asked alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

/// What a ratio of speeds comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// The whole interval lies above 1.
    Faster,
    /// The whole interval lies below 1.
    Slower,
    /// 1 lies in the interval.
    NoDifference,
    /// Fewer than [`FEWEST_FOR_A_CLAIM`] trials of a side, or pairs: an interval, if there is one, is too narrow to be believed.
    TooFew,
    /// The two did not do the same work, or a side has no VALID trial.
    NotComparable,
}

impl Seen {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Seen::Faster => "faster",
            Seen::Slower => "slower",
            Seen::NoDifference => "no difference seen",
            Seen::TooFew => "no verdict: too few trials",
            Seen::NotComparable => "not comparable",
        }
    }
}

/// One side: a name, its figures, its machine, and the one case that is meant, if one is.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// What the user called it.
    pub name: &'a str,
    /// Figures.
    pub summary: &'a RunSummary,
    /// `environment.json`.
    pub environment: &'a Value,
    /// The case; without one, every case that both have.
    pub case: Option<&'a str>,
}

/// Compares two sides. `paired` where both are cases of one run.
///
/// # Errors
/// A case that is named is not there, or the two have no case in common; says which there are.
pub fn across(a: Part<'_>, b: Part<'_>, paired: bool) -> Result<Across, String> {
    let pairs = pairs(a, b)?;
    let both = |id: &str| pairs.iter().any(|(x, y)| x.id == id || y.id == id);
    let whole = a.case.is_none() && b.case.is_none();
    let all = [a, b].into_iter().flat_map(|p| p.summary.cases.iter().map(move |c| (p.name, &c.id)));
    let only = all.filter(|(_, id)| whole && !both(id)).map(|(name, id)| format!("{name}: {id}"));
    let environment = ENVIRONMENT
        .into_iter()
        .map(|(name, at)| (name.to_string(), entry(a.environment, at), entry(b.environment, at)))
        .filter(|(_, x, y)| x != y);
    Ok(Across {
        schema: SCHEMA.into(),
        a: a.name.into(),
        b: b.name.into(),
        paired,
        cases: pairs.iter().map(|(x, y)| one(x, y, paired)).collect(),
        only: only.collect(),
        environment: environment.collect(),
    })
}

fn pairs<'a>(a: Part<'a>, b: Part<'a>) -> Result<Vec<(&'a CaseSummary, &'a CaseSummary)>, String> {
    let find = |p: Part<'a>, id: &str| p.summary.cases.iter().find(|c| c.id == id);
    let known = |p: Part<'_>| p.summary.cases.iter().map(|c| c.id.as_str()).collect::<Vec<_>>().join(", ");
    let named = |p: Part<'a>, id: &str| {
        find(p, id).ok_or_else(|| format!("{} has no case '{id}'; it has {}", p.name, known(p)))
    };
    match (a.case, b.case) {
        (Some(x), y) => Ok(vec![(named(a, x)?, named(b, y.unwrap_or(x))?)]),
        (None, Some(y)) => Ok(vec![(named(a, y)?, named(b, y)?)]),
        (None, None) => {
            let both: Vec<_> = a.summary.cases.iter().filter_map(|c| Some((c, find(b, &c.id)?))).collect();
            match both.is_empty() {
                false => Ok(both),
                true => Err(format!("no case in common: {} against {}", known(a), known(b))),
            }
        }
    }
}

fn one(a: &CaseSummary, b: &CaseSummary, paired: bool) -> CaseAcross {
    let differences = differences(&a.asked, &b.asked);
    let mut reasons = reasons(a, b);
    reasons.extend(other_method(&differences));
    let ratio = |of: &dyn Fn(&TrialSummary) -> Option<f64>| {
        if paired {
            return rounds::ratio(b, a, of);
        }
        let values = |c: &CaseSummary| valid(c).filter_map(of).collect::<Vec<f64>>();
        median_ratio(&values(b), &values(a))
    };
    let comparable = reasons.is_empty();
    let one_memory = memory_source(valid(a).chain(valid(b)).map(|t| &t.metrics)).is_some();
    let speed = ratio(&|t| t.metrics.real_tokens_per_s).filter(|_| comparable);
    let seen = match speed {
        None => Seen::NotComparable,
        Some(s) if s.n < FEWEST_FOR_A_CLAIM => {
            let of = if paired { "rounds of both" } else { "trials of a side" };
            reasons.push(format!("{} {of}, and a verdict needs {FEWEST_FOR_A_CLAIM}", s.n));
            Seen::TooFew
        }
        Some(s) => seen(s.interval),
    };
    CaseAcross {
        case: if a.id == b.id { a.id.clone() } else { format!("{} → {}", a.id, b.id) },
        a: a.real_tokens_per_s,
        b: b.real_tokens_per_s,
        memory: ratio(&|t| t.metrics.peak_memory().map(|m| m as f64)).filter(|_| comparable && one_memory),
        seen,
        speed,
        reasons,
        differences,
    }
}

fn seen(interval: Option<(f64, f64)>) -> Seen {
    match interval {
        Some((low, _)) if low > 1.0 => Seen::Faster,
        Some((_, high)) if high < 1.0 => Seen::Slower,
        _ => Seen::NoDifference,
    }
}

/// Why two cases did not do the same work.
fn reasons(a: &CaseSummary, b: &CaseSummary) -> Vec<String> {
    let mut reasons = Vec::new();
    for (side, c) in [("first", a), ("second", b)] {
        if c.valid == 0 {
            reasons.push(format!("the {side} run has no VALID trial of {}", c.id));
        }
    }
    let real = |c: &CaseSummary| valid(c).next().map(|t| t.metrics.timed_tokens.real);
    if let (Some(x), Some(y)) = (real(a), real(b))
        && x != y
    {
        reasons.push(format!("the first timed {x} real tokens, the second {y}"));
    }
    let (x, y) = (a.precision.as_ref(), b.precision.as_ref());
    let tolerance = x.or(y).zip(y.or(x)).map_or(F32, |(x, y)| tolerance(x, y));
    if let (Some(x), Some(y)) = (a.first_loss, b.first_loss)
        && (x - y).abs() > tolerance.loss * x.abs().max(y.abs())
    {
        reasons.push(format!("the first loss is {x:.5} and {y:.5}: other weights, batches or mathematics"));
    }
    reasons
}

/// Rows for a terminal or a CSV file, the first of them the heading.
pub fn rows(across: &Across) -> Vec<Vec<String>> {
    let heading = ["case", "first, tok/s", "second, tok/s", "second over first", "memory", "seen"];
    let row = |c: &CaseAcross| {
        let why = c.reasons.iter().map(|r| format!(": {r}")).collect::<String>();
        vec![
            c.case.clone(),
            or_dash(c.a.as_ref(), |e| estimate(e, number)),
            or_dash(c.b.as_ref(), |e| estimate(e, number)),
            or_dash(c.speed.as_ref(), |e| estimate(e, |r| format!("{r:.3}×"))),
            or_dash(c.memory.as_ref(), |e| times(e.median)),
            format!("{}{why}", c.seen.words()),
        ]
    };
    std::iter::once(heading.map(String::from).to_vec()).chain(across.cases.iter().map(row)).collect()
}
