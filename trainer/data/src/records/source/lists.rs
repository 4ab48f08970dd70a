//! What a row of lists takes, and a page whose lengths are in a DELTA encoding or whose bytes are split: known once pages are unpacked. A
//! few bytes can repeat a value for a billion times, and a row goes on over as many pages as it likes.

use std::ops::Range;

use parquet::{
    basic::{ConvertedType, Encoding, Type},
    column::page::{Page, PageReader},
    schema::types::ColumnDescriptor,
};

use super::{
    delta,
    shapes::Shape,
    thrift::{Bytes, Walk},
};

/// What a value of a list takes beside its bytes: levels, the library's value and ours.
const VALUE: u64 = 128;
/// What the library and we make of every group around a value, beside two copies of its name. It is counted for each of a group's fields,
/// so often enough for groups of one field whose room has just grown.
const GROUP: u64 = 640;
/// Bytes in front of levels, which say how long they are.
const PREFIX: usize = 4;
/// Values that are packed together at least.
const PACKED: u64 = 8;
/// Bits of an index into a dictionary.
const WIDEST: u8 = 32;

/// Bytes that the row takes which takes most, or those over `most` that were seen first; of a column without lists, those of lengths.
///
/// # Errors
/// The page that is damaged, counted from 1, and how.
pub(super) fn memory(
    mut pages: Box<dyn PageReader>,
    column: &ColumnDescriptor,
    most: u64,
    shape: &mut Shape,
) -> Result<u64, String> {
    let mut rows = Rows::new(column, shape);
    let mut number = 0;
    // A page that cannot be had ends the rows too.
    while let Ok(Some(page)) = pages.get_next_page() {
        number += 1;
        match page {
            Page::DictionaryPage { buf, .. } => rows.dictionary = lengths(&buf, column.physical_type()),
            page => rows.page(&page, most).map_err(|what| format!("page {number} {what}"))?,
        }
        if rows.most() > most {
            break;
        }
    }
    Ok(rows.most())
}

/// Bytes of plain values that are of any length.
fn lengths(dictionary: &[u8], kind: Type) -> Vec<u32> {
    let (mut left, mut all) = (dictionary, Vec::new());
    while let Some((length, rest)) = left.split_first_chunk::<PREFIX>().filter(|_| kind == Type::BYTE_ARRAY) {
        let length = u32::from_le_bytes(*length);
        let Some(rest) = rest.get(length as usize..) else { break };
        all.push(length);
        left = rest;
    }
    all
}

/// Bytes of a page's values that do not share the page's: at most those of one, and of all.
#[derive(Clone, Copy, Default)]
struct Own {
    each: u64,
    all: u64,
}

/// A row so far.
#[derive(Clone, Copy, Default)]
struct Row {
    values: u64,
    /// Bytes of values of the pages before that do not share their page's.
    own: u64,
    /// Values of the page that it is in, and what they have for themselves.
    here: u64,
    page: Own,
    /// Bytes of the pages that it goes over.
    pages: u64,
}

impl Row {
    fn begin(page: Own, size: u64) -> Self {
        Self { values: 1, here: 1, page, pages: size, own: 0 }
    }

    fn turn(&mut self, page: Own, size: u64) {
        self.own = self.own();
        self.here = 0;
        self.page = page;
        self.pages = self.pages.saturating_add(size);
    }

    fn add(&mut self, n: u64) {
        self.values = self.values.saturating_add(n);
        self.here = self.here.saturating_add(n);
    }

    fn own(self) -> u64 {
        self.own.saturating_add(self.here.saturating_mul(self.page.each).min(self.page.all))
    }

    /// Text is copied out of a page. Every value takes `each`.
    fn memory(self, each: u64) -> u64 {
        let values = self.values.saturating_mul(each).saturating_add(self.own());
        values.saturating_add(self.pages.saturating_mul(2))
    }
}

struct Rows<'a> {
    column: &'a ColumnDescriptor,
    /// What a value takes beside its bytes.
    each: u64,
    /// Bytes of the dictionary's values.
    dictionary: Vec<u32>,
    now: Row,
    most: u64,
    shape: &'a mut Shape,
}

impl<'a> Rows<'a> {
    fn new(column: &'a ColumnDescriptor, shape: &'a mut Shape) -> Self {
        let groups = column.path().parts().iter().skip(1);
        let groups = groups.map(|name| GROUP + 2 * name.len() as u64).sum::<u64>();
        let decimal = column.converted_type() == ConvertedType::DECIMAL;
        let zeros = if decimal { column.type_scale().try_into().unwrap_or(0) } else { 0 };
        let each = VALUE + groups + zeros;
        Self { column, each, dictionary: Vec::new(), now: Row::default(), most: 0, shape }
    }

    fn most(&self) -> u64 {
        self.most.max(self.now.memory(self.each))
    }

    fn page(&mut self, page: &Page, most: u64) -> Result<(), String> {
        let (column, each) = (self.column, self.each);
        let values = u64::from(page.num_values());
        let parts = Parts::new(page, column)?;
        let lists = match page.encoding() {
            Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
            Encoding::DELTA_BYTE_ARRAY => 2,
            _ => 0,
        };
        // Room for lengths, of values of which a row has one if there are no lists.
        let room = (lists as u64).saturating_mul(values).saturating_mul(size_of::<i32>() as u64);
        self.most = self.most.max(room);
        if room > most {
            return Ok(());
        }
        let own = self.own(page.encoding(), &parts, values, lists)?;
        if column.max_rep_level() == 0 {
            return Ok(());
        }
        let definitions = Runs::new(parts.definitions, bits(column.max_def_level()), values);
        let repetitions = Runs::new(parts.repetitions, bits(column.max_rep_level()), values);
        self.shape.page(repetitions, definitions, values)?;
        let size = (page.buffer().len() as u64).saturating_add(room);
        self.now.turn(own, size);
        each_run(parts.repetitions, bits(column.max_rep_level()), values, |level, n| {
            if level == 0 {
                self.most = self.most.max(self.now.memory(each));
                self.now = Row::begin(own, size);
            } else {
                self.now.add(n);
            }
            self.most.max(self.now.memory(each)) <= most
        })
    }

    /// What a page's values have for themselves, or what is wrong with it.
    fn own(&self, encoding: Encoding, parts: &Parts, values: u64, lists: usize) -> Result<Own, String> {
        let summed = self.column.max_rep_level() > 0;
        let (put_together, data) = (encoding == Encoding::DELTA_BYTE_ARRAY, parts.data);
        let sum = delta::check(data, lists, values, summed && put_together)?;
        let mut own = match encoding {
            Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY if summed => {
                let longest = self.dictionary.iter().max().copied().unwrap_or(0);
                Own { each: longest.into(), all: looked_up(data, values, &self.dictionary) }
            }
            // Begun as the value before: none is longer than the page.
            Encoding::DELTA_BYTE_ARRAY => Own { each: data.len() as u64, all: sum },
            _ => Own::default(),
        };
        if self.column.physical_type() == Type::FIXED_LEN_BYTE_ARRAY {
            let length = u64::try_from(self.column.type_length()).unwrap_or(0);
            let present = present(parts.definitions, self.column.max_def_level(), values)?;
            let all = present.saturating_mul(length);
            // The library makes room for all that it reads at once before it looks whether there are as many bytes.
            if encoding == Encoding::BYTE_STREAM_SPLIT && all > data.len() as u64 {
                return Err(format!("has {present} values of {length} bytes in {} bytes", data.len()));
            }
            own = Own { each: own.each.max(length), all: own.all.max(all) };
        }
        Ok(own)
    }
}

/// Bytes that the indexes of a page name together. The library refuses those that are not in the dictionary, and ends at damaged ones.
fn looked_up(data: &[u8], values: u64, dictionary: &[u32]) -> u64 {
    let Some((width, indexes)) = data.split_first().filter(|(width, _)| **width <= WIDEST) else { return 0 };
    let mut sum = 0u64;
    let _ = each_run(indexes, u32::from(*width), values, |index, n| {
        let length = usize::try_from(index).ok().and_then(|index| dictionary.get(index));
        sum = sum.saturating_add(n.saturating_mul(length.copied().unwrap_or(0).into()));
        true
    });
    sum
}

/// How many values there are, and not null.
fn present(definitions: &[u8], most: i16, values: u64) -> Result<u64, String> {
    if most == 0 {
        return Ok(values);
    }
    let mut present = 0;
    each_run(definitions, bits(most), values, |level, n| {
        present += if level == most as u64 { n } else { 0 };
        true
    })?;
    Ok(present)
}

/// Bits that levels up to `most` take.
fn bits(most: i16) -> u32 {
    16 - most.leading_zeros()
}

/// What a page has: levels, and what is behind them.
struct Parts<'a> {
    repetitions: &'a [u8],
    definitions: &'a [u8],
    data: &'a [u8],
}

impl<'a> Parts<'a> {
    fn new(page: &'a Page, column: &ColumnDescriptor) -> Result<Self, String> {
        const OUTSIDE: &str = "has levels beyond its end";
        match page {
            Page::DataPageV2 { buf, rep_levels_byte_len, def_levels_byte_len, .. } => {
                let parts = buf.split_at_checked(*rep_levels_byte_len as usize);
                let (repetitions, rest) = parts.ok_or(OUTSIDE)?;
                let parts = rest.split_at_checked(*def_levels_byte_len as usize);
                let (definitions, data) = parts.ok_or(OUTSIDE)?;
                Ok(Self { repetitions, definitions, data })
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
                let repetitions = part(column.max_rep_level() > 0, *rep_level_encoding)?;
                let definitions = part(column.max_def_level() > 0, *def_level_encoding)?;
                Ok(Self { repetitions, definitions, data: rest })
            }
            Page::DictionaryPage { .. } => Ok(Self { repetitions: &[], definitions: &[], data: &[] }),
        }
    }
}

/// Levels or indexes, in runs of equal ones, until `take` says that it is enough.
///
/// # Errors
/// They are damaged.
fn each_run(
    levels: &[u8],
    width: u32,
    left: u64,
    mut take: impl FnMut(u64, u64) -> bool,
) -> Result<(), String> {
    let mut runs = Runs::new(levels, width, left);
    if runs.by_ref().all(|(level, n)| take(level, n)) && runs.damaged() {
        return Err("has damaged levels".into());
    }
    Ok(())
}

/// Runs of equal levels, each with how many there are.
pub(super) struct Runs<'a> {
    walk: Walk<&'a [u8]>,
    width: u32,
    /// Levels behind those that are begun.
    left: u64,
    /// Levels that are packed one after another, and which of them are next.
    packed: &'a [u8],
    next: Range<u64>,
    /// Whether the last run is longer than the bytes.
    cut: bool,
}

impl<'a> Runs<'a> {
    pub fn new(levels: &'a [u8], width: u32, left: u64) -> Self {
        Self { walk: Walk(levels), width, left, packed: &[], next: 0..0, cut: false }
    }

    fn damaged(&self) -> bool {
        self.cut && self.left > 0
    }
}

impl Iterator for Runs<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(level) = self.next.next().and_then(|i| packed(self.packed, i, self.width)) {
                return Some((level, 1));
            }
            self.next = 0..0;
            if self.left == 0 || self.cut {
                return None;
            }
            // Behind the last run there may be zeros.
            let run = self.walk.varint().ok().filter(|run| *run > 0)?;
            let (among, length, width) = (run & 1 == 1, run >> 1, self.width);
            let n = if among { length.saturating_mul(PACKED) } else { length }.min(self.left);
            self.left -= n;
            let here = self.walk.0;
            let bytes = if among { length.saturating_mul(width.into()) } else { width.div_ceil(8).into() };
            self.cut = self.walk.0.skip(bytes).is_err();
            // Those of no bits are all the same.
            if among && width > 0 {
                (self.packed, self.next) = (here, 0..n);
            } else if !self.cut && n > 0 {
                let bytes = if among { &[] } else { &here[..bytes as usize] };
                return Some((bytes.iter().rev().fold(0, |level, byte| level << 8 | u64::from(*byte)), n));
            }
        }
    }
}

/// The `i`th of numbers that are packed one after another, from the lowest bit on, each of at most 32 bits.
pub(super) fn packed(bytes: &[u8], i: u64, width: u32) -> Option<u64> {
    if width == 0 {
        return Some(0);
    }
    let first = i * u64::from(width);
    let bytes = bytes.get(usize::try_from(first / 8).ok()?..).filter(|bytes| !bytes.is_empty())?;
    let all = bytes.iter().take(5).rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
    Some((all >> (first % 8)) & ((1 << width) - 1))
}
