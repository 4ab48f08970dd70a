//! Every CUDA kernel against the f64 reference: under the emulator, and on a GPU where one is asked for:
//!
//! ```text
//! cargo test --release -p chronicals-kernels --test parity -- --ignored
//! ```
#![allow(non_snake_case)] // shape suffixes, see the crate's legend

mod adamw;
mod adamw_norm;
mod attention;
mod attention_eager;
mod bench;
mod digest;
mod embedding;
mod emulator;
mod graph;
mod linear_ce;
mod long;
mod lora;
mod machine;
mod matmul;
mod products;
mod qk_rope;
mod rmsnorm;
mod smoke;
mod swiglu;
mod swiglu_adapted;
mod tuning;

/// The same checks on either machine. In this order: checks of kernels, which `smoke` runs too; others; those that
/// would take the emulator too long.
macro_rules! parity {
    (
        $($kernel:ident { $($check:ident),* $(,)? })*;
        $($other:ident { $($of_other:ident),* $(,)? })*;
        $($only:ident { $($long:ident),* $(,)? })*
    ) => {
        /// Checks of kernels.
        const CHECKS: &[smoke::Check] =
            &[$($((concat!(stringify!($kernel), "::", stringify!($check)), $kernel::$check)),*),*];
        mod emulated {
            parity!(
                @emulated
                $($kernel { $($check),* })* $($other { $($of_other),* })*
            );
            mod smoke {
                #[test]
                fn every_kernel() {
                    crate::smoke::every_kernel(&crate::emulator::Emulator::new(), crate::CHECKS);
                }
            }
        }
        mod gpu {
            parity!(
                @gpu
                $($kernel { $($check),* })* $($other { $($of_other),* })* $($only { $($long),* })*
            );
            mod smoke {
                #[test]
                #[ignore = "needs a GPU"]
                fn every_kernel() {
                    let machine = crate::machine::Device::without_cublas();
                    crate::smoke::every_kernel(&machine, crate::CHECKS);
                }
            }
        }
    };
    (@emulated $($kernel:ident { $($check:ident),* })*) => {
        $(mod $kernel {
            $(#[test] fn $check() { crate::$kernel::$check(&crate::emulator::Emulator::new()); })*
        })*
    };
    (@gpu $($kernel:ident { $($check:ident),* })*) => {
        $(mod $kernel {
            $(#[test] #[ignore = "needs a GPU"] fn $check() { crate::$kernel::$check(&crate::machine::Device::open()); })*
        })*
    };
}

parity! {
    adamw { master, rounded, rounded_to_nearest, quantised, quantised_as_on_the_processor, unbiased,
        eager_is_not_quantised }
    adamw_norm { norm }
    attention { forward_backward, magnitudes, isolation }
    attention_eager { forward_backward, magnitudes, isolation, long_rows }
    digest { words }
    embedding { forward, backward }
    linear_ce { forward_backward, chunks, magnitudes, turns }
    lora { forward, backward, refusal }
    qk_rope { forward, backward }
    rmsnorm { forward, backward }
    swiglu { forward, backward }
    swiglu_adapted { forward, backward }
    ;
    matmul { products, batches }
    ;
    graph { replays }
    tuning { once }
    long {
        attention, embedding, linear_ce, linear_ce_rows, lora, qk_norm, qk_rope, rmsnorm, rmsnorm_residual, swiglu,
        swiglu_adapted,
    }
}
