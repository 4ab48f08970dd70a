//! Pages of Parquet: those that are read, and those that would take more than a file may ask for.

use std::{io::Write, sync::Arc};

use ::parquet::{
    basic::{Compression, ZstdLevel},
    data_type::{ByteArray, ByteArrayType},
    file::{
        metadata::{
            ColumnChunkMetaData, FileMetaData, ParquetMetaData, ParquetMetaDataWriter, RowGroupMetaData,
        },
        properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion},
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::{parser::parse_message_type, types::SchemaDescriptor},
};
use flate2::{Compression as Level, write::GzEncoder};

use super::*;

const ROWS: usize = 1000;
pub(crate) const DATA: i32 = 0;
pub(crate) const DICTIONARY: i32 = 2;
pub(crate) const DATA_V2: i32 = 3;

pub(crate) fn compressions() -> [Compression; 4] {
    [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::ZSTD(ZstdLevel::default()),
    ]
}

/// A file as the library writes it, of the columns that `fill` writes.
pub(crate) fn written(
    schema: &str,
    properties: WriterPropertiesBuilder,
    fill: impl Fn(&mut SerializedRowGroupWriter<'_, &mut Vec<u8>>),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties.build())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    fill(&mut group);
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

pub(crate) fn column(
    group: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    values: &[ByteArray],
    definitions: Option<&[i16]>,
    repetitions: Option<&[i16]>,
) {
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(values, definitions, repetitions).unwrap();
    column.close().unwrap();
}

/// Prompts of few kinds, which a dictionary holds; completions of many; a list that only levels tell from another.
fn good(compression: Compression, version: WriterVersion, dictionary: bool) -> Vec<u8> {
    let schema = "message m { required binary prompt (UTF8); optional binary completion (UTF8);
        optional group tags (LIST) { repeated group list { optional binary element (UTF8); } } }";
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_writer_version(version)
        .set_dictionary_enabled(dictionary)
        .set_data_page_size_limit(500)
        .set_write_batch_size(50);
    written(schema, properties, |group| {
        let prompts: Vec<ByteArray> = (0..ROWS).map(|i| prompt(i).as_str().into()).collect();
        column(group, &prompts, None, None);
        let completions: Vec<ByteArray> = (0..ROWS).map(|i| completion(i).as_str().into()).collect();
        column(group, &completions, Some(&[1; ROWS]), None);
        let repetitions: Vec<i16> = (0..2 * ROWS).map(|i| (i % 2) as i16).collect();
        column(group, &vec!["tag".into(); 2 * ROWS], Some(&[3; 2 * ROWS]), Some(&repetitions));
    })
}

fn prompt(i: usize) -> String {
    format!("prompt {}", i % 7)
}

fn completion(i: usize) -> String {
    format!("completion {i} ä 🧀")
}

#[test]
fn parquet_pages_of_every_kind_are_read() {
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for (compression, dictionary) in compressions().into_iter().flat_map(|c| [(c, true), (c, false)]) {
            let found = records("d.parquet", good(compression, version, dictionary));
            let expected: Vec<_> = (0..ROWS)
                .map(|i| Record::Completion { prompt: prompt(i), completion: completion(i) })
                .collect();
            assert!(found == expected, "{compression:?} {version:?} {dictionary}");
        }
    }
}

/// Integers as Thrift writes them, each the field behind the one before.
fn integers(values: &[i32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in values {
        bytes.push(0x15);
        let mut left = ((value << 1) ^ (value >> 31)) as u32;
        while left > 0x7f {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
    }
    bytes
}

/// A page of plain values that declares so many bytes; of version 2, with `levels` that are not compressed in front.
fn page(kind: i32, declared: i32, levels: i32, values: i32, body: &[u8]) -> Vec<u8> {
    page_in(0, kind, declared, levels, values, body)
}

/// The same, in an encoding; levels of version 2 are half of repetitions, half of definitions.
pub(crate) fn page_in(
    encoding: i32,
    kind: i32,
    declared: i32,
    levels: i32,
    values: i32,
    body: &[u8],
) -> Vec<u8> {
    let own = match kind {
        DICTIONARY => [&[0x4c], &integers(&[values, 0])[..]].concat(),
        DATA_V2 => {
            let repetitions = levels / 2;
            let numbers = [values, 0, values, encoding, levels - repetitions, repetitions];
            [&[0x5c], &integers(&numbers)[..], &[0x11]].concat()
        }
        _ => [&[0x2c], &integers(&[values, encoding, 3, 3])[..]].concat(),
    };
    [&integers(&[kind, declared, body.len() as i32])[..], &own, &[0, 0], body].concat()
}

/// A file with a row of so many columns, whose pages are those bytes.
fn with_pages(compression: Compression, columns: &[&[u8]]) -> Vec<u8> {
    with_lengths(compression, &columns.iter().map(|pages| (*pages, pages.len())).collect::<Vec<_>>())
}

/// The same, with what the metadata says of their lengths.
fn with_lengths(compression: Compression, columns: &[(&[u8], usize)]) -> Vec<u8> {
    let fields = ["text", "more", "most"].map(|name| format!("required binary {name} (UTF8);"));
    of_schema(&fields[..columns.len()].concat(), compression, columns)
}

/// The same, of other columns.
pub(crate) fn of_schema(fields: &str, compression: Compression, columns: &[(&[u8], usize)]) -> Vec<u8> {
    let schema = parse_message_type(&format!("message m {{ {fields} }}")).unwrap();
    let schema = Arc::new(SchemaDescriptor::new(Arc::new(schema)));
    let mut bytes = b"PAR1".to_vec();
    let mut chunks = Vec::new();
    for (i, (pages, length)) in columns.iter().enumerate() {
        let chunk = ColumnChunkMetaData::builder(schema.column(i))
            .set_compression(compression)
            .set_num_values(1)
            .set_total_compressed_size(*length as i64)
            .set_data_page_offset(bytes.len() as i64);
        chunks.push(chunk.build().unwrap());
        bytes.extend_from_slice(pages);
    }
    let group = RowGroupMetaData::builder(schema.clone()).set_num_rows(1).set_column_metadata(chunks);
    let file = FileMetaData::new(1, 1, None, None, schema, None);
    let metadata = ParquetMetaData::new(file, vec![group.build().unwrap()]);
    ParquetMetaDataWriter::new(&mut bytes, &metadata).finish().unwrap();
    bytes
}

/// What is said of a file of one column.
fn told(compression: Compression, pages: &[u8]) -> String {
    message("d.parquet", with_pages(compression, &[pages]))
}

#[test]
fn a_parquet_page_that_declares_two_gib_is_refused() {
    for compression in compressions() {
        for kind in [DATA, DATA_V2, DICTIONARY] {
            let file = with_pages(compression, &[&page(kind, i32::MAX, 0, 1, b"\x01\0\0\0a")]);
            assert!(file.len() < 1000, "{}", file.len());
            let expected = if compression == Compression::SNAPPY {
                "the page at byte 4 cannot hold the 2147483647 bytes that it declares; check that it is whole, or write it anew"
                    .to_string()
            } else {
                format!(
                    "a page of each column up to this one takes {} bytes, and 1073741824 are the most that is read; write it anew \
                     with smaller pages or row groups, e.g. `df.to_parquet(path, row_group_size=1000)`",
                    i32::MAX as u64 + if kind == DICTIONARY { 32 } else { 0 }
                )
            };
            assert_eq!(
                message("d.parquet", file),
                format!("data set F: row group 1, column \"text\": {expected}"),
                "{compression:?} {kind}"
            );
        }
    }
}

/// A page of every column is in memory, with its dictionary. Zstandard takes no memory before it has something to write there.
#[test]
fn parquet_pages_are_refused_for_what_they_take_together() {
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let large = page(DATA, 400 << 20, 0, 1, b"nothing");
    let text = message("d.parquet", with_pages(zstd, &[&large, &large]));
    assert!(text.starts_with("F, record 1: the row cannot be read"), "{text}");
    let text = message("d.parquet", with_pages(zstd, &[&large, &large, &large]));
    assert!(
        text.contains("column \"most\": a page of each column up to this one takes 1258291200 bytes"),
        "{text}"
    );

    let dictionary = page(DICTIONARY, 400 << 20, 0, 1, b"nothing");
    let text = told(zstd, &[&dictionary[..], &large, &large].concat());
    assert!(text.starts_with("F, record 1: the row cannot be read"), "{text}");
    let text = told(zstd, &[&dictionary[..], &page(DATA, 700 << 20, 0, 1, b"nothing")].concat());
    assert!(text.contains("takes 1153433632 bytes"), "{text}");
    let text = told(zstd, &page(DICTIONARY, 64 << 20, 0, 64 << 20, b"nothing"));
    assert!(text.contains("takes 2214592512 bytes"), "{text}");
}

/// Room is made for as many values as a dictionary says that it has.
#[test]
fn a_parquet_dictionary_of_more_values_than_bytes_is_refused() {
    for compression in compressions() {
        let body =
            if compression == Compression::GZIP(Default::default()) { &gzip(b"")[..] } else { b"\0\0" };
        let page = page(DICTIONARY, body.len() as i32, 0, 1 << 30, body);
        let expected = format!("has a dictionary of 1073741824 values in {} bytes", body.len());
        let text = told(compression, &page);
        assert!(text.contains(&expected), "{text}");
    }
    let plain = told(Compression::UNCOMPRESSED, &page(DICTIONARY, 1 << 20, 0, 1 << 20, b"\0\0"));
    assert!(plain.contains("has a dictionary of 1048576 values in 2 bytes"), "{plain}");
}

#[test]
fn index_pages_in_parquet_are_stepped_over() {
    const INDEX: i32 = 1;
    let index = [&integers(&[INDEX, i32::MAX, 3])[..], &[0], b"any"].concat();
    let pages = [&index[..], &page(DATA, 5, 0, 1, b"\x01\0\0\0a")].concat();
    let found = records_of_text(with_pages(Compression::UNCOMPRESSED, &[&pages]));
    assert_eq!(found, [Record::Text { text: "a".into() }]);
}

/// Three bytes of Snappy make 64, as often as one likes.
#[test]
fn the_densest_snappy_in_parquet_is_read() {
    let text = "a".repeat(1 << 20);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
    let bytes = written("message m { required binary text (UTF8); }", properties, |group| {
        column(group, &[text.as_str().into()], None, None);
    });
    assert!(bytes.len() < text.len() / 10, "{}", bytes.len());
    assert!(records_of_text(bytes) == [Record::Text { text }]);
}

pub(crate) fn records_of_text(bytes: impl AsRef<[u8]>) -> Vec<Record> {
    let args = ReadArgs { format: Some("text".into()), ..Default::default() };
    read(&File::new("d.parquet", bytes).path, &args).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn gzip_in_parquet_that_holds_more_than_it_declares_is_refused() {
    let compression = Compression::GZIP(Default::default());
    let bomb = gzip(&vec![0; 64 << 20]);
    assert!(bomb.len() < 1 << 17, "{}", bomb.len());
    let twice = [gzip(&[0; 1000]), gzip(&[0; 1000])].concat();
    let behind_levels = [&[9; 10][..], &bomb].concat();
    let one_more = gzip(&[0; 1025]);
    for (kind, levels, body) in [
        (DATA, 0, &bomb),
        (DICTIONARY, 0, &bomb),
        (DATA_V2, 0, &bomb),
        (DATA_V2, 10, &behind_levels),
        (DATA, 0, &twice),
        (DATA, 0, &one_more),
    ] {
        let text = told(compression, &page(kind, 1024, levels, 1, body));
        let expected = "row group 1, column \"text\": the page at byte 4 holds more than the 1024 bytes that it declares";
        assert!(text.contains(expected), "{kind}: {text}");
    }
    // Whose levels or flag say that it is not compressed is no gzip.
    let mut plain = page(DATA_V2, bomb.len() as i32, 0, 1, &bomb);
    let flag = plain.len() - bomb.len() - 3;
    assert_eq!(std::mem::replace(&mut plain[flag], 0x12), 0x11);
    for pages in [plain, page(DATA_V2, 10, 10, 1, &gzip(&[0; 1025])[..10])] {
        let text = told(compression, &pages);
        assert!(text.starts_with("F, record 1: the row cannot be read"), "{text}");
    }
    // What holds as much is read; less, or what is no gzip, is the library's to refuse.
    let cheese = [&[6, 0, 0, 0][..], b"cheese"].concat();
    let whole = with_pages(compression, &[&page(DATA, 10, 0, 1, &gzip(&cheese))]);
    assert_eq!(records_of_text(whole), [Record::Text { text: "cheese".into() }]);
    for body in [&gzip(&[0; 9])[..], b"no gzip"] {
        let text = told(compression, &page(DATA, 10, 0, 1, body));
        assert!(text.starts_with("F, record 1: the row cannot be read"), "{text}");
    }
}

/// The library takes these headers for others than they seem to be, or steps over values for days.
#[test]
fn damaged_headers_of_parquets_pages_are_refused() {
    let body = b"\x01\0\0\0a";
    let page = page(DATA, 5, 0, 1, body);
    let head = integers(&[DATA, 5, 5]);
    let own = [&[0x2c], &integers(&[1, 0, 3, 3])[..], &[0]].concat();
    let booleans = [&head[..], &own, &[0x79, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07, 0], body].concat();
    let without_bytes = told(Compression::UNCOMPRESSED, &booleans);
    assert!(without_bytes.contains("the page at byte 4 has a list of 2147483647 values"), "{without_bytes}");

    let boolean_for_integer = [&[0x11][..], &page[1..]].concat();
    let integer_for_structure = [&head[..], &[0x25], &own[1..], &[0], body].concat();
    let boolean_in_structure = [&head[..], &[0x2c, 0x11], &own[2..], &[0], body].concat();
    let negative = [&integers(&[DATA, -5, 5])[..], &own, &[0], body].concat();
    for pages in [boolean_for_integer, integer_for_structure, boolean_in_structure, negative, head.clone()] {
        let text = told(Compression::UNCOMPRESSED, &pages);
        assert!(text.contains("column \"text\": the page at byte 4 has a damaged header"), "{text}");
    }
    let text = told(Compression::UNCOMPRESSED, &page[..page.len() - 1]);
    assert!(text.contains("column \"text\": the page at byte 4 is longer than its column"), "{text}");
}

#[test]
fn columns_of_parquet_beyond_the_file_or_upon_one_another_are_refused() {
    let page = page(DATA, 5, 0, 1, b"\x01\0\0\0a");
    for length in [1000, usize::MAX >> 1, usize::MAX] {
        let text = message("d.parquet", with_lengths(Compression::UNCOMPRESSED, &[(&page, length)]));
        assert!(text.contains("its columns do not fit into the file"), "{length}: {text}");
    }
    let file = |first, second| with_lengths(Compression::UNCOMPRESSED, &[(&page, first), (&page, second)]);
    // Each is in the file, and both together are more than it.
    let length = file(100, 100).len();
    assert!(4 + page.len() + 100 < length && length < 200, "{length}");
    let text = message("d.parquet", file(100, 100));
    assert!(text.contains("its columns do not fit into the file"), "{text}");
    // Both together are less than the file, and the second ends a byte behind it.
    let length = file(page.len(), 100).len();
    let second = length - 4 - page.len() + 1;
    assert_eq!(file(page.len(), second).len(), length);
    let text = message("d.parquet", file(page.len(), second));
    assert!(text.contains("column \"more\": it does not lie in the file"), "{text}");
}

/// A cut, behind which the metadata still stand or not.
#[test]
fn truncated_parquet_is_survived() {
    let whole = [
        good(Compression::SNAPPY, WriterVersion::PARQUET_1_0, true),
        good(Compression::GZIP(Default::default()), WriterVersion::PARQUET_2_0, true),
    ];
    for bytes in whole {
        let length = bytes.len();
        let metadata = u32::from_le_bytes(bytes[length - 8..length - 4].try_into().unwrap()) as usize + 8;
        for at in (0..length).step_by(97) {
            let cut = File::new("d.parquet", &bytes[..at]);
            assert!(read(&cut.path, &ReadArgs::default()).is_err(), "{at}");
            let pages = &bytes[..at.min(length - metadata)];
            let cut = File::new("d.parquet", [pages, &bytes[length - metadata..]].concat());
            let _ = read(&cut.path, &ReadArgs::default());
        }
    }
}

/// Pages are let go of when their values are read: 640 MiB come by here, ten at a time.
#[cfg(target_os = "linux")]
#[test]
fn parquet_pages_are_not_held() {
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    };
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_dictionary_enabled(false)
        .set_data_page_size_limit(1)
        .set_write_batch_size(1);
    let bytes = written("message m { required binary text (UTF8); }", properties, |group| {
        column(group, &vec![vec![b' '; 10 << 20].into(); 64], None, None);
    });
    let file = File::new("d.parquet", bytes);
    let args = ReadArgs { format: Some("text".into()), ..Default::default() };
    let before = peak();
    let found = Records::open(&file.path, &args).unwrap();
    assert_eq!(found.inspect(|r| assert!(r.is_ok())).count(), 64);
    assert!(peak() - before < 320, "{before} MiB, then {} MiB", peak());
}
