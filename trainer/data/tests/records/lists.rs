//! Parquet's lists, and lengths in front of strings: those that are read, and those that would take more than a file may ask for.

use ::parquet::{
    basic::{Compression, Encoding},
    data_type::ByteArray,
    file::properties::{WriterProperties, WriterVersion},
};

use super::{
    pages::{DATA, DATA_V2, DICTIONARY, column, compressions, of_schema, page_in, records_of_text, written},
    *,
};

pub(crate) const PLAIN: i32 = 0;
pub(crate) const DELTA_LENGTHS: i32 = 6;
pub(crate) const DELTA: i32 = 7;
pub(crate) const INDEXES: i32 = 8;

const ROWS: usize = 500;
pub(crate) const TAGS: &str =
    "optional group tags (LIST) { repeated group list { optional binary element (UTF8); } }";

/// A list has one value or two.
pub(crate) fn lists(encoding: Option<Encoding>, compression: Compression, version: WriterVersion) -> Vec<u8> {
    let mut properties = WriterProperties::builder()
        .set_compression(compression)
        .set_writer_version(version)
        .set_dictionary_enabled(encoding.is_none())
        .set_data_page_size_limit(700)
        .set_write_batch_size(40);
    if let Some(encoding) = encoding {
        properties = properties.set_encoding(encoding);
    }
    written(&format!("message m {{ required binary text (UTF8); {TAGS} }}"), properties, |group| {
        let texts: Vec<ByteArray> = (0..ROWS).map(|i| text(i).as_str().into()).collect();
        column(group, &texts, None, None);
        let levels = (0..ROWS).flat_map(|i| [(0, 3), (1, 2 + (i % 5 != 0) as i16)]);
        let (repetitions, definitions): (Vec<i16>, Vec<i16>) = levels.unzip();
        let values: Vec<ByteArray> =
            definitions.iter().filter(|d| **d == 3).map(|_| "a tag".into()).collect();
        column(group, &values, Some(&definitions), Some(&repetitions));
    })
}

fn text(i: usize) -> String {
    format!("{} {i}", "word ".repeat(i % 9))
}

#[test]
fn lists_and_lengths_in_front_of_strings_are_read() {
    let encodings = [Encoding::PLAIN, Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY];
    let encodings = encodings.into_iter().map(Some).chain([None]);
    let all = encodings.flat_map(|e| compressions().map(|c| (e, c)));
    for ((encoding, compression), version) in
        all.flat_map(|a| [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0].map(|v| (a, v)))
    {
        let found = records_of_text(lists(encoding, compression, version));
        let expected: Vec<_> = (0..ROWS).map(|i| Record::Text { text: text(i) }).collect();
        assert!(found == expected, "{encoding:?} {compression:?} {version:?}");
    }
}

/// What is said of a file of one column, not compressed.
pub(crate) fn told(fields: &str, pages: &[u8]) -> String {
    let columns = [(pages, pages.len())];
    let text = message("d.parquet", of_schema(fields, Compression::UNCOMPRESSED, &columns));
    text.strip_prefix("data set F: row group 1, ").unwrap_or_else(|| panic!("{text}")).to_string()
}

/// A page as long as its body.
pub(crate) fn page(kind: i32, encoding: i32, levels: i32, values: i32, body: &[u8]) -> Vec<u8> {
    page_in(encoding, kind, body.len() as i32, levels, values, body)
}

/// Lengths that take no bits: 2³⁵ of them in a block.
const LENGTHS: [u8; 16] = [0x80, 0x80, 0x80, 0x80, 0x80, 1, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0, 0, 0];

#[test]
fn more_lengths_than_values_in_parquet_are_refused() {
    const TEXT: &str = "required binary text (UTF8);";
    let none = [0x80, 1, 4, 0, 0];
    for kind in [DATA, DATA_V2] {
        let first = told(TEXT, &page(kind, DELTA_LENGTHS, 0, 1, &LENGTHS));
        let second = told(TEXT, &page(kind, DELTA, 0, 1, &[&none[..], &LENGTHS].concat()));
        for text in [first, second] {
            let expected = "column \"text\": page 1 declares 34359738368 lengths of 1 values; check that it is whole, or write it anew";
            assert_eq!(text, expected);
        }
    }
    // As many as there are values, of which there are too many.
    let many = [&[0x80, 0x80, 0x80, 0x80, 4, 1, 0xff, 0xff, 0xff, 0xff, 7, 0, 0, 0, 0, 0][..]].concat();
    let text = told(TEXT, &page(DATA, DELTA_LENGTHS, 0, i32::MAX, &many));
    assert!(text.contains("a row of each column up to this one takes 8589934"), "{text}");
}

pub(crate) const LIST: &str = "repeated binary text (UTF8);";

/// A run of so many equal levels, with its length in front as version 1 has it.
pub(crate) fn run(level: u8, n: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut left = u64::from(n) << 1;
    while left > 0x7f {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.extend([left as u8, level]);
    bytes
}

pub(crate) fn levels(runs: &[Vec<u8>]) -> Vec<u8> {
    let all = runs.concat();
    [&(all.len() as u32).to_le_bytes()[..], &all].concat()
}

#[test]
fn a_row_of_parquet_that_takes_too_much_is_refused() {
    // Nothing, two billion times over.
    let repeated = levels(&[run(0, 1), run(1, i32::MAX as u32 - 1)]);
    let nothing = [repeated.clone(), levels(&[run(0, i32::MAX as u32)])].concat();
    let text = told(LIST, &page(DATA, PLAIN, 0, i32::MAX, &nothing));
    assert!(
        text.starts_with("column \"text\": a row of each column up to this one takes 27487790"),
        "{text}"
    );
    assert!(text.ends_with("; split the row, e.g. a conversation into several of fewer messages"), "{text}");
    let bare = [0, 1, 0, 0].chunks(2).flat_map(|l| [run(l[0], 1), run(l[1], i32::MAX as u32 - 1)].concat());
    let bare = Vec::from_iter(bare);
    let text = told(LIST, &page(DATA_V2, PLAIN, bare.len() as i32, i32::MAX, &bare));
    assert!(
        text.starts_with("column \"text\": a row of each column up to this one takes 27487790"),
        "{text}"
    );

    // A text of a mebibyte, ten thousand times.
    let text = [&(1u32 << 20).to_le_bytes()[..], &[b'a'; 1 << 20]].concat();
    let dictionary = page(DICTIONARY, PLAIN, 0, 1, &text);
    let often =
        [levels(&[run(0, 1), run(1, 9_999)]), levels(&[run(1, 10_000)]), vec![1], run(0, 10_000)].concat();
    let indexes = page(DATA, INDEXES, 0, 10_000, &often);
    let text = told(LIST, &[dictionary, indexes].concat());
    assert!(text.contains("a row of each column up to this one takes 10488"), "{text}");
}

/// A row that goes on over pages has all of them.
#[test]
fn a_row_over_many_pages_of_parquet_is_refused() {
    let body = |first: u8| {
        let parts = [levels(&[run(first, 1)]), levels(&[run(1, 1)]), vec![0; 64 << 20]];
        page(DATA, PLAIN, 0, 1, &parts.concat())
    };
    let rows: Vec<u8> = (0..10).flat_map(|_| body(0)).collect();
    let columns = [(&rows[..], rows.len())];
    let found = message("d.parquet", of_schema(LIST, Compression::UNCOMPRESSED, &columns));
    assert!(!found.contains("takes"), "{found}");
    let one: Vec<u8> = (0..10).flat_map(|i| body((i > 0) as u8)).collect();
    let text = told(LIST, &one);
    assert!(text.contains("a row of each column up to this one takes"), "{text}");
}

#[test]
fn damaged_levels_in_parquet_are_told() {
    for (body, what) in [
        (vec![9, 0, 0, 0], "has levels beyond its end"),
        (levels(&[run(0, 1), vec![2]]), "has damaged levels"),
    ] {
        let body = [body, levels(&[run(1, 3)])].concat();
        let text = told(LIST, &page(DATA, PLAIN, 0, 3, &body));
        assert!(text.contains(&format!("column \"text\": page 1 {what}")), "{text}");
    }
}
