//! The independent evaluation: under the weights that the arm saved, samples that nobody trained on have a lower loss by the
//! harness's own forward pass, and as low a loss as under the reference's weights.

use super::{Audit, Audited, Check, Outcome};

/// Standard errors by which a loss must have risen to be held against an arm, or fallen to speak for it.
const Z: f64 = 3.0;

/// Share of the reference's fall that an equal arm may differ by, in f32 and else.
const SHARE: (f64, f64) = (0.02, 0.3);

/// A relative difference that rounding alone makes.
const ROUNDING: f64 = 1e-5;

pub(super) fn check(t: &Audited<'_>) -> Option<Check> {
    let p = t.found.probe.as_ref()?;
    let mut figure = format!("unseen loss {:.4} → {:.4}", p.before, p.after);
    if let Some(reference) = p.reference {
        figure += &format!(" (reference {reference:.4})");
    }
    let failed = |what: String| Some(Check::new(Audit::Probe, Outcome::Failed, what));
    if !p.after.is_finite() {
        return failed(format!("expected a finite loss of unseen samples, saw {}", p.after));
    }
    let fall = p.before - p.after;
    if fall == 0.0 && p.reference == Some(p.before) {
        let what = format!("below rounding, as the reference's: {figure}");
        return Some(Check::new(Audit::Probe, Outcome::Unclear, what));
    }
    if fall == 0.0 {
        return failed(format!(
            "expected the loss of unseen samples to change, saw {:.6} before and after",
            p.after
        ));
    }
    if let Some(reference) = p.reference {
        let share = if t.fine { SHARE.0 } else { SHARE.1 };
        let allowed = share * (p.before - reference).abs() + ROUNDING * p.before;
        // An arm that loses updates to rounding learns less than the reference, never more.
        let off = if t.stalls { reference - p.after } else { (p.after - reference).abs() };
        if off > allowed {
            return failed(format!(
                "expected the loss of unseen samples to be the reference's, saw: {figure}"
            ));
        }
    }
    if fall < -Z * p.std_error {
        // The same steps by the reference raise it as much: a rate too high, not an arm that lies.
        let outcome = if p.reference.is_some() { Outcome::Unclear } else { Outcome::Failed };
        return Some(Check::new(Audit::Probe, outcome, format!("expected a fall, saw: {figure}")));
    }
    let outcome = if fall > Z * p.std_error { Outcome::Held } else { Outcome::Unclear };
    Some(Check::new(Audit::Probe, outcome, figure))
}
