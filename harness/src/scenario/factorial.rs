//! Designs that turn off many combinations of seams.

use chronibench_analysis::shapley::{coalitions, sampled_orders};
use chronibench_protocol::record::Factorial;

use super::{
    raw::{AblationDesign, RawAblation},
    source::Source,
};
use crate::error::{Exit, Result};

/// Most cases that one ablation may make: more is a mistake, or should be sampled.
const MAX_CASES: usize = 64;

/// Seed of sampled orders: the same scenario has the same cases everywhere.
const SEED: u64 = 0;

/// What is off in each case of an ablation, and the design, at the case with every seam off.
pub fn combinations(
    asked: &RawAblation,
    off: Vec<String>,
    source: &Source,
) -> Result<Vec<(String, Option<Factorial>)>> {
    let seams: Vec<String> = off.iter().filter(|s| *s != "all").cloned().collect();
    let orders = match asked.design {
        AblationDesign::OneOff => return Ok(off.into_iter().map(|seam| (seam, None)).collect()),
        AblationDesign::Factorial => Vec::new(),
        AblationDesign::Sampled => sampled_orders(seams.len(), asked.orders.max(1) as usize, SEED),
    };
    let n = seams.len();
    let wrong = |what: String, hint: &str| Err(source.error(Exit::Usage, asked.arm.place, what).hint(hint));
    if n < 2 {
        return wrong(format!("{n} seams leave nothing to divide"), "name at least two in `off`");
    }
    if orders.is_empty() && n >= 7 || orders.len() > MAX_CASES {
        return wrong(
            format!("{n} seams make too many combinations, more than {MAX_CASES}"),
            "take `design: sampled` with a few `orders`, or fewer seams in `off`",
        );
    }
    let measured = coalitions(n, &orders);
    let all = (1u32 << n) - 1;
    let name = |on: u32| {
        (0..n).filter(|i| on >> i & 1 == 0).map(|i| seams[i].as_str()).collect::<Vec<_>>().join("+")
    };
    let design = |on| (on == 0).then(|| Factorial { seams: seams.clone(), orders: orders.clone() });
    // Fewest seams off first; the base itself has none.
    let mut measured: Vec<u32> = measured.into_iter().filter(|on| *on != all).collect();
    measured.sort_by_key(|on| (n as u32 - on.count_ones(), *on));
    Ok(measured.into_iter().map(|on| (name(on), design(on))).collect())
}
