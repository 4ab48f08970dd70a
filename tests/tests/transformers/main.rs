//! The GPU's backend against Hugging Face Transformers, both on the GPU, at the widths of a real model. It needs a GPU, and a
//! `python3` with torch, transformers and peft:
//!
//! ```text
//! cargo test --release -p chronicals-tests --test transformers -- --ignored --nocapture
//! ```
//!
//! The same comparisons run on the processor with a small model where `HF_PYTHONPATH` names a folder with these packages:
//! that tells whether both sides mean the same, and needs no GPU.

mod curves;
mod gradients;
mod side;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A process trains on one GPU alone.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
