//! What the weights alone tell of an update, read from the files by the harness: the rate that a tensor really moved at, and
//! whether it went the way that the reference went.

use std::path::Path;

use chronibench_protocol::{
    Spec,
    audit::{TensorAgreement, TensorUpdate},
    event::TensorInfo,
    spec::Method,
};

use crate::{error::Result, weights::Weights};

/// Weights of an arm before, after the first step and after the last.
pub struct Saved<'a> {
    /// Starting weights: the model's, and the adapters'.
    pub start: &'a [&'a Path],
    /// After the first step, if the arm wrote them.
    pub first: Option<&'a Path>,
    /// After the last.
    pub last: &'a Path,
}

/// Shares of the expected rate under which an element counts as unmoved: what rounding and an inexact decay leave.
const STILL: f64 = 0.01;

/// Opens weights that an arm saved, which must have every trainable tensor; why not, in words.
pub fn complete(path: &Path, trainable: &[TensorInfo]) -> std::result::Result<Weights, String> {
    if !path.is_file() {
        return Err("it saved no weights".into());
    }
    let weights = Weights::open(path).map_err(|e| format!("its weights cannot be read: {}", e.what))?;
    match trainable.iter().find(|t| !weights.has(t)) {
        Some(lost) => Err(format!("its weights lack {}, or have it in another shape", lost.name)),
        None => Ok(weights),
    }
}

/// Why the weights after the first step tell nothing: an arm that keeps them back could step at any rate.
pub fn lacking(first: &Path, trainable: &[TensorInfo]) -> Option<String> {
    let why = complete(first, trainable).err()?;
    Some(format!("expected the weights after the first step of the audit trial, saw none to judge: {why}"))
}

/// How every trainable tensor moved, and how that compares with a reference's `first` and `last` weights.
///
/// # Errors
/// A file cannot be read. A tensor that one of them lacks is left out: the comparison of all tensors tells of it.
pub fn look(
    spec: &Spec,
    trainable: &[TensorInfo],
    saved: &Saved<'_>,
    reference: Option<(&Path, &Path)>,
) -> Result<(Vec<TensorUpdate>, Vec<TensorAgreement>)> {
    let open = |p: &Path| Weights::open(p);
    let start = saved.start.iter().map(|p| open(p)).collect::<Result<Vec<_>>>()?;
    let first = saved.first.map(open).transpose()?;
    let last = open(saved.last)?;
    let reference = reference.map(|(a, b)| Ok((open(a)?, open(b)?))).transpose()?;
    let (mut updates, mut agreements) = (Vec::new(), Vec::new());
    for t in trainable {
        let Some(before) = start.iter().find(|w| w.has(t)) else { continue };
        if !last.has(t) {
            continue;
        }
        let before = before.read(&t.name)?;
        let after = last.read(&t.name)?;
        let one = match first.as_ref().filter(|w| w.has(t)) {
            Some(w) => Some(w.read(&t.name)?),
            None => None,
        };
        updates.push(update(Rates::of(spec, t), t, &before, one.as_deref(), &after));
        if let Some((r_first, r_last)) = reference.as_ref().filter(|(a, b)| a.has(t) && b.has(t)) {
            let (r_one, r_after) = (r_first.read(&t.name)?, r_last.read(&t.name)?);
            let (first_cosine, first_ratio) = match &one {
                Some(one) => agreement(&before, one, &r_one),
                None => (None, None),
            };
            let (cosine, ratio) = agreement(&before, &after, &r_after);
            agreements.push(TensorAgreement {
                name: t.name.clone(),
                first_cosine,
                first_ratio,
                cosine,
                ratio,
            });
        }
    }
    Ok((updates, agreements))
}

/// What the schedule has for a tensor.
#[derive(Clone, Copy, Debug)]
struct Rates {
    first: f64,
    sum: f64,
    decay: f64,
}

impl Rates {
    fn of(spec: &Spec, t: &TensorInfo) -> Self {
        let ratio = match &spec.method {
            Method::Lora(lora) if t.name.contains(".lora_B.") => lora.loraplus_lr_ratio,
            _ => 1.0,
        };
        let total = spec.measure.total_steps();
        let rate = |step: u32| spec.train.learning_rate * ratio * spec.train.lr_factor(step, total);
        let steps = spec.to_run().total_steps();
        let first = (0..total).map(rate).find(|r| *r > 0.0).unwrap_or(0.0);
        // Decay is for matrices alone.
        let decay = if t.shape.len() > 1 { spec.train.weight_decay } else { 0.0 };
        Self { first, sum: (0..steps).map(rate).sum(), decay }
    }
}

fn update(rates: Rates, t: &TensorInfo, start: &[f32], first: Option<&[f32]>, last: &[f32]) -> TensorUpdate {
    // Rows of an embedding that no token reads have no update at all.
    let unread = t.name.contains("embed_tokens") || t.name.contains("lm_head");
    let columns = if unread { *t.shape.last().unwrap_or(&1) } else { start.len() };
    let coarse = is_bf16(start) && is_bf16(last);
    let one = first.map(|first| Way::new(start, first, rates.first, rates.decay));
    let whole = Way::new(start, last, rates.sum, rates.decay);
    TensorUpdate {
        name: t.name.clone(),
        expected: rates.first,
        expected_sum: rates.sum,
        first: one.as_ref().map(|w| if coarse { w.mean_of_rows(columns) } else { w.median() }),
        first_moved: one.as_ref().map_or(0.0, Way::share),
        travel: whole.root_mean_square(),
        moved: whole.share(),
        from_zero: start.iter().all(|x| *x == 0.0),
        too_coarse: if coarse {
            too_coarse(start, rates.first, BF16)
        } else {
            too_coarse(start, rates.first, F32)
        },
    }
}

/// How far every element went, without its decay; 0 for one that stayed.
struct Way(Vec<f32>);

impl Way {
    fn new(from: &[f32], to: &[f32], rate: f64, decay: f64) -> Self {
        let shrink = rate * decay;
        let far = |(a, b): (&f32, &f32)| {
            let (a, b) = (f64::from(*a), f64::from(*b));
            let far = (b - a + shrink * a).abs();
            // The last digit of the element itself is rounding.
            let still = (STILL * rate).max(a.abs() * f64::from(f32::EPSILON));
            if far > still { far as f32 } else { 0.0 }
        };
        Self(from.iter().zip(to).map(far).collect())
    }

    fn moved(&self) -> Vec<f32> {
        self.0.iter().copied().filter(|f| *f != 0.0).collect()
    }

    fn share(&self) -> f64 {
        self.moved().len() as f64 / self.0.len().max(1) as f64
    }

    /// Median over what moved.
    fn median(&self) -> f64 {
        let mut moved = self.moved();
        let middle = moved.len() / 2;
        if moved.is_empty() {
            return 0.0;
        }
        f64::from(*moved.select_nth_unstable_by(middle, f32::total_cmp).1)
    }

    /// Mean over the rows in which something moved. Rounding by chance moves few elements far: right on average alone.
    fn mean_of_rows(&self, columns: usize) -> f64 {
        let rows = self.0.chunks(columns.max(1)).filter(|row| row.iter().any(|f| *f != 0.0));
        let (sum, n) = rows.fold((0.0, 0), |(sum, n), row| {
            (sum + row.iter().map(|f| f64::from(*f)).sum::<f64>(), n + row.len())
        });
        if n == 0 { 0.0 } else { sum / n as f64 }
    }

    fn root_mean_square(&self) -> f64 {
        let moved = self.moved();
        let sum: f64 = moved.iter().map(|f| f64::from(*f).powi(2)).sum();
        if moved.is_empty() { 0.0 } else { (sum / moved.len() as f64).sqrt() }
    }
}

fn is_bf16(values: &[f32]) -> bool {
    values.iter().all(|v| v.to_bits() & 0xffff == 0) && values.iter().any(|v| *v != 0.0)
}

/// A format's numbers between a power of two and the next, and the distance of two of them, over the rate, that hides an update.
type Format = (f64, f64);

/// The native arm rounds by chance: the mean over many elements is right up to twice the rate and beyond.
const BF16: Format = (128.0, 2.0);

/// Rounds to the nearest: half of such a distance is a fifth of the rate, which is what the fingerprint lets pass.
const F32: Format = (8_388_608.0, 0.4);

/// Share of the elements whose neighbours are so far away that the update is lost in rounding.
fn too_coarse(values: &[f32], rate: f64, (numbers, share): Format) -> f64 {
    let gap = |v: &f32| f64::from(v.abs()).log2().floor().exp2() / numbers;
    let coarse = values.iter().filter(|v| **v != 0.0 && gap(v) > share * rate).count();
    coarse as f64 / values.len().max(1) as f64
}

/// Cosine of two ways from one start, and the length of the first over the second's; nothing where neither moved.
fn agreement(start: &[f32], arm: &[f32], reference: &[f32]) -> (Option<f64>, Option<f64>) {
    let (mut dot, mut a2, mut r2) = (0.0, 0.0, 0.0);
    for ((s, a), r) in start.iter().zip(arm).zip(reference) {
        let (a, r) = (f64::from(*a) - f64::from(*s), f64::from(*r) - f64::from(*s));
        dot += a * r;
        a2 += a * a;
        r2 += r * r;
    }
    match (a2 > 0.0, r2 > 0.0) {
        (false, false) => (None, None),
        (true, true) => (Some(dot / (a2 * r2).sqrt()), Some((a2 / r2).sqrt())),
        // One of them stayed where it was. JSON has no infinity.
        (arm, _) => (Some(0.0), Some(if arm { f64::MAX } else { 0.0 })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates { first: 1e-3, sum: 4e-3, decay: 0.1 };

    fn tensor(n: usize) -> TensorInfo {
        TensorInfo { name: "w".into(), shape: vec![n / 8, 8] }
    }

    /// AdamW's first update with gradients of either sign, some of them 0.
    fn stepped(start: &[f32], rate: f64, decay: f64, round: fn(f32) -> f32) -> Vec<f32> {
        let sign = |i: usize| [1.0, -1.0, 1.0, 1.0, -1.0][i % 5];
        let step = |(i, x): (usize, &f32)| {
            let x = f64::from(*x);
            round((x - rate * decay * x - rate * sign(i)) as f32)
        };
        start.iter().enumerate().map(step).collect()
    }

    fn start(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 500.0).collect()
    }

    fn bf16(x: f32) -> f32 {
        f32::from_bits((x.to_bits() + 0x8000) & 0xffff_0000)
    }

    #[test]
    fn the_rate_is_found_under_weight_decay() {
        for rate in [1e-3, 1.6e-2, 6.25e-5] {
            let (a, t) = (start(400), tensor(400));
            let b = stepped(&a, rate, RATES.decay, |x| x);
            let u = update(RATES, &t, &a, Some(&b), &b);
            assert!((u.first.unwrap() / rate - 1.0).abs() < 0.03, "{rate} {u:?}");
            assert_eq!(u.first_moved, 1.0);
        }
    }

    #[test]
    fn decay_alone_is_no_movement() {
        let (a, t) = (start(400), tensor(400));
        let b: Vec<f32> = a.iter().map(|x| (f64::from(*x) * (1.0 - 1e-4)) as f32).collect();
        let u = update(RATES, &t, &a, Some(&b), &b);
        assert_eq!((u.first, u.first_moved), (Some(0.0), 0.0));
    }

    #[test]
    fn rounding_to_bf16_leaves_the_rate_on_average() {
        let a: Vec<f32> = start(8000).into_iter().map(bf16).collect();
        let rates = Rates { decay: 0.0, ..RATES };
        let mut seed = 1u32;
        let exact = stepped(&a, 1e-5, 0.0, |x| x);
        // Rounding by chance: up or down with the probability that keeps the mean.
        let by_chance = exact.iter().map(|x| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits((x.to_bits() + (seed >> 16)) & 0xffff_0000)
        });
        let b: Vec<f32> = by_chance.collect();
        let u = update(Rates { first: 1e-5, ..rates }, &tensor(8000), &a, Some(&b), &b);
        assert!((u.first.unwrap() / 1e-5 - 1.0).abs() < 0.15, "{u:?}");
        assert!(u.too_coarse > 0.9, "{u:?}");
    }

    #[test]
    fn a_rate_below_the_rounding_of_f32_is_told_from_a_tensor_that_does_not_train() {
        // A norm's weights, whose neighbours in f32 lie 6e-8 and 1.2e-7 away.
        let (a, t) = (vec![1.0f32; 64], tensor(64));
        for (rate, coarse) in [(1e-8, 1.0), (1e-7, 1.0), (1e-5, 0.0)] {
            let b = stepped(&a, rate, 0.0, |x| x);
            let u = update(Rates { first: rate, sum: rate, decay: 0.0 }, &t, &a, Some(&b), &b);
            assert_eq!(u.too_coarse, coarse, "{rate}: {u:?}");
        }
    }

    #[test]
    fn agreement_knows_direction_and_length() {
        let a = start(64);
        let b = stepped(&a, 1e-3, 0.0, |x| x);
        let back: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a - 2.0 * (b - a)).collect();
        let (cosine, ratio) = agreement(&a, &b, &b);
        assert!((cosine.unwrap() - 1.0).abs() < 1e-9 && (ratio.unwrap() - 1.0).abs() < 1e-9);
        let (cosine, ratio) = agreement(&a, &back, &b);
        assert!(cosine.unwrap() < -0.999 && (ratio.unwrap() - 2.0).abs() < 1e-2);
        assert_eq!(agreement(&a, &a, &a), (None, None));
        assert_eq!(agreement(&a, &a, &b), (Some(0.0), Some(0.0)));
    }
}
