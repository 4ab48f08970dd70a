//! Parquet's DELTA encodings of strings: the library makes room for as many lengths as the first bytes of a page declare, and a length
//! may take no bit. What is stepped over here is what it reads.

use super::{
    lists,
    thrift::{Bytes, Stop, Walk},
};

/// Bits that a length may differ from the one before.
const WIDEST: u8 = 32;
const DAMAGED: &str = "has damaged lengths of values";

/// Refuses a page of so many values that declares more lengths than that. `lists` of lengths stand in front of the bytes. Gives their
/// sum if it is asked for: those of DELTA_BYTE_ARRAY, of what is taken from the value before and of what is added, are the values'.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(data: &[u8], lists: usize, values: u64, summed: bool) -> Result<u64, String> {
    // Of values that are all null some writers leave nothing.
    if data.is_empty() {
        return Ok(0);
    }
    let mut walk = Walk(data);
    (0..lists).try_fold(0u64, |sum, _| {
        let found = lengths(&mut walk, values, summed).map_err(|_| DAMAGED.to_string())?;
        if found.count > values {
            return Err(format!("declares {} lengths of {values} values", found.count));
        }
        Ok(sum.saturating_add(found.sum))
    })
}

struct Lengths {
    count: u64,
    /// Of those that are not negative: the library ends at one that is.
    sum: u64,
}

/// Steps over lengths and says how many; those of a list that has more than `most` are not stepped over.
fn lengths(walk: &mut Walk<&[u8]>, most: u64, summed: bool) -> Result<Lengths, Stop> {
    let block = walk.varint()?;
    let blocks = walk.varint()?;
    let count = walk.varint()?;
    let mut last = integer(walk)?;
    if block == 0 || blocks == 0 || !block.is_multiple_of(blocks) || !(block / blocks).is_multiple_of(32) {
        return Err(Stop::Malformed);
    }
    let (each, mut left) = (block / blocks, count.saturating_sub(1));
    let mut sum = if summed && count > 0 { positive(last) } else { 0 };
    if count > most {
        return Ok(Lengths { count, sum });
    }
    while left > 0 {
        let least = integer(walk)?;
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
            let packed = walk.0;
            walk.0.skip(u64::from(*width).saturating_mul(each / 8))?;
            let n = each.min(left);
            if summed {
                sum = sum.saturating_add(add(packed, n, (*width).into(), least, &mut last));
            }
            left -= n;
        }
    }
    Ok(Lengths { count, sum })
}

/// The sum of `n` lengths that follow `last`, each of which is `least` and a packed number more than the one before.
fn add(packed: &[u8], n: u64, width: u32, least: i32, last: &mut i32) -> u64 {
    // They take no bytes, and there may be any number of them.
    if width == 0 && least == 0 {
        return n.saturating_mul(positive(*last));
    }
    (0..n).map_while(|i| lists::packed(packed, i, width)).fold(0, |sum, more| {
        *last = last.wrapping_add(least).wrapping_add(more as i32);
        sum.saturating_add(positive(*last))
    })
}

fn positive(length: i32) -> u64 {
    length.try_into().unwrap_or(0)
}

/// An integer with a sign. The library takes none here of more than 32 bits.
fn integer(walk: &mut Walk<&[u8]>) -> Result<i32, Stop> {
    let value = walk.varint()?;
    i32::try_from((value >> 1) as i64 ^ -((value & 1) as i64)).map_err(|_| Stop::Malformed)
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
        assert_eq!(check(&none, 2, 1, false), Ok(0));
        assert_eq!(check(&[], 2, 1, true), Ok(0));
        // One block of 32 lengths in 8 bits, and what is behind the last of any width.
        let one = [&header(33)[..], &[0, 8, 200, 200, 200], &[1; 32]].concat();
        assert_eq!(check(&one, 1, 33, false), Ok(0));
        assert_eq!(check(&[&one[..], &header(1)].concat(), 2, 33, false), Ok(0));
        assert_eq!(check(&one, 1, 32, true).unwrap_err(), "declares 33 lengths of 32 values");
        let two = [&header(100)[..], &[0, 0, 0, 0, 1], &[0; 4]].concat();
        assert_eq!(check(&two, 1, 100, false), Ok(0));
        // The last block needs more bytes than there are.
        assert_eq!(check(&two[..two.len() - 1], 1, 100, true).unwrap_err(), DAMAGED);
    }

    #[test]
    fn lengths_are_summed() {
        assert_eq!(check(&[header(0), header(1)].concat(), 2, 1, true), Ok(5));
        // 5, and 32 each one more than the one before: 6 to 37.
        let one = [&header(33)[..], &[0, 8, 0, 0, 0], &[1; 32]].concat();
        assert_eq!(check(&one, 1, 33, true), Ok(5 + (6..=37).sum::<u64>()));
        assert_eq!(check(&[&one[..], &one].concat(), 2, 33, true), Ok(2 * (5 + (6..=37).sum::<u64>())));
        // All the same; each less than the one before by one, below nothing too; of widths that cross bytes.
        let same = [&header(100)[..], &[0, 0, 0, 0, 0]].concat();
        assert_eq!(check(&same, 1, 100, true), Ok(500));
        let less = [&header(33)[..], &[1, 0, 0, 0, 0]].concat();
        assert_eq!(check(&less, 1, 33, true), Ok(5 + 4 + 3 + 2 + 1));
        let threes = [&header(3)[..], &[0, 3, 0, 0, 0], &[0b11_010_001], &[0; 11]].concat();
        assert_eq!(check(&threes, 1, 3, true), Ok(5 + 6 + 8));
        let widest = [&header(2)[..], &[0, 32, 0, 0, 0], &[0, 0, 0, 1], &[0; 124]].concat();
        assert_eq!(check(&widest, 1, 2, true), Ok(5 + 5 + (1 << 24)));
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
            // A first length, or a difference, of more than 32 bits.
            &[0x80, 1, 4, 1, 0x80, 0x80, 0x80, 0x80, 0x20],
            &[0x80, 1, 4, 2, 10, 0x80, 0x80, 0x80, 0x80, 0x20, 0, 0, 0, 0],
        ] {
            assert_eq!(check(bytes, 1, 100, true).unwrap_err(), DAMAGED, "{bytes:?}");
        }
    }
}
