//! The GPU's backend against Hugging Face's goldens and against the processor: under the emulator, and on a GPU where one is
//! asked for. The test binary alone is enough there:
//!
//! ```text
//! cargo test --release -p chronicals-tests --test cuda -- --ignored gpu
//! ```

mod agreement;
mod feed;
mod goldens;
mod graphs;
mod memory;
mod profile;
mod recompute;
mod states;
mod trial;

use std::sync::{Mutex, MutexGuard, PoisonError};

use chronicals_emulator::Training;
use chronicals_kernels::gpu::machine::Cuda;

/// The same checks on either machine; those behind the semicolon on the emulator alone.
macro_rules! checks {
    ($($module:ident { $($check:ident),* $(; $($only:ident),*)? })*) => {
        mod emulated {
            $(mod $module {
                $(#[test] fn $check() { crate::$module::$check(&crate::emulator); })*
                $($(#[test] fn $only() { crate::$module::$only(&crate::emulator); })*)?
            })*
        }
        mod gpu {
            $(mod $module {
                $(
                    #[test]
                    #[ignore = "needs a GPU"]
                    fn $check() {
                        let _alone = crate::alone();
                        crate::$module::$check(&crate::gpu_0);
                    }
                )*
            })*
        }
    };
}

fn emulator() -> Training {
    Training::new()
}

/// A process trains on one GPU alone; tests are several, and another one's waiting would break a capture.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // A test that failed holds up no other.
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn gpu_0() -> Cuda {
    Cuda::open(0).unwrap_or_else(|e| panic!("{e}; {}", e.hint))
}

checks! {
    goldens { gradients, ten_steps, norms_by_group, smoothing_and_z_loss }
    agreement { gradients_f32, gradients_bf16, eager_f32, eager_bf16, odd_adapters, ten_steps_f32, ten_steps_bf16, packed_as_alone }
    feed { as_step_by_step, failures; whenever_copies_arrive, eager_whenever_copies_arrive, ahead }
    graphs { replays, eager_replays, one_graph_a_shape, evaluation_between; log }
    states { losses_fall, resumed, masters, seeds; scalars }
    recompute { levels, eager_levels, replayed, offloaded; whenever_entries_come, limits }
    memory { as_planned; taken, evaluated, adopted, refusals }
    profile { complete; the_same, as_logged, resumed, without_cupti, documents }
    trial { events }
}

/// Whole steps with every buffer on the heap, at its exact length: no kernel reads or writes beyond what the backend gave it.
#[test]
fn sanitized() {
    let filters = [
        "emulated::trial",
        "emulated::goldens::gradients",
        "emulated::graphs::replays",
        "emulated::feed::ahead",
    ];
    let output = chronicals_emulator::sanitizer::again(&filters).output().unwrap();
    let text =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    assert!(output.status.success(), "{}\n{text}", output.status);
    assert!(text.contains("test result: ok. 4 passed"), "{text}");
}
