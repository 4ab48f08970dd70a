//! Contamination: with another first document in the row, nothing changes for the second.

use super::{Audit, Audited, Check, Outcome};

/// Relative difference of the two losses, in f32 and else.
const LOSS: (f64, f64) = (1e-6, 2e-3);

/// Distance of a tensor's two updates over their length, in f32 and else. Signs of gradients near 0 may change where sums
/// have no fixed order.
const DISTANCE: (f64, f64) = (0.1, 0.6);

pub(super) fn check(t: &Audited<'_>) -> Option<Check> {
    let i = t.found.isolation.as_ref()?;
    let pick = |(fine, coarse): (f64, f64)| if t.fine { fine } else { coarse };
    let gap = (i.losses[0] - i.losses[1]).abs() / i.losses[0].abs().max(f64::MIN_POSITIVE);
    let figure = format!("another neighbour moves the loss by {gap:.0e}, updates by {:.0e}", i.distance);
    let held = gap <= pick(LOSS) && i.distance <= pick(DISTANCE);
    Some(match held {
        true => Check::new(Audit::Isolation, Outcome::Held, figure),
        false => {
            let at = if i.tensor.is_empty() { String::new() } else { format!(" (most in {})", i.tensor) };
            let what = format!("expected documents of one row not to see each other, saw: {figure}{at}");
            Check::new(Audit::Isolation, Outcome::Failed, what)
        }
    })
}
