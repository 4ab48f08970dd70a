//! What is left of a search for algorithms; on a GPU alone.

use chronicals_kernels::gpu::{Elem, Gpu, Product, compile::Cache, matmul::Matmul};

/// A product is tuned once a machine, and its kernel loaded once a process.
pub fn once(_: &dyn crate::machine::Machine) {
    let dir = tempfile::tempdir().unwrap();
    let on = Gpu::open(0, Cache::of_user()).unwrap();
    let open = || Matmul::new(&on, Some(dir.path().into())).unwrap();
    let one = Product::linear_forward(264, 896, 136, Elem::Bf16);
    let all = [one, Product { bias: true, ..one }, Product { accumulate: true, ..one }];
    let first = open();
    for p in &all {
        assert!(!first.is_tuned(p), "{}", p.name());
        first.tune(p).unwrap();
        assert!(first.is_tuned(p), "{}", p.name());
    }
    let second = open();
    for p in &all {
        assert!(!second.is_tuned(p), "{}: its kernel has not run", p.name());
        second.tune(p).unwrap();
        assert!(second.is_tuned(p), "{}", p.name());
    }
    assert_eq!(second.choices(), first.choices());
}
