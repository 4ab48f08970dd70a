//! Digests against the sum of their contract, whoever runs them.

use chronicals_kernels::gpu::{digest, le_bytes};

use crate::machine::Machine;

/// Fewer words than threads, and more.
const LENGTHS: [usize; 3] = [1, 1000, 70_001];

fn mixed(word: u32, place: u64) -> u64 {
    let z = (u64::from(word) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (place + 1).wrapping_mul(0xd134_2543_de82_ef95);
    let z = (z ^ (z >> 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 29)
}

/// Sum and count, with words of all ones among them.
pub fn words(machine: &dyn Machine) {
    for len in LENGTHS {
        let words: Vec<u32> = (0..len as u32)
            .map(|i| if i % 7 == 0 { u32::MAX } else { i.wrapping_mul(0x9e37_79b9) })
            .collect();
        let input = machine.upload(&le_bytes(&words, u32::to_le_bytes));
        let parts = machine.upload(&vec![0xff; digest::parts_bytes(machine.launcher())]);
        // SAFETY: the input has that many words, and the parts the length asked for.
        unsafe { digest::launch(machine.launcher(), input.ptr(), len, parts.ptr()).unwrap() };
        let sum = words.iter().zip(0..).fold(0u64, |sum, (w, i)| sum.wrapping_add(mixed(*w, i)));
        let got = digest::sum(&machine.download(&parts));
        assert_eq!(got, digest::Digest { sum, ones: len.div_ceil(7) as u64 }, "{len} words");
    }
}
