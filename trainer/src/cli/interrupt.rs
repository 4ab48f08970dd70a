//! Ctrl-C and termination signals: noted here, acted on between two steps.

use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of a program that a signal ended.
pub const CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Begins to note signals. The second one ends the process: whatever is being written is then left beside its place.
pub fn install() {
    // A second call finds the handler in place, which is as good.
    let _ = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(CODE.into());
        }
        eprintln!("ending the step at hand and saving; once more to end at once");
    });
}

/// True once a signal has come.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
