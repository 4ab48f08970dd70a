//! Records of CUPTI's activity API, as bytes: the fields that a trace needs.
//!
//! NVIDIA adds fields at the end of records (`CUpti_ActivityKernel9` to `13`, `Memcpy5` to `7`, `Memset4` to `5`); those below
//! are where they were in CUDA 12.0 in every version that [`is_known`]. Source: `cupti_activity.h` of 12.0 to 13.5.

use std::ffi::{CStr, c_char};

use crate::gpu::trace::{Activity, Kind, Node};

/// `CUpti_ActivityKind`: copies, fills, kernels that may run beside each other.
pub const KINDS: [u32; 3] = [MEMCPY, MEMSET, KERNEL];
const MEMCPY: u32 = 1;
const MEMSET: u32 = 2;
const KERNEL: u32 = 10;

/// Whether the records of a version (`CUPTI_API_VERSION`) are known to be laid out as here: 18 to 28 are CUDA 12.0 to 12.9,
/// 1300xx to 1305xx CUDA 13.0 to 13.5.
pub fn is_known(version: u32) -> bool {
    (18..=28).contains(&version) || (130_000..130_600).contains(&version)
}

/// A version in words.
pub fn version_name(version: u32) -> String {
    match version {
        100_000.. => format!("CUPTI {}.{}", version / 10_000, version % 10_000 / 100),
        _ => format!("CUPTI API version {version}"),
    }
}

/// Bytes of the fields that are read, of each kind.
fn least_bytes(kind: u32) -> Option<usize> {
    match kind {
        KERNEL => Some(160),
        MEMCPY => Some(80),
        MEMSET => Some(76),
        _ => None,
    }
}

/// Reads a record that begins at `at`; nothing of other kinds.
///
/// # Safety
/// A whole record of a [known](is_known) version lies there, and a kernel's name is a string of C.
pub unsafe fn read(at: *const u8) -> Option<Activity> {
    // SAFETY: every record begins with its kind; records are aligned to 8 bytes, which none of this relies on.
    let kind = unsafe { at.cast::<u32>().read_unaligned() };
    let len = least_bytes(kind)?;
    // SAFETY: the caller's promise; a record of this kind has at least as many bytes.
    let bytes = unsafe { std::slice::from_raw_parts(at, len) };
    let u32_at = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("inside a record"));
    let u64_at = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside a record"));
    // Both times are 0 where they could not be taken.
    let (start_ns, end_ns) = (u64_at(16), u64_at(24));
    let of = |kind, name, bytes, [stream, launch, node, graph]: [usize; 4]| Activity {
        kind,
        name,
        start_ns,
        end_ns,
        stream: u32_at(stream),
        node: (u32_at(graph) != 0).then(|| Node { launch: u32_at(launch), number: u64_at(node) }),
        bytes,
    };
    // Stream, correlation, number of the node, of the graph.
    const OF_KERNEL: [usize; 4] = [48, 92, 144, 156];
    const OF_OTHERS: [usize; 4] = [40, 44, 64, 72];
    Some(match kind {
        KERNEL => {
            let name = std::ptr::with_exposed_provenance::<c_char>(u64_at(104) as usize);
            // SAFETY: the caller's promise.
            let name = if name.is_null() { c"" } else { unsafe { CStr::from_ptr(name) } };
            of(Kind::Kernel, name.to_string_lossy().into_owned(), 0, OF_KERNEL)
        }
        MEMCPY => {
            let way = match bytes[4] {
                1 => "copy from the host",
                2 => "copy to the host",
                8 => "copy on the device",
                _ => "copy",
            };
            of(Kind::Copy, way.into(), u64_at(8), OF_OTHERS)
        }
        _ => of(Kind::Fill, "fill".into(), u64_at(8), OF_OTHERS),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of zeros but for these fields.
    fn record(kind: u32, len: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        fields.iter().for_each(|(at, field)| bytes[*at..at + field.len()].copy_from_slice(field));
        bytes
    }

    fn parsed(bytes: &[u8]) -> Option<Activity> {
        // SAFETY: the records below are whole, and their names are strings.
        unsafe { read(bytes.as_ptr()) }
    }

    #[test]
    fn kernels() {
        let name = c"sm90_xmma_gemm";
        let address = (name.as_ptr().expose_provenance() as u64).to_le_bytes();
        let [start, end] = [1000u64, 1234].map(u64::to_le_bytes);
        let [stream, graph, launch, node] = [13u32, 7, 17, 19].map(u32::to_le_bytes);
        let fields: [(usize, &[u8]); 7] = [
            (16, &start),
            (24, &end),
            (48, &stream),
            (104, &address),
            (92, &launch),
            (144, &node),
            (156, &graph),
        ];
        // As long as in CUDA 13.5, and as in 12.0.
        for len in [248, 208] {
            let expected = Activity {
                kind: Kind::Kernel,
                name: "sm90_xmma_gemm".into(),
                start_ns: 1000,
                end_ns: 1234,
                stream: 13,
                node: Some(Node { launch: 17, number: 19 }),
                bytes: 0,
            };
            assert_eq!(parsed(&record(KERNEL, len, &fields)), Some(expected.clone()));
            let launched = Activity { node: None, ..expected };
            assert_eq!(parsed(&record(KERNEL, len, &fields[..6])), Some(launched));
        }
        assert_eq!(parsed(&record(KERNEL, 248, &[])).unwrap().name, "", "a kernel without a name");
    }

    #[test]
    fn copies_and_fills() {
        let [bytes, start, end] = [4096u64, 5, 9].map(u64::to_le_bytes);
        let [stream, graph, launch, node] = [3u32, 1, 17, 19].map(u32::to_le_bytes);
        let fields: [(usize, &[u8]); 7] =
            [(8, &bytes), (16, &start), (24, &end), (40, &stream), (44, &launch), (64, &node), (72, &graph)];
        for (kind, way, name, of) in [
            (MEMCPY, 1u8, "copy from the host", Kind::Copy),
            (MEMCPY, 2, "copy to the host", Kind::Copy),
            (MEMCPY, 8, "copy on the device", Kind::Copy),
            (MEMCPY, 3, "copy", Kind::Copy),
            (MEMSET, 0, "fill", Kind::Fill),
        ] {
            let a = parsed(&record(kind, 112, &[&fields[..], &[(4, &[way][..])]].concat())).unwrap();
            assert_eq!((a.kind, a.name.as_str(), a.bytes), (of, name, 4096));
            let node = Some(Node { launch: 17, number: 19 });
            assert_eq!((a.start_ns, a.end_ns, a.stream, a.node), (5, 9, 3, node));
        }
        assert_eq!(parsed(&record(51, 112, &fields)), None, "another kind");
    }

    #[test]
    fn versions() {
        for known in [18, 28, 130_001, 130_500] {
            assert!(is_known(known), "{known}");
        }
        for unknown in [0, 17, 29, 130_600, 140_000] {
            assert!(!is_known(unknown), "{unknown}");
        }
        assert_eq!(version_name(130_202), "CUPTI 13.2");
        assert_eq!(version_name(26), "CUPTI API version 26");
    }
}
