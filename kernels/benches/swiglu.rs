//! SwiGLU, fused against eager; bytes are those of one pass.
#![allow(missing_docs, non_snake_case)]

mod common;

use chronicals_kernels::{
    Variant,
    cases::values,
    swiglu::{self, cases},
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    for case in cases::BENCHES {
        let (tokens, ffn) = (case.tokens, case.ffn);
        let (gate_up_T2F, dact_TF) =
            (values(case.seed, 2 * tokens * ffn), values(case.seed + 1, tokens * ffn));
        let mut act_TF = vec![0.0; tokens * ffn];
        let mut group = c.benchmark_group(format!("swiglu/{}", case.name));
        for variant in Variant::ALL {
            group.throughput(Throughput::Bytes(case.forward_bytes()));
            group.bench_function(format!("forward/{variant}"), |b| {
                b.iter(|| swiglu::forward(variant, &gate_up_T2F, &mut act_TF, tokens, ffn))
            });
            group.throughput(Throughput::Bytes(case.backward_bytes()));
            // In place, so every iteration has its own copy; copying is not timed.
            group.bench_function(format!("backward/{variant}"), |b| {
                b.iter_batched_ref(
                    || gate_up_T2F.clone(),
                    |gate_up_T2F| swiglu::backward(variant, gate_up_T2F, &dact_TF, tokens, ffn),
                    BatchSize::PerIteration,
                )
            });
        }
    }
}

fn gpu(c: &mut Criterion) {
    common::on_gpu(c, "swiglu_");
}

criterion_group!(benches, bench, gpu);
criterion_main!(benches);
