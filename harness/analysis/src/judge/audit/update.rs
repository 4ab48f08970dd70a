//! The update fingerprint: AdamW's first update is the learning rate times the sign of the gradient, whatever the gradient's scale
//! and however it was clipped. So the weights alone tell at which rate every tensor moved.

use std::collections::BTreeMap;

use chronibench_protocol::{
    audit::{Findings, TensorUpdate},
    event::{Ready, TensorInfo},
    spec::Spec,
};

use super::{Audit, Audited, Check, Outcome, replay};
use crate::judge::some;

/// Inferred rate over the scheduled one that is let pass.
const RATE: (f64, f64) = (0.8, 1.25);

/// The same where the stored format hides most of an update.
const COARSE_RATE: (f64, f64) = (0.3, 3.0);

/// The same of the biases of queries and keys. Scores of fresh weights hardly matter to the loss, and softmax cancels a key's bias but
/// for the rotation: clipped gradients of 2e-7 are left, and the first update is the rate times `g / (g + ε)`. Measured under
/// ε = 1e-8: 0.94 to 1; in LLMQ, which takes no ε and acts as if it were 9e-8: 0.59 to 1.
const FAINT_RATE: (f64, f64) = (0.3, 1.25);

/// Share of a matrix that moves in the first step, at least; rows of an embedding that no token reads stay.
const LEAST_MOVED: f64 = 0.75;

/// Root mean square of the way over the sum of the rates: less than 1, as gradients change their sign. Of many steps less is let
/// pass: see [`travel`].
const TRAVEL: (f64, f64) = (0.15, 1.3);

/// More of a tensor than this that has no nearer number: an update of it is judged by the wider tolerance.
pub(super) const PARTLY: f64 = 0.1;

/// More of a tensor than this that has no nearer number: its update is rounding.
const MOSTLY: f64 = 0.5;

/// Standard deviations that a count may be off where rounding by chance moves few elements. A model has hundreds of tensors.
const CHANCE: f64 = 5.0;

pub(super) fn check(t: &Audited<'_>) -> Option<Check> {
    let updates = &t.found.updates;
    if updates.is_empty() || updates.iter().all(|u| u.expected <= 0.0) {
        return None;
    }
    let way = travel(&t.header.spec);
    let by_name: BTreeMap<&str, &TensorUpdate> = updates.iter().map(|u| (u.name.as_str(), u)).collect();
    let waits = |u: &TensorUpdate| {
        u.name.contains(".lora_A.")
            && by_name.get(u.name.replace(".lora_A.", ".lora_B.").as_str()).is_some_and(|b| b.from_zero)
    };
    let mut wrong: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    let mut ratios: Vec<f64> = Vec::new();
    let mut below: Vec<String> = Vec::new();
    for u in updates {
        let elements = t.log.ready.as_ref().map_or(0, |ready| elements(&ready.event, &u.name));
        if let Some(why) = fault(u, elements, waits(u), way, &mut ratios) {
            if is_rounding(u, t.found) {
                below.push(u.name.clone());
                continue;
            }
            let seen = u.first.map_or("-".into(), |f| format!("{:.3}×", f / u.expected));
            wrong.entry(why).or_default().push(format!("{} ({seen})", u.name));
        }
    }
    if wrong.is_empty() && ratios.is_empty() && below.is_empty() {
        return None;
    }
    ratios.sort_by(f64::total_cmp);
    let mut range = match (ratios.first(), ratios.last()) {
        (Some(a), Some(b)) => format!("{a:.2}–{b:.2}× the scheduled rate in {} tensors", ratios.len()),
        _ => "no tensor moved in the first step".into(),
    };
    if !below.is_empty() {
        range += &format!("; below rounding, as the reference's: {}", some(&below));
    }
    if wrong.is_empty() {
        // Where every update is lost to rounding, the weights tell nothing of the rate.
        let outcome = if ratios.is_empty() { Outcome::Unclear } else { Outcome::Held };
        return Some(Check::new(Audit::Update, outcome, range));
    }
    let told: Vec<String> =
        wrong.into_iter().map(|(why, names)| format!("{why}: {}", some(&names))).collect();
    Some(Check::new(Audit::Update, Outcome::Failed, format!("{} ({range})", told.join("; "))))
}

/// How far the audited steps may lead, over the sum of their rates; nothing to tell of a single step.
///
/// Of n steps of equal rate, gradients of random sign lead n^-½ as far as gradients of one sign: AdamW's own walk 0.35 at 12 steps,
/// 0.105 at 100. Rows of an embedding that are read once in n steps go 0.23 and 0.068. An arm that makes one step of n goes 1/n. The bound
/// is halfway between the walk and the single step, n^-¾, where that is less than [`TRAVEL`]'s: from 13 steps on. Under a schedule n is
/// (Σr)² / Σr², the number of steps of one rate that spread as much.
fn travel(spec: &Spec) -> Option<(f64, f64)> {
    let (steps, total) = (spec.to_run().total_steps(), spec.measure.total_steps());
    bounds(&(0..steps).map(|step| spec.train.lr_factor(step, total)).collect::<Vec<_>>())
}

fn bounds(rates: &[f64]) -> Option<(f64, f64)> {
    let (sum, squares) = rates.iter().fold((0.0, 0.0), |(sum, squares), r| (sum + r, squares + r * r));
    (rates.len() > 1 && squares > 0.0).then(|| (TRAVEL.0.min((sum * sum / squares).powf(-0.75)), TRAVEL.1))
}

fn elements(ready: &Ready, name: &str) -> u64 {
    ready.trainable.iter().find(|t| t.name == name).map_or(0, TensorInfo::numel)
}

/// Whether rounding by chance explains the rate: of a norm's 896 weights, whose neighbours in bf16 are hundreds of updates
/// away, two or three move in a step, and now and then eight.
fn is_chance(u: &TensorUpdate, elements: u64, ratio: f64) -> bool {
    let moved = u.first_moved * elements as f64;
    let expected = moved / ratio;
    u.too_coarse >= MOSTLY && (moved - expected).abs() <= CHANCE * expected.sqrt()
}

/// Rounding hides the update, and the replay shows that it hides the reference's as well: that is no arm's fault. An arm that moves
/// at another rate where the format could show it stays accused, whatever the reference does: the native arm is its own.
pub(super) fn is_rounding(u: &TensorUpdate, found: &Findings) -> bool {
    u.too_coarse > PARTLY && found.replay.as_ref().is_some_and(|r| replay::equal(r, &u.name))
}

/// What is wrong with a tensor's update; a sound first update adds its rate to `ratios`.
fn fault(
    u: &TensorUpdate,
    elements: u64,
    waits: bool,
    way: Option<(f64, f64)>,
    ratios: &mut Vec<f64>,
) -> Option<&'static str> {
    let within = |x: f64, (low, high): (f64, f64)| (low..=high).contains(&x);
    let coarse = u.too_coarse > PARTLY;
    if let Some(first) = u.first {
        if waits {
            // B is 0, so the gradient of A is 0 at the first step, and at no other.
            if u.first_moved > 0.01 {
                return Some("expected lora_A to wait for lora_B to leave 0, saw it move in the first step");
            }
        } else {
            let ratio = first / u.expected;
            if first <= 0.0 && u.too_coarse < MOSTLY {
                return Some(
                    "expected every trainable tensor to move in the first step, saw none of it move",
                );
            }
            let faint = [".q_proj.bias", ".k_proj.bias"].iter().any(|end| u.name.ends_with(end));
            let allowed = match faint {
                _ if coarse => COARSE_RATE,
                true => FAINT_RATE,
                false => RATE,
            };
            if u.too_coarse < MOSTLY || first > u.expected {
                if !within(ratio, allowed) && !is_chance(u, elements, ratio) {
                    return Some("expected the first update at the scheduled rate, saw another rate");
                }
                ratios.push(ratio);
            }
            let sparse = u.name.contains("embed_tokens") || u.name.contains("lm_head");
            if !coarse && !sparse && u.first_moved < LEAST_MOVED {
                return Some("expected the whole tensor to move in the first step, saw part of it stay");
            }
        }
    }
    let told = way.filter(|_| !coarse && u.moved > 0.0);
    if told.is_some_and(|way| !within(u.travel / u.expected_sum, way)) {
        return Some("expected the way from start to end to fit the sum of the rates, saw another length");
    }
    None
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// A tensor of bf16, of which so many elements moved in the first step.
    fn rounded(moved: f64, elements: u64, ratio: f64) -> TensorUpdate {
        TensorUpdate {
            name: "model.norm.weight".into(),
            expected: 1e-5,
            expected_sum: 1e-5,
            first: Some(1e-5 * ratio),
            first_moved: moved / elements as f64,
            travel: 4e-3,
            moved: moved / elements as f64,
            from_zero: false,
            too_coarse: 1.0,
        }
    }

    #[test]
    fn chance_explains_a_few_moves_and_not_many() {
        let wrong = |moved, elements, ratio| {
            fault(&rounded(moved, elements, ratio), elements, false, None, &mut Vec::new()).is_some()
        };
        // 8 where 2.4 are due; 20 where 2 are; a matrix at 3.3 times its rate.
        assert!(!wrong(8.0, 896, 3.3));
        assert!(wrong(20.0, 896, 10.0));
        assert!(wrong(150_000.0, 802_816, 3.3));
    }

    /// How far AdamW goes in steps of rate 1, root mean square over weights whose gradients `gradient` draws.
    fn walked(steps: i32, mut gradient: impl FnMut(i32) -> f64) -> f64 {
        let mut way = || {
            let (mut m, mut v, mut way) = (0.0, 0.0, 0.0);
            for step in 1..=steps {
                let g = gradient(step);
                m = 0.9 * m + 0.1 * g;
                v = 0.999 * v + 0.001 * g * g;
                way += m / (1.0 - 0.9f64.powi(step)) / (v / (1.0 - 0.999f64.powi(step))).sqrt().max(1e-12);
            }
            way * way
        };
        ((0..400).map(|_| way()).sum::<f64>() / 400.0).sqrt()
    }

    /// What a tensor of f32 comes to that went so far in steps of rate 1.
    fn went(travel: f64, steps: usize) -> Option<&'static str> {
        let u = TensorUpdate {
            expected: 1.0,
            expected_sum: steps as f64,
            first: Some(1.0),
            first_moved: 1.0,
            travel,
            moved: 1.0,
            too_coarse: 0.0,
            ..rounded(1.0, 1, 1.0)
        };
        fault(&u, 400, false, bounds(&vec![1.0; steps]), &mut Vec::new())
    }

    #[test]
    fn gradients_of_random_sign_are_honest_however_many_steps_are_audited() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for steps in [2, 4, 12, 30, 100, 300] {
            let walk = walked(steps, |_| if rng.random::<bool>() { 1.0 } else { -1.0 });
            assert_eq!(went(walk, steps as usize), None, "{steps} steps: {walk}");
            assert_eq!(went(f64::from(steps).sqrt(), steps as usize), None, "signs alone, {steps} steps");
            // A row of an embedding that is read once.
            let mut row = 0;
            let read = walked(steps, |step| {
                row += i32::from(step == 1);
                f64::from(u8::from(row % steps + 1 == step))
            });
            assert_eq!(went(read, steps as usize), None, "rare rows, {steps} steps: {read}");
        }
    }

    #[test]
    fn an_arm_that_leaves_out_its_steps_is_not_taken_for_a_random_walk() {
        // One update, and none after it.
        for steps in [8, 30, 100, 300] {
            assert!(went(1.0, steps).is_some(), "{steps} steps");
        }
        // No gradient at all.
        let still =
            TensorUpdate { first: Some(0.0), first_moved: 0.0, too_coarse: 0.0, ..rounded(0.0, 1, 1.0) };
        assert!(fault(&still, 400, false, bounds(&[1.0; 100]), &mut Vec::new()).is_some());
        // Twice the way that the rates allow.
        assert!(went(200.0, 100).is_some());
    }

    #[test]
    fn a_schedule_counts_as_the_steps_of_one_rate_that_spread_as_much() {
        assert_eq!(bounds(&[1.0; 4]), Some(TRAVEL));
        assert_eq!(bounds(&[1.0]), None);
        assert_eq!(bounds(&[0.0, 0.0]), None);
        let mut late = vec![0.0; 84];
        late.extend([0.5; 16]);
        assert!((bounds(&late).unwrap().0 - 0.125).abs() < 1e-12);
    }
}
