//! Low-rank adapters of a group, fused against eager. Throughput is in FLOP/s ("elements").
#![allow(missing_docs, non_snake_case)]

mod common;

use chronicals_kernels::{
    Variant,
    cases::values,
    lora::{self, b_len, cases, stacked_rank},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    for case in cases::BENCHES {
        let (shape, segments, s) = (case.shape, case.segments, stacked_rank(case.segments));
        let (x_TD, dy_TN) = (values(1, shape.tokens * shape.inputs), values(2, shape.tokens * shape.outputs));
        let (a_SD, b) = (values(3, s * shape.inputs), values(4, b_len(segments)));
        let (mut y_TN, mut dx_TD) = (vec![0.0; dy_TN.len()], vec![0.0; x_TD.len()]);
        let (mut xa_TS, mut dxa_TS) = (vec![0.0; shape.tokens * s], vec![0.0; shape.tokens * s]);
        let (mut da_SD, mut db) = (vec![0.0; a_SD.len()], vec![0.0; b.len()]);
        let mut group = c.benchmark_group(format!("lora/{}", case.name));
        for variant in Variant::ALL {
            group.throughput(Throughput::Elements(case.forward_flops()));
            group.bench_function(format!("forward/{variant}"), |bench| {
                bench.iter(|| {
                    lora::forward(variant, &x_TD, &a_SD, &b, 2.0, segments, &mut xa_TS, &mut y_TN, shape)
                })
            });
            group.throughput(Throughput::Elements(case.backward_flops()));
            group.bench_function(format!("backward/{variant}"), |bench| {
                bench.iter(|| {
                    lora::backward(
                        variant,
                        &dy_TN,
                        &x_TD,
                        &xa_TS,
                        &a_SD,
                        &b,
                        2.0,
                        segments,
                        &mut da_SD,
                        &mut db,
                        Some(&mut dx_TD),
                        &mut dxa_TS,
                        shape,
                    )
                })
            });
        }
    }
}

fn gpu(c: &mut Criterion) {
    common::on_gpu(c, "lora_");
}

criterion_group!(benches, bench, gpu);
criterion_main!(benches);
