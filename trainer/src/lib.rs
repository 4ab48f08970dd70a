//! Fine-tuning in Rust: the model step, LoRA, optimizers.
//!
//! Shape suffixes as in `chronicals-kernels`: `T` tokens, `D` hidden, `F` feed-forward, `V` vocabulary, `Q` packed
//! QKV, `K` head dimension.

mod args;
pub mod backend;
pub mod checkpoint;
pub mod config;
pub mod describe;
pub mod device;
pub mod error;
pub mod evaluate;
pub mod fit;
pub mod formats;
pub mod generate;
pub mod init;
pub mod job;
pub mod lora;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod params;
pub mod preset;
pub mod profile;
pub mod progress;
pub mod room;
mod svd;
pub mod trainer;
pub mod weights;
pub mod worker;

pub use chronicals_data as data;
pub use chronicals_kernels::{KernelPlan, Seam, Target, Variant};
pub use error::{Error, Result};
pub use trainer::Trainer;
