//! What the tests of kernels share.

use crate::cases::values;

/// Contents of a buffer that must be overwritten.
pub(crate) fn poisoned(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

/// The same numbers in f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Asserts `|got − want| ≤ tolerance·(1 + |want|)` everywhere.
pub(crate) fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "{what}[{i}]: got {got:e}, want {want:e}");
    }
}

/// Asserts that `gradient` is the gradient of `loss` at `x`, by central differences: along random directions, and along
/// every axis where `x` is short.
pub(crate) fn assert_gradient(what: &str, loss: impl Fn(&[f64]) -> f64, x: &[f32], gradient: &[f32]) {
    const STEP: f64 = 1e-4;
    assert_eq!(x.len(), gradient.len(), "{what}: length");
    let (x, gradient) = (wide(x), wide(gradient));
    // Size of a gradient element: the scale that errors are measured against.
    let scale = (gradient.iter().map(|g| g * g).sum::<f64>() / x.len() as f64).sqrt();
    assert!(scale > 0.0 && scale.is_finite(), "{what}: the gradient is {scale}");
    let along = |direction: &[f64], name: &str| {
        let at = |h: f64| loss(&x.iter().zip(direction).map(|(x, d)| x + h * d).collect::<Vec<_>>());
        let want = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        let got: f64 = gradient.iter().zip(direction).map(|(g, d)| g * d).sum();
        assert!((got - want).abs() <= 3e-5 * scale, "{what} along {name}: got {got:e}, want {want:e}");
    };
    for seed in 0..4 {
        let direction = wide(&values(1000 + seed, x.len()));
        let norm = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
        along(&direction.iter().map(|d| d / norm).collect::<Vec<_>>(), "a random direction");
    }
    for i in (0..x.len()).filter(|_| x.len() <= 300) {
        let mut axis = vec![0.0; x.len()];
        axis[i] = 1.0;
        along(&axis, &format!("axis {i}"));
    }
}

/// `Σ a·b`
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Runs `f` in pools of several sizes and asserts that the results agree bit for bit.
pub(crate) fn assert_same_for_any_threads(f: impl Fn() -> Vec<f32> + Sync) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| f().iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    };
    let one = run(1);
    assert!([2, 3, 5].into_iter().all(|threads| run(threads) == one), "bits depend on the number of threads");
}
