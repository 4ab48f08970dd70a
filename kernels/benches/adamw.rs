//! AdamW, fused against eager, and the norm of a gradient; bytes are those of one pass.
#![allow(missing_docs)]

mod common;

use chronicals_kernels::{
    Variant,
    adamw::{
        self, Group, Hyper, cases, codes,
        eight_bit::{self, Moments},
    },
    cases::values,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn bench(c: &mut Criterion) {
    for case in cases::BENCHES {
        let n = case.elements;
        let [mut p, mut g, mut m, mut v] = [1, 2, 3, 4].map(|seed| values(case.seed + seed, n));
        v.iter_mut().for_each(|v| *v = v.abs());
        let hyper = Hyper { lr: 1e-5, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 10 };
        let mut group = c.benchmark_group(format!("adamw/{}", case.name));
        group.throughput(Throughput::Bytes(case.update_bytes()));
        for variant in Variant::ALL {
            group.bench_function(format!("update/{variant}"), |b| {
                b.iter(|| adamw::update(variant, &mut p, &mut g, &mut m, &mut v, hyper, 1.0))
            });
        }
        let mut moments = [(); 2].map(|()| (vec![0; n], vec![0.0; codes::scales(n)]));
        group.throughput(Throughput::Bytes(case.eight_bit_bytes()));
        group.bench_function("update/8bit", |b| {
            b.iter(|| {
                let [m, v] = moments.each_mut().map(|(codes, scales)| Moments { codes, scales });
                eight_bit::update(&mut p, &g, m, v, &[Group { end: n, hyper }], 0, 1.0);
            })
        });
        group.throughput(Throughput::Bytes(case.norm_bytes()));
        group.bench_function("norm_squared", |b| b.iter(|| adamw::norm_squared(Variant::Fused, &g)));
    }
}

fn gpu(c: &mut Criterion) {
    common::on_gpu(c, "adamw_");
}

criterion_group!(benches, bench, gpu);
criterion_main!(benches);
