//! Which token comes next, by its logits: the processors of Transformers, in their order.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::Error;

/// How a token is chosen, under the names of Transformers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only so many of the most likely.
    pub top_k: Option<usize>,
    /// Only the most likely that come to this probability together.
    pub top_p: Option<f64>,
    /// Only those that are at least this share as likely as the most likely.
    pub min_p: Option<f64>,
    /// Above 1 makes tokens less likely that were there before, prompt included.
    pub repetition_penalty: f64,
    /// Of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Chooses tokens.
pub struct Sampler {
    how: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// Checks the settings.
    ///
    /// # Errors
    /// One is out of range, or narrows a choice that is not drawn.
    pub fn new(how: Sampling) -> Result<Self, Error> {
        let share = |x: Option<f64>| x.is_none_or(|p| p > 0.0 && p <= 1.0);
        let rules = [
            ("temperature", how.temperature >= 0.0 && how.temperature.is_finite(), "0 (greedy) or more"),
            ("top_k", how.top_k != Some(0), "1 or more"),
            ("top_p", share(how.top_p), "above 0, up to 1"),
            ("min_p", share(how.min_p), "above 0, up to 1"),
            (
                "repetition_penalty",
                how.repetition_penalty > 0.0 && how.repetition_penalty.is_finite(),
                "above 0",
            ),
        ];
        if let Some((name, _, range)) = rules.iter().find(|(_, ok, _)| !ok) {
            return Err(Error::new("out of range", *name).hint(format!("give a number {range}")));
        }
        let narrows =
            [("top_k", how.top_k.is_some()), ("top_p", how.top_p.is_some()), ("min_p", how.min_p.is_some())];
        if let Some((name, _)) = narrows.iter().find(|(_, on)| *on && how.temperature == 0.0) {
            return Err(Error::new("the most likely token is taken, nothing is drawn", *name)
                .hint("set a temperature above 0, such as 0.7"));
        }
        Ok(Self { how, rng: ChaCha8Rng::seed_from_u64(how.seed) })
    }

    /// The next token, behind those that are there.
    pub fn pick(&mut self, mut logits: Vec<f32>, before: &[u32]) -> u32 {
        self.penalise(&mut logits, before);
        if self.how.temperature == 0.0 {
            return most_likely(&logits);
        }
        let candidates = self.candidates(&logits);
        let total: f64 = candidates.iter().map(|(_, p)| p).sum();
        let mut left = total * (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let drawn = candidates.iter().find(|(_, p)| {
            left -= p;
            left < 0.0
        });
        drawn.or(candidates.last()).expect("the most likely token always stays").0
    }

    fn penalise(&self, logits: &mut [f32], before: &[u32]) {
        if self.how.repetition_penalty == 1.0 {
            return;
        }
        let penalty = self.how.repetition_penalty as f32;
        let mut seen = before.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            let x = &mut logits[id as usize];
            *x = if *x < 0.0 { *x * penalty } else { *x / penalty };
        }
    }

    /// Tokens that may be drawn and their weights, the most likely first.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let weight = |x: f32| ((f64::from(x) - max) / self.how.temperature).exp();
        let mut all: Vec<(u32, f64)> = (0..).zip(logits).map(|(id, &x)| (id, weight(x))).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(self.how.top_k.unwrap_or(usize::MAX));
        if let Some(p) = self.how.top_p {
            let total: f64 = all.iter().map(|(_, w)| w).sum();
            let mut sum = 0.0;
            // The one that reaches it stays.
            let stay = all.iter().take_while(|(_, w)| {
                let before = sum;
                sum += w;
                before < p * total
            });
            let stay = stay.count().max(1);
            all.truncate(stay);
        }
        if let Some(p) = self.how.min_p {
            // The most likely has weight 1.
            let stay = all.iter().take_while(|(_, w)| *w >= p).count().max(1);
            all.truncate(stay);
        }
        all
    }
}

/// The first of the largest.
fn most_likely(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best });
    best.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(how: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(how).unwrap();
        let mut counts = vec![0; logits.len()];
        (0..4000).for_each(|_| counts[sampler.pick(logits.to_vec(), &[]) as usize] += 1);
        counts
    }

    /// Probabilities 0.5, 0.25, 0.15 and 0.1.
    fn logits() -> Vec<f32> {
        [0.15f32, 0.5, 0.1, 0.25].map(f32::ln).to_vec()
    }

    const ONE: Sampling = Sampling {
        temperature: 1.0,
        top_k: None,
        top_p: None,
        min_p: None,
        repetition_penalty: 1.0,
        seed: 7,
    };

    #[test]
    fn draws_follow_the_probabilities() {
        for (n, p) in drawn(ONE, &logits()).iter().zip([0.15f64, 0.5, 0.1, 0.25]) {
            // Six standard deviations.
            let spread = 6.0 * (4000.0 * p * (1.0 - p)).sqrt();
            assert!((*n as f64 - 4000.0 * p).abs() < spread, "{n} of 4000 at {p}");
        }
        let colder = drawn(Sampling { temperature: 0.5, ..ONE }, &logits());
        assert!(colder[1] > 2700 && colder[2] < 250, "{colder:?}");
    }

    #[test]
    fn what_is_left_out_is_never_drawn() {
        let left = |how| drawn(how, &logits()).iter().map(|n| *n > 0).collect::<Vec<_>>();
        assert_eq!(left(Sampling { top_k: Some(2), ..ONE }), [false, true, false, true]);
        assert_eq!(left(Sampling { top_p: Some(0.6), ..ONE }), [false, true, false, true]);
        assert_eq!(left(Sampling { top_p: Some(0.4), ..ONE }), [false, true, false, false]);
        assert_eq!(left(Sampling { min_p: Some(0.29), ..ONE }), [true, true, false, true]);
        assert_eq!(left(Sampling { top_k: Some(3), top_p: Some(0.8), ..ONE }), [false, true, false, true]);
    }

    #[test]
    fn a_seed_gives_the_same_draws() {
        let draws = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, ..ONE }).unwrap();
            (0..40).map(|_| sampler.pick(logits(), &[])).collect::<Vec<_>>()
        };
        assert_eq!(draws(3), draws(3));
        assert_ne!(draws(3), draws(4));
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_penalties_are_by_sign() {
        let mut greedy = Sampler::new(Sampling::default()).unwrap();
        assert_eq!(greedy.pick(vec![1.0, 3.0, 3.0], &[]), 1);
        let mut penalised =
            Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::default() }).unwrap();
        assert_eq!(penalised.pick(vec![1.0, 1.9, -3.0], &[1, 1]), 0, "1.9 becomes 0.95, once");
        assert_eq!(penalised.pick(vec![-1.5, -1.0, -3.0], &[1]), 0, "-1 becomes -2");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (how, word) in [
            (Sampling { temperature: -1.0, ..ONE }, "temperature"),
            (Sampling { temperature: f64::NAN, ..ONE }, "temperature"),
            (Sampling { top_k: Some(0), ..ONE }, "top_k"),
            (Sampling { top_p: Some(1.5), ..ONE }, "top_p"),
            (Sampling { min_p: Some(0.0), ..ONE }, "min_p"),
            (Sampling { repetition_penalty: 0.0, ..ONE }, "repetition_penalty"),
            (Sampling { top_k: Some(3), temperature: 0.0, ..ONE }, "nothing is drawn"),
        ] {
            let error = Sampler::new(how).err().unwrap().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
