//! Token embedding; bytes are those of one pass.
#![allow(missing_docs, non_snake_case)]

mod common;

use chronicals_kernels::{
    cases::values,
    embedding::{self, cases},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    for case in cases::BENCHES {
        let d = case.hidden;
        let ids: Vec<u32> = (0..case.tokens).map(|t| (t * 7919 % case.vocabulary) as u32).collect();
        let (mut table_VD, mut x_TD) =
            (values(case.seed, case.vocabulary * d), values(case.seed, case.tokens * d));
        let mut group = c.benchmark_group(format!("embedding/{}", case.name));
        group.throughput(Throughput::Bytes(case.forward_bytes()));
        group.bench_function("forward", |b| b.iter(|| embedding::forward(&ids, &table_VD, &mut x_TD, d)));
        group.throughput(Throughput::Bytes(case.backward_bytes()));
        group.bench_function("backward", |b| b.iter(|| embedding::backward(&ids, &x_TD, &mut table_VD, d)));
    }
}

fn gpu(c: &mut Criterion) {
    common::on_gpu(c, "embedding_");
}

criterion_group!(benches, bench, gpu);
criterion_main!(benches);
