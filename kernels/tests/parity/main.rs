//! Every CUDA kernel against the f64 reference: under the emulator, and on a GPU where one is asked for:
//!
//! ```text
//! cargo test --release -p chronicals-kernels --test parity -- --ignored
//! ```
#![allow(non_snake_case)] // shape suffixes, see the crate's legend

mod adamw;
mod attention;
mod bench;
mod embedding;
mod emulator;
mod graph;
mod linear_ce;
mod long;
mod lora;
mod machine;
mod matmul;
mod qk_rope;
mod rmsnorm;
mod swiglu;

/// The same checks on either machine; those after the semicolon would take the emulator too long.
macro_rules! parity {
    ($($kernel:ident { $($check:ident),* $(,)? })*; $($only:ident { $($long:ident),* $(,)? })*) => {
        mod emulated {
            $(mod $kernel {
                $(#[test] fn $check() { crate::$kernel::$check(&crate::emulator::Emulator::new()); })*
            })*
        }
        mod gpu {
            $(mod $kernel {
                $(#[test] #[ignore = "needs a GPU"] fn $check() { crate::$kernel::$check(&crate::machine::Device::open()); })*
            })*
            $(mod $only {
                $(#[test] #[ignore = "needs a GPU"] fn $long() { crate::$only::$long(&crate::machine::Device::open()); })*
            })*
        }
    };
}

parity! {
    adamw { norm, master, rounded, quantised, unbiased }
    attention { forward_backward, magnitudes, isolation }
    embedding { forward, backward }
    linear_ce { forward_backward, chunks, magnitudes }
    lora { forward, backward }
    matmul { products }
    qk_rope { forward, backward }
    rmsnorm { forward, backward }
    swiglu { forward, backward }
    ;
    graph { replays }
    long { attention, linear_ce, qk_rope, rmsnorm, swiglu }
}
