//! What a row of lists takes, and a page whose lengths are in a DELTA encoding: known once pages are unpacked. A few bytes can repeat a
//! value for a billion times, and a row goes on over as many pages as it likes.

use parquet::{
    basic::{Encoding, Type},
    column::page::{Page, PageReader},
    schema::types::ColumnDescriptor,
};

use super::{
    delta,
    thrift::{Bytes, Walk},
};

/// What a value of a list takes beside its bytes: levels, the library's value and ours.
const VALUE: u64 = 128;
/// Bytes in front of levels, which say how long they are.
const PREFIX: usize = 4;
/// Values that are packed together at least.
const PACKED: u64 = 8;

/// Bytes that the row takes which takes most, or those over `most` that were seen first; of a column without lists, those of lengths.
///
/// # Errors
/// The page that is damaged, counted from 1, and how.
pub(super) fn memory(
    mut pages: Box<dyn PageReader>,
    column: &ColumnDescriptor,
    most: u64,
) -> Result<u64, String> {
    let mut rows = Rows { now: Row::default(), most: 0 };
    let (mut dictionary, mut number) = (0, 0);
    // A page that cannot be had ends the rows too.
    while let Ok(Some(page)) = pages.get_next_page() {
        number += 1;
        match page {
            Page::DictionaryPage { buf, .. } => dictionary = longest(&buf, column.physical_type()),
            page => {
                rows.page(&page, column, dictionary, most).map_err(|what| format!("page {number} {what}"))?
            }
        }
        if rows.most() > most {
            break;
        }
    }
    Ok(rows.most())
}

/// Bytes of the longest plain value.
fn longest(dictionary: &[u8], kind: Type) -> u64 {
    if kind != Type::BYTE_ARRAY {
        return 0;
    }
    let (mut left, mut most) = (dictionary, 0);
    while let Some((length, rest)) = left.split_first_chunk::<PREFIX>() {
        let length = u32::from_le_bytes(*length);
        let Some(rest) = rest.get(length as usize..) else { break };
        (left, most) = (rest, most.max(length.into()));
    }
    most
}

/// A row so far.
#[derive(Clone, Copy, Default)]
struct Row {
    values: u64,
    /// Bytes of values that do not share their page's.
    own: u64,
    /// Bytes of the pages that it goes over.
    pages: u64,
}

impl Row {
    /// Text is copied out of a page.
    fn memory(self) -> u64 {
        let values = self.values.saturating_mul(VALUE).saturating_add(self.own);
        values.saturating_add(self.pages.saturating_mul(2))
    }

    fn add(&mut self, n: u64, own: u64) {
        self.values = self.values.saturating_add(n);
        self.own = self.own.saturating_add(n.saturating_mul(own));
    }
}

struct Rows {
    now: Row,
    most: u64,
}

impl Rows {
    fn most(&self) -> u64 {
        self.most.max(self.now.memory())
    }

    fn page(
        &mut self,
        page: &Page,
        column: &ColumnDescriptor,
        dictionary: u64,
        most: u64,
    ) -> Result<(), String> {
        let (values, encoding) = (u64::from(page.num_values()), page.encoding());
        let (levels, data) = parts(page, column)?;
        let lists = match encoding {
            Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
            Encoding::DELTA_BYTE_ARRAY => 2,
            _ => 0,
        };
        delta::check(data, lists, values)?;
        // Room for lengths, and for values that are put together of those before: none is longer than the page.
        let lengths = (lists as u64).saturating_mul(values).saturating_mul(size_of::<i32>() as u64);
        let size = (page.buffer().len() as u64).saturating_add(lengths);
        let own = match encoding {
            Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY => dictionary,
            Encoding::DELTA_BYTE_ARRAY => data.len() as u64,
            _ => 0,
        };
        self.now.pages = self.now.pages.saturating_add(size);
        if column.max_rep_level() == 0 {
            // A row has one value of it.
            self.most = self.most.max(lengths);
            self.now = Row::default();
            return Ok(());
        }
        let width = bits(column.max_rep_level());
        each_run(levels, width, values, |begins, n| {
            if begins {
                self.most = self.most();
                self.now = Row { pages: size, ..Row::default() };
                self.now.add(1, own);
            } else {
                self.now.add(n, own);
            }
            self.most() <= most
        })
    }
}

/// Bits that levels up to `most` take.
fn bits(most: i16) -> u32 {
    16 - most.leading_zeros()
}

/// Repetition levels of a page, and what is behind all levels.
fn parts<'a>(page: &'a Page, column: &ColumnDescriptor) -> Result<(&'a [u8], &'a [u8]), String> {
    const OUTSIDE: &str = "has levels beyond its end";
    match page {
        Page::DataPageV2 { buf, rep_levels_byte_len, def_levels_byte_len, .. } => {
            let (levels, rest) = buf.split_at_checked(*rep_levels_byte_len as usize).ok_or(OUTSIDE)?;
            Ok((levels, rest.get(*def_levels_byte_len as usize..).ok_or(OUTSIDE)?))
        }
        Page::DataPage { buf, rep_level_encoding, def_level_encoding, .. } => {
            let mut rest = &buf[..];
            let mut part = |there: bool, encoding: Encoding| match encoding {
                _ if !there => Ok(&[][..]),
                Encoding::RLE => {
                    let (length, behind) = rest.split_first_chunk::<PREFIX>().ok_or(OUTSIDE)?;
                    let length = u32::from_le_bytes(*length) as usize;
                    let (part, behind) = behind.split_at_checked(length).ok_or(OUTSIDE)?;
                    rest = behind;
                    Ok(part)
                }
                other => Err(format!("has levels in {other}, which is not read here")),
            };
            let levels = part(column.max_rep_level() > 0, *rep_level_encoding)?;
            part(column.max_def_level() > 0, *def_level_encoding)?;
            Ok((levels, rest))
        }
        Page::DictionaryPage { .. } => Ok((&[], &[])),
    }
}

/// Levels, in runs of those that begin a row (0) and those that go on with one, until `take` says that it is enough.
///
/// # Errors
/// They are damaged.
fn each_run(
    levels: &[u8],
    width: u32,
    mut left: u64,
    mut take: impl FnMut(bool, u64) -> bool,
) -> Result<(), String> {
    const DAMAGED: &str = "has damaged levels";
    let mut walk = Walk(levels);
    // Behind the last run there may be zeros.
    while let Some(run) = walk.varint().ok().filter(|run| *run > 0) {
        let (packed, length) = (run & 1 == 1, run >> 1);
        let n = if packed { length.saturating_mul(PACKED) } else { length }.min(left);
        left -= n;
        let here = walk.0;
        let bytes = if packed { length.saturating_mul(width.into()) } else { width.div_ceil(8).into() };
        let whole = walk.0.skip(bytes).is_ok();
        if packed {
            let mut all = (0..n).map_while(|i| packed_level(here, i, width));
            if !all.all(|level| take(level == 0, 1)) {
                break;
            }
        } else if whole && !take(here[..bytes as usize].iter().all(|byte| *byte == 0), n) {
            break;
        }
        match (left, whole) {
            (0, _) => break,
            (_, false) => return Err(DAMAGED.into()),
            _ => {}
        }
    }
    Ok(())
}

/// The `i`th of levels that are packed one after another, from the lowest bit on.
fn packed_level(bytes: &[u8], i: u64, width: u32) -> Option<u16> {
    let first = i * u64::from(width);
    let place = usize::try_from(first / 8).ok()?;
    let low = u32::from(*bytes.get(place)?);
    let high = u32::from(bytes.get(place + 1).copied().unwrap_or(0));
    let further = u32::from(bytes.get(place + 2).copied().unwrap_or(0));
    let all = low | high << 8 | further << 16;
    Some(((all >> (first % 8)) & ((1 << width) - 1)) as u16)
}
