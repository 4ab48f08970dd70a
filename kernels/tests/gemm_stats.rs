//! The account of matrix products is process-wide, so its test has a process of its own.

use std::time::Instant;

use chronicals_kernels::gemm::{
    Dims, GemmStats, MatMut, MatRef, gemm_single, linear_forward, linear_wgrad, reset_stats, stats,
};

#[test]
fn products_are_accounted_for() {
    let (t, n, k) = (256, 320, 192);
    let (x, w, mut y, mut dw) = (vec![1.0; t * k], vec![1.0; n * k], vec![0.0; t * n], vec![0.0; n * k]);
    reset_stats();
    assert_eq!(stats(), GemmStats::default());
    let clock = Instant::now();
    linear_forward(&mut y, &x, &w, t, n, k, 0.0);
    linear_wgrad(&mut dw, &y, &x, t, n, k, 0.0);
    let elapsed = clock.elapsed().as_nanos() as u64;
    let account = stats();
    assert_eq!((account.flops, account.calls), (2 * 2 * (t * n * k) as u64, 2));
    assert!(account.ns > 0 && account.ns <= elapsed, "{} of {elapsed} ns", account.ns);

    // Products inside other kernels' tiles are those kernels' time.
    let tile = MatMut::rows(&mut y[..4], 2);
    gemm_single(1.0, MatRef::rows(&x, 2), MatRef::rows(&w, 2), 0.0, tile, Dims { m: 2, n: 2, k: 2 });
    assert_eq!(stats(), account);

    // Two products at the same time: the work of both, but no more time than has passed.
    let mut other = y.clone();
    reset_stats();
    let clock = Instant::now();
    std::thread::scope(|s| {
        for y in [&mut y, &mut other] {
            s.spawn(|| linear_forward(y, &x, &w, t, n, k, 0.0));
        }
    });
    let elapsed = clock.elapsed().as_nanos() as u64;
    let account = stats();
    assert_eq!(account.calls, 2);
    assert!(account.ns <= elapsed, "{} of {elapsed} ns", account.ns);
    reset_stats();
    assert_eq!(stats(), GemmStats::default());
}
