//! Captured work against the same work launched; on a GPU alone.

use chronicals_kernels::{
    cases::values,
    gpu::{Elem, Gpu, Launcher, Product, Products, compile::Cache, matmul::Matmul},
    rmsnorm::{Shape, cuda},
};

const SHAPE: Shape = Shape { tokens: 300, hidden: 896 };

/// A norm, a product of its output, and the norm's backward pass, twice on other inputs.
pub fn replays(_: &dyn crate::machine::Machine) {
    let on = Gpu::open(0, Cache::of_user()).unwrap();
    let products = Matmul::new(&on, None).unwrap();
    let (t, d) = (SHAPE.tokens, SHAPE.hidden);
    let elem = Elem::Bf16;
    let encoded = |seed| elem.encode(&values(seed, t * d));
    let weight = on.upload(&elem.encode(&values(3, d))).unwrap();
    let square = on.upload(&elem.encode(&values(4, d * d))).unwrap();
    let [y, z, dx] = [0; 3].map(|_| on.alloc(t * d * 2).unwrap());
    let rstd = on.alloc(t * 4).unwrap();
    let dw = on.alloc(d * 4).unwrap();
    let scratch = on.alloc(4 * cuda::scratch_floats(on.processors(), SHAPE)).unwrap();
    let x = on.upload(&encoded(1)).unwrap();
    let linear = Product::linear_forward(t, d, d, elem);
    let work = || {
        on.fill(&dw, 0)?;
        let sums = Some((dw.ptr(), scratch.ptr()));
        // SAFETY: the operands have the lengths that the shapes say and live until the end of this test.
        unsafe {
            cuda::forward(&on, elem, x.ptr(), weight.ptr(), 1e-6, y.ptr(), rstd.ptr(), SHAPE)?;
            products.product(&linear, y.ptr(), square.ptr(), chronicals_kernels::gpu::Ptr::NULL, z.ptr())?;
            let (r, w) = (rstd.ptr(), weight.ptr());
            cuda::backward(&on, elem, z.ptr(), x.ptr(), r, w, dx.ptr(), false, sums, SHAPE)
        }
    };
    let results = || [&z, &dx, &dw].map(|b| on.download(b).unwrap());
    work().unwrap();
    let first = results();
    let graph = on.capture(work).unwrap();
    for buffer in [&z, &dx, &dw] {
        on.fill(buffer, 0xff).unwrap();
    }
    // SAFETY: as above.
    unsafe { graph.launch().unwrap() };
    assert!(results() == first, "a replay differs from the launches");
    let other = on.upload(&encoded(2)).unwrap();
    on.copy(&other, &x).unwrap();
    // SAFETY: as above.
    unsafe { graph.launch().unwrap() };
    let replayed = results();
    work().unwrap();
    assert!(results() == replayed && replayed != first, "a replay on other inputs differs from the launches");
    let kernels = graph.kernels();
    for name in ["rmsnorm_forward", "rmsnorm_backward", "rmsnorm_dweight"] {
        assert_eq!(kernels.get(name), Some(&1), "{name} among {kernels:?}");
    }
    assert!(kernels.len() > 3, "no product among {kernels:?}");
}
