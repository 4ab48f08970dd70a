//! Parquet's metadata, looked over before the library reads them. It steps over booleans in a list that it does not know one by one, and
//! they take no bytes: a file of 69 bytes could have it count to 2³¹, and a larger one for days. It goes down into groups of the schema
//! as deep as they are in one another, on the stack, and makes room for as many fields as one says that it has.
//!
//! What is malformed is left to the library, which says so better; but not in front of the schema or in it, where the library would take
//! values for others than they seem to be.

use std::{fs::File, os::unix::fs::FileExt};

use super::thrift::{BINARY, BOOLEANS, BYTE, DEEPEST, INTEGER, LISTS, STRUCT, Stop, Walk};

/// Length of the metadata and the magic behind them.
const TAIL: usize = 8;
/// Most groups of a schema in one another. A list takes two.
const GROUPS: usize = 100;

/// Refuses metadata that would keep the library for long, or that it would not survive.
///
/// # Errors
/// What there is too much of. A file that cannot be read, or is no Parquet, is none of these.
pub(super) fn check(file: &File) -> Result<(), String> {
    match metadata(file).map(|bytes| walk(&bytes)) {
        Some(Err(Stop::Empty(n))) => Err(format!("its metadata has a list of {n} values without any bytes")),
        Some(Err(Stop::Refused(what))) => Err(what),
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

fn damaged() -> Stop {
    Stop::Refused("it is no Parquet file that can be read: its schema is damaged".into())
}

/// What is in front of the schema, the schema, and what is behind. The library reads one schema, and only steps over a second.
fn walk(metadata: &[u8]) -> Result<(), Stop> {
    let mut seen = false;
    Walk(metadata).fields(DEEPEST, |walk, number, kind| match (number, kind) {
        _ if seen => Ok(false),
        (2, kind) if LISTS.contains(&kind) => {
            seen = true;
            schema(walk).map(|()| true)
        }
        // Of what the library knows, writers put the version in front, and columns without a schema it does not read.
        (1, INTEGER) | (4, _) => Ok(false),
        (1..=7, _) => Err(damaged()),
        _ => Ok(false),
    })
}

/// The schema: a list of elements, behind each of which are those that are in it.
fn schema(walk: &mut Walk<&[u8]>) -> Result<(), Stop> {
    let (n, kind) = walk.list()?;
    if n > 0 && kind != STRUCT {
        return Err(Stop::Malformed);
    }
    // Of each group around the next element, how many elements it still has.
    let mut groups: Vec<u64> = Vec::new();
    for left in (0..n).rev() {
        let fields = element(walk)?;
        while groups.pop_if(|left| *left == 0).is_some() {}
        if let Some(left) = groups.last_mut() {
            *left -= 1;
        }
        if fields > left {
            return Err(Stop::Refused(format!(
                "its schema has a group of {fields} fields, of which {left} follow"
            )));
        }
        if fields > 0 {
            groups.push(fields);
        }
        if groups.len() > GROUPS {
            return Err(Stop::Refused(format!("its schema has more than {GROUPS} groups in one another")));
        }
    }
    Ok(())
}

/// How many fields an element has.
fn element(walk: &mut Walk<&[u8]>) -> Result<u64, Stop> {
    let mut fields = 0;
    walk.fields(DEEPEST, |walk, number, kind| match (number, kind) {
        (5, INTEGER) => {
            fields = walk.integer()?.try_into().map_err(|_| damaged())?;
            Ok(true)
        }
        (1..=3 | 6..=9, INTEGER) | (4, BINARY) => Ok(false),
        (10, STRUCT) => logical(walk).map(|()| true),
        (1..=10, _) => Err(damaged()),
        _ => Ok(false),
    })?;
    Ok(fields)
}

/// The logical type. The library knows what is in some, and reads that whatever type it says to have.
fn logical(walk: &mut Walk<&[u8]>) -> Result<(), Stop> {
    const BOOLEAN: u8 = BOOLEANS[0];
    structures(walk, |walk, number| {
        let known: &[u8] = match number {
            5 => &[INTEGER, INTEGER],
            7 | 8 => &[BOOLEAN, STRUCT],
            10 => &[BYTE, BOOLEAN],
            16 => &[BYTE],
            17 | 18 => &[BINARY, INTEGER],
            _ => &[],
        };
        walk.fields(DEEPEST, |walk, number, kind| {
            let place = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
            match place.and_then(|place| known.get(place)) {
                Some(&BOOLEAN) if BOOLEANS.contains(&kind) => Ok(false),
                Some(expected) if *expected != kind => Err(damaged()),
                // A unit of time.
                Some(&STRUCT) => structures(walk, |walk, _| walk.value(STRUCT, DEEPEST)).map(|()| true),
                _ => Ok(false),
            }
        })
    })
}

/// A structure of structures.
fn structures(
    walk: &mut Walk<&[u8]>,
    mut take: impl FnMut(&mut Walk<&[u8]>, i16) -> Result<(), Stop>,
) -> Result<(), Stop> {
    walk.fields(DEEPEST, |walk, number, kind| {
        if kind != STRUCT {
            return Err(damaged());
        }
        take(walk, number).map(|()| true)
    })
}
