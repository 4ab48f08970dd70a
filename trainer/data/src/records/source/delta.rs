//! Parquet's DELTA encodings of strings: the library makes room for as many lengths as the first bytes of a page declare, and a length
//! may take no bit. What is stepped over here is what it reads.

use super::thrift::{Bytes, Stop, Walk};

/// Bits that a length may differ from the one before.
const WIDEST: u8 = 32;
const DAMAGED: &str = "has damaged lengths of values";

/// Refuses a page of so many values that declares more lengths than that. `lists` of lengths stand in front of the bytes.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(data: &[u8], lists: usize, values: u64) -> Result<(), String> {
    // Of values that are all null some writers leave nothing.
    if data.is_empty() {
        return Ok(());
    }
    let mut walk = Walk(data);
    (0..lists).try_for_each(|_| {
        let found = lengths(&mut walk, values).map_err(|_| DAMAGED.to_string())?;
        if found > values {
            return Err(format!("declares {found} lengths of {values} values"));
        }
        Ok(())
    })
}

/// Steps over lengths and says how many; those of a list that has more than `most` are not stepped over.
fn lengths(walk: &mut Walk<&[u8]>, most: u64) -> Result<u64, Stop> {
    let block = walk.varint()?;
    let blocks = walk.varint()?;
    let count = walk.varint()?;
    let _first = walk.varint()?;
    if block == 0 || blocks == 0 || !block.is_multiple_of(blocks) || !(block / blocks).is_multiple_of(32) {
        return Err(Stop::Malformed);
    }
    let (each, mut left) = (block / blocks, count.saturating_sub(1));
    if count > most {
        return Ok(count);
    }
    while left > 0 {
        let _least = walk.varint()?;
        let widths = walk.0;
        walk.0.skip(blocks)?;
        // What is behind the last length of a block is of any width, and takes no bytes.
        for width in &widths[..widths.len() - walk.0.len()] {
            if left == 0 {
                break;
            }
            if *width > WIDEST {
                return Err(Stop::Malformed);
            }
            walk.0.skip(u64::from(*width).saturating_mul(each / 8))?;
            left = left.saturating_sub(each);
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header: 128 a block, 4 of 32 in it, so many values, the first 5.
    fn header(count: u8) -> Vec<u8> {
        vec![0x80, 1, 4, count, 10]
    }

    #[test]
    fn lengths_are_stepped_over_block_by_block() {
        let none = [header(0), header(1)].concat();
        assert_eq!(check(&none, 2, 1), Ok(()));
        assert_eq!(check(&[], 2, 1), Ok(()));
        // One block of 32 lengths in 8 bits, and what is behind the last of any width.
        let one = [&header(33)[..], &[0, 8, 200, 200, 200], &[1; 32]].concat();
        assert_eq!(check(&one, 1, 33), Ok(()));
        assert_eq!(check(&[&one[..], &header(1)].concat(), 2, 33), Ok(()));
        assert_eq!(check(&one, 1, 32).unwrap_err(), "declares 33 lengths of 32 values");
        let two = [&header(100)[..], &[0, 0, 0, 0, 1], &[0; 4]].concat();
        assert_eq!(check(&two, 1, 100), Ok(()));
    }

    #[test]
    fn damaged_lengths_are_refused() {
        for bytes in [
            &[0x80, 1, 4][..],
            &[0, 4, 1, 0],
            &[0x80, 1, 0, 1, 0],
            &[0x80, 1, 5, 1, 0],
            &[0x80, 1, 8, 1, 0],
            &[0x80, 1, 4, 33, 10, 0, 8, 0],
            &[0x80, 1, 4, 33, 10, 0, 33, 0, 0, 0],
            &[0x80, 1, 4, 33, 10, 0, 8, 0, 0, 0, 1, 1],
        ] {
            assert_eq!(check(bytes, 1, 100).unwrap_err(), DAMAGED, "{bytes:?}");
        }
    }
}
