use chronicals_kernels::gpu::{Machine, Wait};

use super::*;
use crate::Training;

/// The two bytes that were read of what was sent, where the launches wait for it or not, and what is sent waits for the read
/// before it or not.
fn sent(arrival: Arrival, [follows, waits]: [bool; 2]) -> [u8; 2] {
    let machine = Training::arriving(arrival);
    let [staging, batch] = [(); 2].map(|()| machine.alloc(1).unwrap());
    let mut taken = None;
    let read = [1, 2].map(|byte| {
        let mut block = machine.host(1).unwrap();
        block[0] = byte;
        let mut read = machine.host(1).unwrap();
        // SAFETY: the host memory is kept until everything has passed; the order is the test.
        unsafe {
            let arrived = machine.send(&block, &staging, 1, taken.as_ref().filter(|_| waits)).unwrap();
            if follows {
                machine.follow(&arrived).unwrap();
            }
            machine.copy(&staging, &batch, 1).unwrap();
            machine.receive(&batch, 0, &mut read).unwrap();
        }
        taken = Some(machine.mark().unwrap());
        (block, read)
    });
    machine.streams.finish().unwrap();
    read.map(|(_, read)| read[0])
}

#[test]
fn a_mark_that_is_missing_shows() {
    for arrival in [Arrival::Late, Arrival::Early] {
        assert_eq!(sent(arrival, [true, true]), [1, 2], "{arrival:?}");
    }
    assert_eq!(sent(Arrival::Late, [false, true]), [0, 0]);
    assert_eq!(sent(Arrival::Early, [true, false]), [2, 2]);
}

/// The byte that comes back of one that was put aside before its place was overwritten, where the launches wait for the copy
/// there or not, and for the one back or not.
fn put_aside(arrival: Arrival, follows: [bool; 2], captured: bool) -> Result<u8, GpuError> {
    let machine = Training::arriving(arrival);
    let [memory, result] = [(); 2].map(|()| machine.alloc(1).unwrap());
    machine.write(&memory, 0, &[7])?;
    let aside = machine.host(1)?;
    let mut work = || {
        // SAFETY: the host memory is kept until everything has passed; the order is the test.
        let left = unsafe { machine.put_aside(&memory, 0, &aside, 1)? };
        if follows[0] {
            machine.follow(&left)?;
        }
        machine.zero(&memory, 0, 1)?;
        // SAFETY: as above.
        let back = unsafe { machine.bring_back(&aside, &memory, 0, 1)? };
        if follows[1] {
            machine.follow(&back)?;
        }
        machine.copy(&memory, &result, 1)
    };
    if captured {
        let graph = machine.capture(&mut work)?;
        // SAFETY: everything is kept.
        unsafe { machine.replay(&graph)? };
    } else {
        work()?;
    }
    Ok(machine.read(&result, 0, 1)?[0])
}

#[test]
fn what_is_put_aside_comes_back_where_somebody_waits_for_it() {
    for captured in [false, true] {
        for arrival in [Arrival::Late, Arrival::Early] {
            assert_eq!(put_aside(arrival, [true, true], captured).unwrap(), 7, "{arrival:?}");
        }
        // Overwritten before it left.
        assert_eq!(put_aside(Arrival::Late, [false, true], captured).unwrap(), 0);
    }
    // Read before it came back.
    assert_eq!(put_aside(Arrival::Late, [true, false], false).unwrap(), 0);
    let e = put_aside(Arrival::Late, [true, false], true).unwrap_err();
    assert!(e.what.contains("nothing waits for the last"), "{e}");
}

#[test]
fn a_mark_stays_in_its_capture() {
    let machine = Training::new();
    let (memory, aside) = (machine.alloc(1).unwrap(), machine.host(1).unwrap());
    let outside = machine.mark().unwrap();
    let e = machine.capture(&mut || machine.follow(&outside)).err().unwrap();
    assert!(e.what.contains("means nothing"), "{e}");
    let mut inside = None;
    machine
        .capture(&mut || {
            // SAFETY: nothing runs.
            let mark = unsafe { machine.put_aside(&memory, 0, &aside, 1)? };
            machine.follow(&mark)?;
            inside = Some(mark);
            Ok(())
        })
        .unwrap();
    let e = machine.follow(&inside.unwrap()).unwrap_err();
    assert!(e.what.contains("means nothing"), "{e}");
}

#[test]
#[should_panic(expected = "written while a copy of it waits")]
fn host_memory_is_not_written_under_a_copy() {
    let machine = Training::new();
    let (memory, mut block) = (machine.alloc(1).unwrap(), machine.host(1).unwrap());
    // SAFETY: nothing runs: the test writes to it, and that is refused.
    unsafe { drop(machine.send(&block, &memory, 1, None).unwrap()) };
    block[0] = 1;
}

#[test]
fn another_thread_can_wait() {
    let machine = Training::new();
    let (memory, mut block) = (machine.alloc(1).unwrap(), machine.host(1).unwrap());
    block[0] = 7;
    // SAFETY: the block is written to when the copy has passed.
    let arrived = unsafe { machine.send(&block, &memory, 1, None).unwrap() };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            arrived.wait().unwrap();
            block[0] = 8;
        });
    });
    assert_eq!(machine.read(&memory, 0, 1).unwrap(), [7]);
    assert_eq!(machine.writers().len(), 2);
}
