//! The pages of `docs/how-to` about the harness, as a reader follows them; the trainer's tests follow all others.

#[path = "../../trainer/tests/follow/mod.rs"]
mod follow;

use follow::{OF_HARNESS, folder, follow};

/// No other page is left out: the trainer's tests count the files of the folder.
#[test]
fn follows_every_page() {
    for page in OF_HARNESS {
        follow(env!("CARGO_BIN_EXE_chronibench"), page, folder().path());
    }
}
