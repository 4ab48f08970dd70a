//! Bias and rotary embedding, fused against eager; bytes are those of one pass in place.
#![allow(missing_docs, non_snake_case)]

mod common;

use chronicals_kernels::{
    Variant,
    cases::values,
    qk_rope::{self, Rotation, Tables, cases},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    for case in cases::BENCHES {
        let shape = case.shape;
        let mut qkv_TQ = values(case.seed, shape.tokens * shape.packed());
        let (bias_Q, mut dbias_Q) = (vec![0.0; shape.packed()], vec![0.0; shape.packed()]);
        let tables = Tables::new(&Tables::inverse_frequencies(10_000.0, shape.head_dim), 512);
        let positions: Vec<u32> = (0..shape.tokens as u32).map(|t| t % 512).collect();
        let rotation = Rotation { tables: &tables, positions: &positions };
        let mut group = c.benchmark_group(format!("qk_rope/{}", case.name));
        for variant in Variant::ALL {
            group.throughput(Throughput::Bytes(case.bytes()));
            group.bench_function(format!("forward/{variant}"), |b| {
                b.iter(|| qk_rope::forward(variant, &mut qkv_TQ, Some(&bias_Q), None, rotation, shape))
            });
            group.bench_function(format!("backward/{variant}"), |b| {
                b.iter(|| qk_rope::backward(variant, &mut qkv_TQ, Some(&mut dbias_Q), None, rotation, shape))
            });
        }
    }
}

fn gpu(c: &mut Criterion) {
    common::on_gpu(c, "qk_rope_");
}

criterion_group!(benches, bench, gpu);
criterion_main!(benches);
