//! Kernels that show what the emulator does; they run under the sanitizers too.

use chronicals_kernels::{
    cases::values,
    gpu::{Arg, Elem, Entry, GpuError, Grid, Launcher, Needs, Unit},
};

use super::Emulator;
use crate::machine::{Machine, Memory, Operands, rounded};

/// A unit of tests only.
pub static UNIT: Unit = Unit {
    name: "probes",
    source: include_str!("probes.cu"),
    entries: &[
        "collectives",
        "leaving",
        "shared_memory",
        "copies",
        "product",
        "write_at",
        "write_shared",
        "misaligned",
        "deadlock",
        "mixed",
        "hasty",
    ],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Launches a kernel of [`UNIT`], whose arguments fit it but where a test plants a fault.
pub fn launch(
    name: &'static str,
    blocks: (u32, u32),
    threads: u32,
    shared: u32,
    args: &[Arg],
) -> Result<(), GpuError> {
    let entry = Entry { unit: &UNIT, name, elem: Elem::Bf16 };
    // SAFETY: each caller passes memory as its kernel wants it; the faults are fatal by intent.
    unsafe { Emulator::new().launch(entry, Grid { blocks, threads, shared }, args) }
}

/// Operands in f32 of the emulator.
pub fn floats(machine: &Emulator) -> Operands<'_> {
    Operands { machine, elem: Elem::F32 }
}

fn integers(memory: &Memory) -> Vec<i32> {
    Emulator::new().download(memory).as_chunks().0.iter().map(|b| i32::from_ne_bytes(*b)).collect()
}

#[test]
fn lanes_exchange_values() {
    let out = Emulator::new().upload(&[0; 32 * 10 * 4]);
    launch("collectives", (1, 1), 32, 0, &[Arg::Ptr(out.ptr())]).unwrap();
    let thirds = (0..32).step_by(3).fold(0u32, |m, l| m | 1 << l).cast_signed();
    for (lane, got) in (0i32..).zip(integers(&out).chunks(10)) {
        let half = if lane < 16 { 3 + (lane ^ 1) } else { 0xaaaa_0000u32.cast_signed() };
        let late = if lane < 20 { [0x000f_ffff, 1] } else { [0, 0] };
        let up = if lane % 8 < 3 { lane } else { lane - 3 };
        let down = if lane + 3 > 31 { lane } else { lane + 3 };
        let expected = [lane ^ 5, lane / 16 * 16 + 7, up, down, thirds, 1, 0, half, late[0], late[1]];
        assert_eq!(got, expected, "lane {lane}");
    }
}

#[test]
fn threads_that_ended_hold_nobody_up() {
    let out = Emulator::new().upload(&[0; 10 * 4]);
    launch("leaving", (2, 1), 75, 0, &[Arg::Ptr(out.ptr()), Arg::I32(10)]).unwrap();
    let expected: Vec<i32> = (0..10).map(|i| (75 - (i + 1)) * 4 + 2).collect();
    assert_eq!(integers(&out), expected);
}

#[test]
fn shared_memory_is_a_blocks_own() {
    let machine = Emulator::new();
    let out = floats(&machine).output(6);
    launch("shared_memory", (3, 2), 96, 96 * 4, &[Arg::Ptr(out.ptr())]).unwrap();
    assert_eq!(floats(&machine).read(&out), [95.0 * 96.0 / 2.0; 6]);
}

#[test]
fn copies_arrive_when_waited_for() {
    let machine = Emulator::new();
    let on = floats(&machine);
    let (input, out) = (on.input(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]), on.output(5));
    launch("copies", (1, 1), 1, 0, &[Arg::Ptr(input.ptr()), Arg::Ptr(out.ptr())]).unwrap();
    let got = on.read(&out);
    assert!(got[0].is_nan() && got[2].is_nan(), "{got:?}: a copy before its wait");
    assert_eq!([got[1], got[3], got[4]], [1.0, 5.0, 0.0]);
}

#[test]
fn tensor_cores_multiply() {
    let (machine, k) = (Emulator::new(), 48);
    let on = Operands { machine: &machine, elem: Elem::Bf16 };
    let [a, b] = [(1, 16 * k), (2, 8 * k)].map(|(seed, n)| rounded(Elem::Bf16, values(seed, n)));
    let b_KN: Vec<f32> = (0..k * 8).map(|i| b[i % 8 * k + i / 8]).collect();
    for (transposed, b_as_stored) in [(0, &b), (1, &b_KN)] {
        let (am, bm, cm) = (on.input(&a), on.input(b_as_stored), on.f32().output(16 * 8));
        let pointers = [am.ptr(), bm.ptr(), cm.ptr()].map(Arg::Ptr);
        let args = [pointers.as_slice(), &[Arg::I32(k as i32), Arg::I32(transposed)]].concat();
        launch("product", (1, 1), 32, 0, &args).unwrap();
        for (i, got) in on.f32().read(&cm).into_iter().enumerate() {
            let expected: f32 = (0..k).map(|j| a[i / 8 * k + j] * b[i % 8 * k + j]).sum();
            assert!(
                (got - expected).abs() < 1e-5,
                "c[{i}], transposed {transposed}: {got} is not {expected}"
            );
        }
    }
}

#[test]
fn arguments_have_the_types_of_the_parameters() {
    let out = Emulator::new().upload(&[0; 4]);
    for wrong in [&[Arg::Ptr(out.ptr())] as &[Arg], &[Arg::Ptr(out.ptr()), Arg::U32(0)]] {
        let error = launch("write_at", (1, 1), 1, 0, wrong).unwrap_err();
        assert!(error.what.contains("write_at takes pi, not p"), "{error}");
    }
    assert!(launch("write_at", (1, 1), 1025, 0, &[Arg::Ptr(out.ptr()), Arg::I32(0)]).is_err());
    assert!(launch("read_at", (1, 1), 1, 0, &[]).unwrap_err().what.contains("no entry read_at"));
}

#[test]
fn a_deadlock_is_reported() {
    let machine = Emulator::new();
    let out = floats(&machine).output(1);
    // Twice: the emulator is whole after a failure.
    for _ in 0..2 {
        let error = launch("deadlock", (2, 1), 64, 0, &[Arg::Ptr(out.ptr())]).unwrap_err();
        assert!(error.what.starts_with("deadlock, block (0, 0): deadlock: "), "{error}");
        assert!(error.what.contains("32 threads wait at __shfl_sync, the first of them 16"), "{error}");
        assert!(error.what.contains("32 threads wait at __syncthreads, the first of them 0"), "{error}");
    }
    let error = launch("mixed", (1, 1), 32, 0, &[Arg::Ptr(out.ptr())]).unwrap_err();
    assert!(error.what.contains("__any_sync") && error.what.contains("__all_sync"), "{error}");
    lanes_exchange_values();
}

#[test]
fn a_missing_barrier_shows() {
    let machine = Emulator::new();
    let right = [2.0 * 3.0 * (63.0 * 64.0 / 2.0); 2];
    for (barrier, well) in [(1, true), (0, false)] {
        let out = floats(&machine).input(&[0.0; 2]);
        launch("hasty", (2, 1), 64, 0, &[Arg::Ptr(out.ptr()), Arg::I32(barrier)]).unwrap();
        let got = floats(&machine).read(&out);
        assert_eq!(got == right, well, "barrier {barrier}: {got:?}");
    }
}
