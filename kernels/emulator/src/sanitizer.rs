//! The test binary once more, with kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

use std::process::Command;

use crate::module;

/// The sanitizer's runtime, which must be in the process before all else.
fn runtime() -> String {
    let file = module::output(module::compiler().arg("-print-file-name=libasan.so"))
        .unwrap_or_else(|e| panic!("{e}"));
    let file = file.trim();
    // Without it g++ prints the bare name.
    assert!(file.starts_with('/'), "g++ has no AddressSanitizer: apt-get install g++");
    file.to_string()
}

/// This test binary, with the sanitizers, on the tests whose names contain one of `filters`, which may end in options.
///
/// # Panics
/// The compiler has no sanitizers.
pub fn again(filters: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a running program has a file"));
    command.args(filters).env("LD_PRELOAD", runtime()).env("CHRONICALS_SANITIZE", "1");
    command.env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0");
    command.env("UBSAN_OPTIONS", "print_stacktrace=1");
    command
}
