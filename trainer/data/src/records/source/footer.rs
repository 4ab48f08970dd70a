//! Parquet's metadata, looked over before the library reads them. It steps over booleans in a list that it does not know one by one, and
//! they take no bytes: a file of 69 bytes could have it count to 2³¹, and a larger one for days.
//!
//! The walk is that of the library over fields that it does not know: Thrift's compact protocol. What is malformed is left to the library,
//! which says so better.

use std::{fs::File, os::unix::fs::FileExt};

/// Length of the metadata and the magic behind them.
const TAIL: usize = 8;
/// Values in a list or a mapping that take no bytes: Parquet has none.
const MOST: u64 = 1024;
/// Values in one another, as the library has it.
const DEEPEST: u8 = 64;

/// Types of values on the wire.
const BOOLEANS: [u8; 2] = [1, 2];
const BYTE: u8 = 3;
const INTEGERS: [u8; 3] = [4, 5, 6];
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LISTS: [u8; 2] = [9, 10];
const MAP: u8 = 11;
const STRUCT: u8 = 12;
const UUID: u8 = 13;

/// Why a walk ends before its end.
enum Stop {
    /// Not the library's to read either.
    Malformed,
    /// So many values that take no bytes.
    Empty(u64),
}

/// Refuses metadata that would keep the library for long.
///
/// # Errors
/// What there is too much of. A file that cannot be read, or is no Parquet, is none of these.
pub(super) fn check(file: &File) -> Result<(), String> {
    match metadata(file).map(|bytes| Walk { left: &bytes }.value(STRUCT, DEEPEST)) {
        Some(Err(Stop::Empty(n))) => Err(format!("its metadata has a list of {n} values without any bytes")),
        _ => Ok(()),
    }
}

fn metadata(file: &File) -> Option<Vec<u8>> {
    let end = usize::try_from(file.metadata().ok()?.len()).ok()?.checked_sub(TAIL)?;
    let mut tail = [0; TAIL];
    file.read_exact_at(&mut tail, end as u64).ok()?;
    let [a, b, c, d, magic @ ..] = tail;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let from = end.checked_sub(length).filter(|_| magic == *b"PAR1")?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, from as u64).ok()?;
    Some(bytes)
}

struct Walk<'a> {
    left: &'a [u8],
}

impl Walk<'_> {
    fn skip(&mut self, n: u64) -> Result<(), Stop> {
        let n = usize::try_from(n).map_err(|_| Stop::Malformed)?;
        self.left = self.left.get(n..).ok_or(Stop::Malformed)?;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        let (first, rest) = self.left.split_first().ok_or(Stop::Malformed)?;
        self.left = rest;
        Ok(*first)
    }

    /// An integer in pieces of seven bits.
    fn varint(&mut self) -> Result<u64, Stop> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Stop::Malformed)
    }

    fn value(&mut self, kind: u8, depth: u8) -> Result<(), Stop> {
        let Some(depth) = depth.checked_sub(1) else { return Err(Stop::Malformed) };
        match kind {
            kind if BOOLEANS.contains(&kind) => Ok(()),
            BYTE => self.skip(1),
            kind if INTEGERS.contains(&kind) => self.varint().map(drop),
            DOUBLE => self.skip(8),
            BINARY => self.varint().and_then(|n| self.skip(n)),
            kind if LISTS.contains(&kind) => {
                let header = self.byte()?;
                let n = if header >> 4 == 15 { self.varint()? } else { u64::from(header >> 4) };
                self.values(n, &[header & 15], depth)
            }
            MAP => match self.varint()? {
                0 => Ok(()),
                n => {
                    let kinds = self.byte()?;
                    self.values(n, &[kinds >> 4, kinds & 15], depth)
                }
            },
            STRUCT => loop {
                let header = self.byte()?;
                if header & 15 == 0 {
                    return Ok(());
                }
                if header >> 4 == 0 {
                    self.varint()?;
                }
                self.value(header & 15, depth)?;
            },
            UUID => self.skip(16),
            _ => Err(Stop::Malformed),
        }
    }

    /// `n` times values of `kinds`.
    fn values(&mut self, n: u64, kinds: &[u8], depth: u8) -> Result<(), Stop> {
        if n > MOST && kinds.iter().all(|kind| BOOLEANS.contains(kind)) {
            return Err(Stop::Empty(n));
        }
        (0..n).try_for_each(|_| kinds.iter().try_for_each(|kind| self.value(*kind, depth)))
    }
}
