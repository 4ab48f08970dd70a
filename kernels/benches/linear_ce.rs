//! Linear cross-entropy, fused against eager, and the three products that neither can do without. Throughput is in
//! FLOP/s ("elements") of those products.
#![allow(missing_docs, non_snake_case)]

mod common;

use chronicals_kernels::{
    Variant,
    cases::values,
    gemm::{linear_dgrad, linear_forward, linear_wgrad},
    linear_ce::{self, Options, Shape, cases},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    for case in cases::BENCHES {
        let (shape @ Shape { tokens: t, hidden: d, vocab: v }, labels) = (case.shape, case.labels());
        let (x_TD, w_VD) = (values(case.seed, t * d), values(case.seed + 1, v * d));
        let (mut dx_TD, mut dw_VD) = (vec![0.0; t * d], vec![0.0; v * d]);
        let mut group = c.benchmark_group(format!("linear_ce/{}", case.name));
        group.throughput(Throughput::Elements(case.flops()));
        for variant in Variant::ALL {
            group.bench_function(format!("forward_backward/{variant}"), |b| {
                let scale = 1.0 / t as f32;
                b.iter(|| {
                    linear_ce::forward_backward(
                        variant,
                        &x_TD,
                        &w_VD,
                        &labels,
                        scale,
                        &mut dx_TD,
                        Some(&mut dw_VD),
                        shape,
                        Options::default(),
                    )
                })
            });
        }
        let rows = labels.iter().filter(|y| **y != linear_ce::IGNORE_INDEX).count();
        let mut logits = vec![0.0; rows * v];
        group.bench_function("products_alone", |b| {
            b.iter(|| {
                linear_forward(&mut logits, &x_TD[..rows * d], &w_VD, rows, v, d, 0.0);
                linear_dgrad(&mut dx_TD[..rows * d], &logits, &w_VD, rows, v, d, 0.0);
                linear_wgrad(&mut dw_VD, &logits, &x_TD[..rows * d], rows, v, d, 1.0);
            })
        });
        for variant in Variant::ALL {
            group.throughput(Throughput::Elements(case.flops() / 3));
            group.bench_function(format!("forward/{variant}"), |b| {
                b.iter(|| linear_ce::forward(variant, &x_TD, &w_VD, &labels, shape, Options::default()))
            });
        }
    }
}

fn gpu(c: &mut Criterion) {
    common::on_gpu(c, "linear_ce");
}

criterion_group!(benches, bench, gpu);
criterion_main!(benches);
