//! The sanitizers: every check of a kernel runs under them once more, and they see planted faults.

use std::process::Output;

use chronicals_emulator::sanitizer::again;
use chronicals_kernels::gpu::Arg;

use super::{Emulator, probes};

/// Set in a process that is to run into a fault.
const PLANTED: &str = "CHRONICALS_PLANTED_FAULT";

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

#[test]
fn sanitized() {
    // The reduced checks are among the whole ones.
    let filters = ["emulated::", "emulator::probes::", "--skip", "emulated::smoke"];
    let output = again(&filters).output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{}\n{text}", output.status);
    assert!(text.contains("test result: ok.") && !text.contains(" 0 passed"), "nothing ran:\n{text}");
}

/// Runs `fault` in a process of its own, where the sanitizer must end it with a message that has `message` in it. `name` is
/// the calling test's.
fn is_seen(name: &str, message: &str, fault: impl FnOnce()) {
    if std::env::var_os(PLANTED).is_some() {
        return fault();
    }
    let output =
        again(&["--exact", &format!("emulator::faults::{name}")]).env(PLANTED, "1").output().unwrap();
    let text = text(&output);
    assert!(text.contains("running 1 test"), "no test {name}:\n{text}");
    assert!(!output.status.success() && text.contains(message), "{message} was not seen:\n{text}");
}

#[test]
fn writes_past_an_operand_are_seen() {
    is_seen("writes_past_an_operand_are_seen", "heap-buffer-overflow", || {
        let machine = Emulator::new();
        let out = probes::floats(&machine).output(5);
        probes::launch("write_at", (1, 1), 1, 0, &[Arg::Ptr(out.ptr()), Arg::I32(5)]).unwrap();
    });
}

fn write_shared(i: i32, j: i32) {
    let machine = Emulator::new();
    let out = probes::floats(&machine).output(1);
    probes::launch("write_shared", (1, 1), 1, 20, &[Arg::Ptr(out.ptr()), Arg::I32(i), Arg::I32(j)]).unwrap();
}

#[test]
fn writes_past_a_shared_array_are_seen() {
    is_seen("writes_past_a_shared_array_are_seen", "index 8 out of bounds", || write_shared(8, 0));
}

#[test]
fn writes_past_dynamic_shared_memory_are_seen() {
    is_seen("writes_past_dynamic_shared_memory_are_seen", "heap-buffer-overflow", || write_shared(0, 5));
}

#[test]
fn misaligned_packs_are_seen() {
    is_seen("misaligned_packs_are_seen", "misaligned address", || {
        let machine = Emulator::new();
        let on = probes::floats(&machine);
        let (input, out) = (on.input(&[0.0; 8]), on.output(1));
        probes::launch("misaligned", (1, 1), 1, 0, &[Arg::Ptr(input.ptr()), Arg::Ptr(out.ptr())]).unwrap();
    });
}
