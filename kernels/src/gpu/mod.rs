//! CUDA at run time: libraries are found and loaded when a GPU is first asked for, kernels are compiled by NVRTC for the
//! device at hand and cached on disk. Nothing of CUDA is needed to build this crate.
//!
//! | module | what |
//! |---|---|
//! | [`library`] | where the driver, NVRTC and cuBLASLt are |
//! | [`compile`] | CUDA C++ to CUBIN, with a cache |
//! | [`launch`] | what a kernel's `cuda.rs` says: source, grid, arguments |
//! | [`eager`] | what the eager variants share |
//! | [`device`], [`memory`] | streams, and the launches on them; memory |
//! | [`events`], [`beside`] | points in the order of a stream; copies that run beside the launches |
//! | [`graph`] | work that is captured once and run again |
//! | [`trace`] | what ran and when, what it cost, what the machine can do; [`cupti`] and [`stamps`] are its clocks |
//! | [`machine`] | all that a training needs of a device |
//! | [`product`], [`matmul`] | matrix products; by cuBLASLt, planned and tuned |
//! | [`mod@bench`] | a kernel checked, then timed beside a copy of its bytes |
//! | [`mod@digest`] | a digest of device memory |
//!
//! A kernel's folder holds `kernel.cu`, which follows `prelude.cuh` in one translation unit and includes nothing, and
//! `cuda.rs`, its launch code over [`Launcher`]; the same for the eager variant in `eager.cu` and `cuda_eager.rs`.

mod algorithms;
mod args;
pub mod bench;
pub mod beside;
pub mod compile;
pub mod cupti;
pub mod device;
pub mod digest;
pub mod eager;
mod error;
pub mod events;
pub mod graph;
pub mod launch;
pub mod library;
pub mod machine;
pub mod matmul;
pub mod memory;
pub mod product;
mod proof;
pub mod stamps;
pub mod trace;

pub use beside::Pinned;
pub use device::Gpu;
pub use error::GpuError;
pub use graph::Graph;
pub use launch::{Arg, Elem, Entry, Grid, Launcher, Needs, Ptr, Unit, le_bytes};
pub use machine::{Machine, Wait};
pub use memory::Buffer;
pub use product::{Product, Products};
pub use trace::{Activity, Cost, Limits, Tracer};
