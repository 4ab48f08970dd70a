//! Ctrl-C and termination signals: noted here, acted on where children are waited for.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Exit};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Begins to note signals. Children run in process groups of their own, so the terminal's Ctrl-C reaches only the
/// harness, which ends them in order.
pub fn install() {
    // A second call (two runs in one process) finds the handler in place, which is as good.
    let _ = ctrlc::set_handler(|| REQUESTED.store(true, Ordering::SeqCst));
}

/// True once a signal has come.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// The error that ends the program after a signal.
pub fn error() -> Error {
    Error::new(Exit::Interrupted, "interrupted", "the run")
}
