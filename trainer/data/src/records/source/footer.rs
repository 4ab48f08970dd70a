//! Parquet's metadata, looked over before the library reads them. It steps over booleans in a list that it does not know one by one, and
//! they take no bytes: a file of 69 bytes could have it count to 2³¹, and a larger one for days.
//!
//! What is malformed is left to the library, which says so better.

use std::{fs::File, os::unix::fs::FileExt};

use super::thrift::{DEEPEST, STRUCT, Stop, Walk};

/// Length of the metadata and the magic behind them.
const TAIL: usize = 8;

/// Refuses metadata that would keep the library for long.
///
/// # Errors
/// What there is too much of. A file that cannot be read, or is no Parquet, is none of these.
pub(super) fn check(file: &File) -> Result<(), String> {
    match metadata(file).map(|bytes| Walk(&bytes[..]).value(STRUCT, DEEPEST)) {
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
