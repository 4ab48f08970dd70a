//! Residual addition and RMSNorm, fused against eager; bytes are those of one pass.
#![allow(missing_docs, non_snake_case)]

mod common;

use chronicals_kernels::{
    Variant,
    cases::values,
    rmsnorm::{self, cases},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    for case in cases::BENCHES {
        let (shape, n) = (case.shape, case.shape.elements());
        let (residual_TD, delta_TD) = (values(case.seed, n), values(case.seed + 1, n));
        let weight_D = values(case.seed + 2, shape.hidden);
        let (mut sum_TD, mut y_TD, mut dx_TD) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        let (mut rstd_T, mut dweight_D) = (vec![0.0; shape.tokens], vec![0.0; shape.hidden]);
        let mut group = c.benchmark_group(format!("rmsnorm/{}", case.name));
        for variant in Variant::ALL {
            group.throughput(Throughput::Bytes(case.forward_bytes()));
            group.bench_function(format!("add_forward/{variant}"), |b| {
                b.iter(|| {
                    rmsnorm::add_forward(
                        variant,
                        &residual_TD,
                        &delta_TD,
                        &mut sum_TD,
                        &weight_D,
                        1e-6,
                        &mut y_TD,
                        &mut rstd_T,
                        shape,
                    )
                })
            });
            group.throughput(Throughput::Bytes(case.backward_bytes()));
            group.bench_function(format!("backward/{variant}"), |b| {
                let dw = &mut dweight_D;
                b.iter(|| {
                    rmsnorm::backward(
                        variant,
                        &delta_TD,
                        &sum_TD,
                        &rstd_T,
                        &weight_D,
                        &mut dx_TD,
                        false,
                        Some(dw),
                        shape,
                    )
                })
            });
        }
    }
}

fn gpu(c: &mut Criterion) {
    common::on_gpu(c, "rmsnorm_");
}

criterion_group!(benches, bench, gpu);
criterion_main!(benches);
