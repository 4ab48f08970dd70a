//! The division of an ablation's gain among its seams.

use std::collections::BTreeMap;

use chronibench_protocol::record::Factorial;
use serde::{Deserialize, Serialize};

use crate::{
    compare::Side,
    shapley::{Coalition, Division, divide},
};

/// How the gain of all seams of a case is divided among them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DivisionSummary {
    /// Case with every seam on.
    pub of: String,
    /// The division.
    #[serde(flatten)]
    pub division: Division,
}

impl DivisionSummary {
    /// Name of the case with every seam off.
    pub fn all_off(&self) -> String {
        self.division.players.join("+")
    }
}

/// One division for every design whose cases have run.
pub(crate) fn divisions(sides: &[Side<'_>]) -> Vec<DivisionSummary> {
    let designs = sides.iter().filter_map(|s| {
        let ablation = s.case.ablation.as_ref()?;
        Some((ablation.of.as_str(), ablation.design.as_ref()?))
    });
    designs.filter_map(|(of, design)| division(sides, of, design)).collect()
}

fn division(sides: &[Side<'_>], of: &str, design: &Factorial) -> Option<DivisionSummary> {
    let mut rounds: BTreeMap<u32, BTreeMap<Coalition, f64>> = BTreeMap::new();
    for side in sides {
        let Some(on) = coalition(side, of, &design.seams) else { continue };
        for (log, metrics) in &side.valid {
            if let (Some(header), Some(speed)) = (&log.header, metrics.real_tokens_per_s) {
                rounds.entry(header.round).or_default().insert(on, speed);
            }
        }
    }
    let rounds: Vec<_> = rounds.into_values().collect();
    let division = divide(&design.seams, &design.orders, &rounds)?;
    Some(DivisionSummary { of: of.to_string(), division })
}

/// Which seams are on in a case of the design; `None` for a case of another one.
fn coalition(side: &Side<'_>, of: &str, seams: &[String]) -> Option<Coalition> {
    let all: Coalition = (1 << seams.len()) - 1;
    if side.case.id == of {
        return Some(all);
    }
    let ablation = side.case.ablation.as_ref().filter(|a| a.of == of)?;
    let mut on = all;
    for off in ablation.off.split('+') {
        on &= !(1 << seams.iter().position(|s| s == off)?);
    }
    Some(on)
}
