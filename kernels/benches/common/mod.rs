//! The groups of a GPU, where there is one.

use std::time::Duration;

use chronicals_kernels::gpu::{self, Gpu, GpuError, compile::Cache};
use criterion::{Criterion, Throughput};

/// Times the operations whose names begin with `prefix`, each at its own shapes, by device events: launches right after one
/// another, operands in L2 as far as they fit. Throughput is in FLOP/s ("elements") where those count, else in bytes.
/// Without a GPU a line says why there are none.
pub fn on_gpu(c: &mut Criterion, prefix: &str) {
    let on = match Gpu::open(0, Cache::of_user()) {
        Ok(on) => on,
        Err(e) => return eprintln!("{prefix}*: not timed on a GPU: {e}; {}", e.hint),
    };
    let device = gpu::bench::Device::new(&on);
    let timed = gpu::bench::each(&device, &|op| op.starts_with(prefix), &mut |bench| {
        let work = bench.work();
        let mut group = c.benchmark_group(format!("gpu/{}/{}", work.op, bench.variant.name));
        // Device times spread little, and there are many cases.
        group.sample_size(10);
        group.warm_up_time(Duration::from_millis(100));
        group.measurement_time(Duration::from_millis(400));
        group.throughput(match work.flops {
            0 => Throughput::Bytes(work.bytes),
            flops => Throughput::Elements(flops),
        });
        group.bench_function(&work.case, |b| {
            // The first launch loads the kernel, and tunes the products.
            done(bench.run(0));
            b.iter_custom(|launches| {
                let all = on.time(|| (0..launches).try_for_each(|_| bench.run(0)));
                Duration::from_secs_f64(done(all))
            });
        });
        Ok(())
    });
    done(timed);
}

fn done<T>(result: Result<T, GpuError>) -> T {
    result.unwrap_or_else(|e| panic!("{e}; {}", e.hint))
}
