//! Causal attention over packed documents, fused against eager; FLOPs are those that the mask leaves.
#![allow(missing_docs, non_snake_case)]

mod common;

use chronicals_kernels::{
    Variant,
    attention::{self, Saved, cases},
    cases::values,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    for case in cases::BENCHES {
        let (shape, cu_seqlens) = (case.shape, case.cu_seqlens());
        let layout = case.layout(&cu_seqlens);
        let tokens = layout.tokens();
        let (qkv_TQ, dout_T) =
            (values(case.seed, tokens * shape.packed()), values(case.seed + 1, tokens * shape.out()));
        let (mut out_T, mut lse_HT) = (vec![0.0; tokens * shape.out()], vec![0.0; tokens * shape.heads]);
        let mut dqkv_TQ = vec![0.0; qkv_TQ.len()];
        let mut group = c.benchmark_group(format!("attention/{}", case.name));
        for variant in Variant::ALL {
            let mut probs = (variant == Variant::Eager).then(|| vec![0.0; lse_HT.len() * layout.row_slots]);
            group.throughput(Throughput::Elements(case.forward_flops()));
            group.bench_function(format!("forward/{variant}"), |b| {
                b.iter(|| {
                    let probs = probs.as_deref_mut();
                    attention::forward(variant, &qkv_TQ, layout, shape, &mut out_T, &mut lse_HT, probs)
                })
            });
            let saved = Saved { qkv_TQ: &qkv_TQ, out_T: &out_T, lse_HT: &lse_HT, probs: probs.as_deref() };
            group.throughput(Throughput::Elements(case.backward_flops()));
            group.bench_function(format!("backward/{variant}"), |b| {
                b.iter(|| attention::backward(variant, &dout_T, saved, layout, shape, &mut dqkv_TQ))
            });
        }
    }
}

fn gpu(c: &mut Criterion) {
    common::on_gpu(c, "attention_");
}

criterion_group!(benches, bench, gpu);
criterion_main!(benches);
