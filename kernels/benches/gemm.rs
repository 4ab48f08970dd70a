//! The three products of every linear layer of the repository's tiny model, against other pure-Rust products on the
//! same operands. Throughput is in FLOP/s ("elements").
//!
//! `chronicals` is the product that the trainer uses. It is meant to be within 10 % of the fastest of the others in
//! every group; `RAYON_NUM_THREADS` sets the threads of all of them but `matrixmultiply`, which has one.
#![allow(missing_docs)]

mod common;

use std::time::Duration;

use chronicals_kernels::{
    cases::values,
    gemm::{
        Dims, MatMut, MatRef,
        cases::{BENCH_LARGE, BENCH_LAYERS, BENCH_TOKENS, Layer, Pass},
        gemm, linear_dgrad, linear_forward, linear_wgrad,
    },
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

struct Operands {
    pass: Pass,
    layer: Layer,
    tokens: usize,
    dims: Dims,
    /// The left operand of the product as it lies in memory: x, dy, dy.
    left: Vec<f32>,
    /// The right one: w, w, x.
    right: Vec<f32>,
    out: Vec<f32>,
}

impl Operands {
    fn new(pass: Pass, layer: Layer, tokens: usize) -> Self {
        let dims = pass.dims(layer, tokens);
        let Dims { m, n, k } = dims;
        Self {
            pass,
            layer,
            tokens,
            dims,
            left: values(1, m * k),
            right: values(2, k * n),
            out: vec![0.0; m * n],
        }
    }

    /// A and B, transposed where the pass transposes them.
    fn views(&self) -> (MatRef<'_>, MatRef<'_>) {
        let Dims { m, n, k } = self.dims;
        match self.pass {
            Pass::Forward => (MatRef::rows(&self.left, k), MatRef::rows(&self.right, k).t()),
            Pass::Dgrad => (MatRef::rows(&self.left, k), MatRef::rows(&self.right, n)),
            Pass::Wgrad => (MatRef::rows(&self.left, m).t(), MatRef::rows(&self.right, n)),
        }
    }

    fn chronicals(&mut self) {
        let (t, n, k) = (self.tokens, self.layer.outputs, self.layer.inputs);
        let f = match self.pass {
            Pass::Forward => linear_forward,
            Pass::Dgrad => linear_dgrad,
            Pass::Wgrad => linear_wgrad,
        };
        f(&mut self.out, &self.left, &self.right, t, n, k, 0.0);
    }

    fn gemm_crate(&mut self) {
        let (Dims { m, n, k }, c) = (self.dims, self.out.as_mut_ptr());
        let ((a, a_rs, a_cs), (b, b_rs, b_cs)) = self.raw();
        let threads = gemm::Parallelism::Rayon(0);
        // SAFETY: `views` lie inside `left` and `right`, and C is m × n, row-major, in `out`.
        unsafe {
            gemm::gemm(
                m, n, k, c, 1, n as isize, false, a, a_cs, a_rs, b, b_cs, b_rs, 0.0, 1.0, false, false,
                false, threads,
            );
        }
    }

    fn faer(&mut self) {
        use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
        let (Dims { m, n, k }, c) = (self.dims, self.out.as_mut_ptr());
        let ((a, a_rs, a_cs), (b, b_rs, b_cs)) = self.raw();
        // SAFETY: as in `gemm_crate`.
        let (a, b, c) = unsafe {
            (
                MatRef::from_raw_parts(a, m, k, a_rs, a_cs),
                MatRef::from_raw_parts(b, k, n, b_rs, b_cs),
                MatMut::from_raw_parts_mut(c, m, n, n as isize, 1),
            )
        };
        matmul(c, Accum::Replace, a, b, 1.0, Par::rayon(0));
    }

    fn matrixmultiply(&mut self) {
        let (Dims { m, n, k }, c) = (self.dims, self.out.as_mut_ptr());
        let ((a, a_rs, a_cs), (b, b_rs, b_cs)) = self.raw();
        // SAFETY: as in `gemm_crate`.
        unsafe {
            matrixmultiply::sgemm(m, k, n, 1.0, a, a_rs, a_cs, b, b_rs, b_cs, 0.0, c, n as isize, 1);
        }
    }

    /// Pointer, row stride and column stride of A and B.
    #[allow(clippy::type_complexity)] // two of the same triple
    fn raw(&self) -> ((*const f32, isize, isize), (*const f32, isize, isize)) {
        let (a, b) = self.views();
        let raw = |x: MatRef| (x.data.as_ptr(), x.row_stride as isize, x.col_stride as isize);
        (raw(a), raw(b))
    }
}

/// All engines compute the same product: a comparison of different work would mean nothing.
fn assert_agreement(o: &mut Operands) {
    o.chronicals();
    let ours = o.out.clone();
    for engine in [Operands::gemm_crate, Operands::faer, Operands::matrixmultiply] {
        o.out.fill(f32::NAN);
        engine(o);
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * (o.dims.k as f32).sqrt();
        assert!(ours.iter().zip(&o.out).all(close), "{:?} of {} differs", o.pass, o.layer.name);
    }
}

fn products(c: &mut Criterion) {
    let small = BENCH_LAYERS.into_iter().flat_map(|l| BENCH_TOKENS.map(|t| (l, t)));
    for (layer, tokens) in small.chain(BENCH_LARGE) {
        for pass in Pass::ALL {
            let mut o = Operands::new(pass, layer, tokens);
            assert_agreement(&mut o);
            let mut group = c.benchmark_group(format!("gemm/{}/{tokens}/{}", layer.name, pass.name()));
            group.throughput(Throughput::Elements(o.dims.flops()));
            group.bench_function("chronicals", |b| b.iter(|| o.chronicals()));
            group.bench_function("gemm", |b| b.iter(|| o.gemm_crate()));
            group.bench_function("faer", |b| b.iter(|| o.faer()));
            group.bench_function("matrixmultiply", |b| b.iter(|| o.matrixmultiply()));
        }
    }
}

/// The adapters' slices of packed buffers: narrow, strided, accumulating.
fn slices(c: &mut Criterion) {
    let dims = Dims { m: 1024, n: 192, k: 16 };
    let (a, b, mut out) = (values(1, 1024 * 48), values(2, 192 * 16), values(3, 1024 * 320));
    let mut group = c.benchmark_group("gemm/strided_1024x192x16");
    group.throughput(Throughput::Elements(dims.flops()));
    group.bench_function("chronicals", |bench| {
        bench.iter(|| {
            let (a, b) = (MatRef::rows(&a, 48), MatRef::rows(&b, 16).t());
            gemm(0.0, a, b, 1.0, MatMut::rows(&mut out, 320), dims)
        })
    });
}

fn gpu(c: &mut Criterion) {
    common::on_gpu(c, "gemm_");
}

criterion_group! {
    name = benches;
    // 240 cases: long enough each for a spread of a few percent, short enough in all for a coffee.
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = products, slices, gpu
}
criterion_main!(benches);
