//! The gate's test on simulated comparisons: how often it cries wolf, and how often it sees one.

use chronibench_analysis::sequential::{Design, GateVerdict, LOOKS, sign_flip_p, t_quantile};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a machine does to the speed of a process, besides the code that runs.
#[derive(Clone, Copy)]
struct Machine {
    /// Standard deviation of a process's speed.
    noise: f64,
    /// Change of speed from one process to the next.
    drift: f64,
    /// Correlation of one process's noise with the next one's.
    memory: f64,
    /// Probability that a process is slowed down by something else.
    outliers: f64,
    /// By how much.
    outlier: f64,
}

const QUIET: Machine = Machine { noise: 0.005, drift: 0.0, memory: 0.0, outliers: 0.0, outlier: 0.0 };

fn normal(rng: &mut impl Rng) -> f64 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

impl Machine {
    /// Ratios of `pairs` pairs in ABBA order; the candidate is slower by `loss`.
    fn pairs(&self, rng: &mut ChaCha8Rng, pairs: usize, loss: f64) -> Vec<f64> {
        let mut state = normal(rng);
        let mut process = 0;
        let mut speed = |rng: &mut ChaCha8Rng, loss: f64| {
            let fresh = normal(rng);
            state = self.memory * state + (1.0 - self.memory * self.memory).sqrt() * fresh;
            let slowed =
                if rng.random::<f64>() < self.outliers { self.outlier * rng.random::<f64>() } else { 0.0 };
            process += 1;
            (self.noise * state - self.drift * f64::from(process) - slowed).exp() * (1.0 - loss)
        };
        let pair = |i: usize| -> f64 {
            if i.is_multiple_of(2) {
                let a = speed(rng, 0.0);
                speed(rng, loss) / a
            } else {
                let b = speed(rng, loss);
                b / speed(rng, 0.0)
            }
        };
        (0..pairs).map(pair).collect()
    }

    /// Shares of FAIL and PASS among simulated gates.
    fn gates(&self, design: &Design, loss: f64, times: usize) -> (f64, f64) {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut count = [0usize; 2];
        for _ in 0..times {
            let pairs = *design.looks.last().unwrap() as usize;
            match design.verdict(&self.pairs(&mut rng, pairs, loss)).0 {
                GateVerdict::Fail => count[0] += 1,
                GateVerdict::Pass => count[1] += 1,
                _ => {}
            }
        }
        (count[0] as f64 / times as f64, count[1] as f64 / times as f64)
    }
}

/// Machines that are worse than quiet, each in its own way.
fn troubled() -> [(&'static str, Machine); 5] {
    [
        ("quiet", QUIET),
        ("drifting", Machine { drift: 0.001, ..QUIET }),
        ("with a memory", Machine { memory: 0.6, ..QUIET }),
        ("with outliers", Machine { outliers: 0.05, outlier: 0.05, ..QUIET }),
        ("all at once", Machine { drift: 0.0005, memory: 0.5, outliers: 0.03, outlier: 0.04, ..QUIET }),
    ]
}

#[test]
fn equal_sides_are_accused_at_most_once_in_a_hundred() {
    // Every loss matters here, so that the level of the test itself is seen and not the shelter of the least effect.
    let design = Design { min_effect: 0.0, ..Design::default() };
    for (name, machine) in troubled() {
        let (alarms, _) = machine.gates(&design, 0.0, 4000);
        assert!(alarms <= 0.01, "a machine {name}: {alarms}");
    }
}

#[test]
fn the_noise_may_be_of_any_size() {
    let design = Design { min_effect: 0.0, ..Design::default() };
    for noise in [0.0005, 0.02, 0.1] {
        let (alarms, _) = Machine { noise, ..QUIET }.gates(&design, 0.0, 4000);
        assert!(alarms <= 0.01, "noise {noise}: {alarms}");
    }
}

#[test]
fn a_loss_of_three_percent_is_seen_within_twelve_pairs() {
    for (name, machine) in troubled() {
        let (caught, missed) = machine.gates(&Design::default(), 0.03, 1000);
        assert!(caught >= 0.9, "a machine {name}: {caught}");
        assert!(missed <= 0.01, "a machine {name} lets {missed} pass");
    }
}

/// The test of one case in a gate of `cases`, which looks up to `max_pairs`.
fn shared(cases: usize, max_pairs: u32) -> Design {
    let mut whole = Design::default();
    whole.looks.retain(|n| *n <= max_pairs);
    let alpha = whole.alpha / cases as f64;
    Design { alpha, ..whole.for_cases(cases).unwrap() }
}

#[test]
fn every_look_can_call_a_loss_however_many_cases_share_alpha() {
    // 3 % slower with a spread of nearly nothing: no look is clearer than this.
    let clear: Vec<f64> = (0..20).map(|i| 0.97 + 1e-5 * f64::from(i % 3)).collect();
    for (cases, looks) in [(1, [4, 6, 8, 12]), (2, [4, 6, 8, 12]), (3, [4, 6, 10, 12]), (10, [4, 6, 10, 12])]
    {
        assert_eq!(shared(cases, 12).looks, looks, "{cases} cases");
    }
    assert_eq!(shared(11, 12).looks, [4, 6, 12]);
    assert_eq!(shared(41, 12).looks, [4, 6, 14]);
    assert_eq!(shared(3, 8).looks, [4, 6, 10]);
    for cases in [1, 3, 11, 41, 200] {
        for max_pairs in LOOKS {
            let design = shared(cases, max_pairs);
            for pairs in design.looks.clone() {
                let only = Design { looks: vec![pairs], ..design.clone() };
                assert_eq!(only.verdict(&clear), (GateVerdict::Fail, true), "{cases} cases, {pairs} pairs");
            }
        }
    }
    assert_eq!(Design { alpha: 1e-7, ..Design::default() }.for_cases(1), None);
}

#[test]
fn cases_that_share_alpha_keep_their_part_of_it_and_still_see_three_percent() {
    let design = shared(3, 12);
    let open = Design { min_effect: 0.0, ..design.clone() };
    // Two standard errors of 4,000 gates: so rare an alarm is counted a dozen times. Of 20,000, 0.375 % with a memory, where few
    // pairs tell too little of it, with or without the look that is put off.
    let most = design.alpha + 2.0 * (design.alpha / 4000.0).sqrt();
    for (name, machine) in troubled() {
        let (alarms, _) = machine.gates(&open, 0.0, 4000);
        assert!(alarms <= most, "a machine {name}: {alarms}");
        let (caught, missed) = machine.gates(&design, 0.03, 1000);
        assert!(caught >= 0.9 && missed <= 0.01, "a machine {name}: {caught} {missed}");
    }
}

#[test]
fn equal_sides_pass_on_a_machine_that_can_tell() {
    let (alarms, passed) = QUIET.gates(&Design::default(), 0.0, 1000);
    assert!(alarms == 0.0 && passed >= 0.95, "{alarms} {passed}");
    // Where it cannot, nothing is said.
    let (alarms, passed) = Machine { noise: 0.2, ..QUIET }.gates(&Design::default(), 0.0, 1000);
    assert!(alarms <= 0.01 && passed <= 0.02, "{alarms} {passed}");
}

#[test]
fn the_looks_spend_alpha_and_no_more() {
    let design = Design::default();
    let spent: f64 = (0..design.looks.len()).map(|i| design.level(i)).sum();
    assert!((spent - design.alpha).abs() < 1e-15);
    assert_eq!(design.next(0), Some(4));
    assert_eq!(design.next(8), Some(12));
    assert_eq!(design.next(12), None);
}

#[test]
fn a_loss_that_does_not_matter_is_no_failure() {
    // 1 % slower without any noise worth the name: shown beyond doubt, and below the least effect.
    let ratios: Vec<f64> = (0..12).map(|i| 0.99 + 1e-5 * f64::from(i % 3)).collect();
    let looks = Design::default().looks(&ratios);
    assert_eq!(looks.len(), 1, "decided at the first look");
    assert!(looks[0].upper < 0.0 && looks[0].verdict == GateVerdict::Pass, "{looks:?}");
    let strict = Design { min_effect: 0.005, ..Design::default() };
    assert_eq!(strict.verdict(&ratios), (GateVerdict::Fail, true));
}

#[test]
fn equal_figures_have_no_spread_and_pass() {
    assert_eq!(Design::default().verdict(&[1.0; 4]), (GateVerdict::Pass, true));
    assert_eq!(Design::default().verdict(&[1.0; 3]), (GateVerdict::Inconclusive, false));
}

#[test]
fn students_t_as_in_the_tables() {
    for (p, df, t) in [(0.95, 3.0, 2.353), (0.99, 7.0, 2.998), (0.995, 11.0, 3.106), (0.999, 5.0, 5.893)] {
        assert!((t_quantile(p, df) - t).abs() < 1e-3, "{p} {df} {}", t_quantile(p, df));
    }
}

#[test]
fn signs_are_counted_exactly() {
    assert_eq!(sign_flip_p(&[-1.0; 8]), 1.0 / 256.0);
    assert_eq!(sign_flip_p(&[1.0; 8]), 1.0);
    // −1 −2 +3 = 0: sums of ±1 ±2 ±3 that are no greater than 0 are −6, −4, −2, 0 and 0.
    assert_eq!(sign_flip_p(&[-1.0, -2.0, 3.0]), 5.0 / 8.0);
    assert_eq!(sign_flip_p(&[0.0; 8]), 1.0);
}
