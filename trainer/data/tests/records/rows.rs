//! Rows of Parquet with lists, structs and long values in them: those that are read, and those that would take too much.

use ::parquet::{
    basic::{Compression, Encoding},
    data_type::{ByteArray, FixedLenByteArray, FixedLenByteArrayType},
    file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion},
};

use super::{
    lists::{DELTA, DELTA_LENGTHS, INDEXES, LIST, PLAIN, TAGS, levels, page, run, told},
    pages::{DATA, DATA_V2, DICTIONARY, column, of_schema, records_of_text, written},
    *,
};

const SPLIT: i32 = 9;
const TOO_MUCH: &str = "a row of each column up to this one takes 1";

fn plain() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_dictionary_enabled(false)
}

/// So many values in a row of a list, none of them null.
fn row_of(n: u32) -> Vec<u8> {
    [levels(&[run(0, 1), run(1, n - 1)]), levels(&[run(1, n)])].concat()
}

fn text(i: usize) -> Record {
    Record::Text { text: format!("text {i}") }
}

/// A file of texts, and behind them one column more.
fn beside(
    schema: &str,
    properties: WriterPropertiesBuilder,
    rows: usize,
    fill: impl Fn(&mut ::parquet::file::writer::SerializedRowGroupWriter<'_, &mut Vec<u8>>),
) -> Vec<u8> {
    written(&format!("message m {{ required binary text (UTF8); {schema} }}"), properties, |group| {
        let texts: Vec<ByteArray> = (0..rows).map(|i| format!("text {i}").as_str().into()).collect();
        column(group, &texts, None, None);
        fill(group);
    })
}

/// The library would make room for values of a gibibyte each, and only then see that there are none.
#[test]
fn split_bytes_that_are_not_there_are_refused() {
    const N: u32 = 4_000_000;
    let of = |repetition| format!("{repetition} fixed_len_byte_array(1073741824) text;");
    let text = told(&of("repeated"), &page(DATA, SPLIT, 0, N as i32, &row_of(N)));
    let expected = "page 1 has 4000000 values of 1073741824 bytes in 0 bytes";
    assert!(text.contains(expected), "{text}");
    let text = told(&of("required"), &page(DATA, SPLIT, 0, 1, b""));
    assert!(text.contains("page 1 has 1 values of 1073741824 bytes in 0 bytes"), "{text}");
    // Of a nullable column, in a page of version 2: two of three are there, and one is too long for the bytes.
    let nullable = "optional fixed_len_byte_array(2) text;";
    let body = |n: usize| [&[0, 3, 0b101][..], &vec![b'a'; n]].concat();
    let text = told(nullable, &page(DATA_V2, SPLIT, 3, 3, &body(2)));
    assert!(text.contains("page 1 has 2 values of 2 bytes in 2 bytes"), "{text}");
    let pages = page(DATA_V2, SPLIT, 3, 3, &body(4));
    let whole = of_schema(nullable, Compression::UNCOMPRESSED, &[(&pages, pages.len())]);
    assert_eq!(records_of_text(whole), [Record::Text { text: "aa".into() }]);
}

#[test]
fn split_bytes_are_read() {
    for schema in ["optional fixed_len_byte_array(3) code;", "repeated fixed_len_byte_array(3) code;"] {
        let bytes = beside(
            schema,
            plain()
                .set_encoding(Encoding::PLAIN)
                .set_column_encoding("code".into(), Encoding::BYTE_STREAM_SPLIT),
            3,
            |group| {
                let mut column = group.next_column().unwrap().unwrap();
                let values = [b"abc", b"def"].map(|v| FixedLenByteArray::from(v.to_vec()));
                let repetitions = schema.starts_with("repeated").then_some(&[0; 3][..]);
                let writer = column.typed::<FixedLenByteArrayType>();
                writer.write_batch(&values, Some(&[1, 0, 1]), repetitions).unwrap();
                column.close().unwrap();
            },
        );
        assert_eq!(records_of_text(bytes), [0, 1, 2].map(text), "{schema}");
    }
}

/// A value that a dictionary holds is copied for every time that it is there.
#[test]
fn values_of_one_length_in_lists_are_counted() {
    const LENGTH: usize = 1 << 20;
    let dictionary = page(DICTIONARY, PLAIN, 0, 1, &[b'a'; LENGTH]);
    let often = |n: u32| [row_of(n), vec![1], run(0, n)].concat();
    let schema = format!("repeated fixed_len_byte_array({LENGTH}) text;");
    let file = |n: u32| [&dictionary[..], &page(DATA, INDEXES, 0, n as i32, &often(n))].concat();
    let text = told(&schema, &file(10_000));
    assert!(text.contains(TOO_MUCH), "{text}");
    let text = told_of(&schema, &file(10));
    assert!(!text.contains("takes"), "{text}");
}

/// The same, of a file of which more than its pages is looked at.
fn told_of(fields: &str, pages: &[u8]) -> String {
    let columns = [(pages, pages.len())];
    message("d.parquet", of_schema(fields, Compression::UNCOMPRESSED, &columns))
}

#[test]
fn structs_and_names_in_lists_are_counted() {
    // Ten thousand copies of a name of a hundred thousand letters.
    let name = "n".repeat(100_000);
    let schema = |name: &str| format!("repeated group g {{ required binary {name}; }}");
    let empty = |n: u32| page(DATA, PLAIN, 0, n as i32, &[row_of(n), vec![0; 4 * n as usize]].concat());
    let text = told(&schema(&name), &empty(10_000));
    assert!(text.contains(TOO_MUCH) || text.contains("takes 2"), "{}", &text[text.len() - 200..]);
    let text = told_of(&schema("n"), &empty(10_000));
    assert!(!text.contains("takes"), "{text}");
    // A struct in a struct, ten times over, in each of three hundred thousand elements.
    let deep = format!(
        "repeated group g {{ {} required binary n; {} }}",
        "required group g { ".repeat(9),
        "}".repeat(9)
    );
    let text = told(&deep, &empty(300_000));
    assert!(text.contains(TOO_MUCH), "{text}");
    let text = told_of(&deep, &empty(10_000));
    assert!(!text.contains("takes"), "{text}");
}

/// The library prints a decimal with a zero in front of all the others for every digit.
#[test]
fn decimals_of_many_digits_are_refused() {
    let of = |scale| format!("repeated binary text (DECIMAL({scale}, {scale}));");
    let numbers = page(DATA, PLAIN, 0, 1_000_000, &[row_of(1_000_000), vec![0; 4_000_000]].concat());
    let text = told_of(&of(1001), &numbers);
    assert!(
        text.contains(
            "column \"text\": its decimals have 1001 digits behind the point, and 1000 are the most"
        ),
        "{text}"
    );
    let text = told(&of(1000), &numbers);
    assert!(text.contains(TOO_MUCH), "{text}");
    let text = told_of(&of(10), &numbers);
    assert!(!text.contains("takes"), "{text}");
}

/// So many lists in one another.
fn nested(depth: usize) -> String {
    let open = "optional group l (LIST) { repeated group list { ".repeat(depth);
    format!("{open} optional binary element (UTF8); {}", "} } ".repeat(depth))
}

#[test]
fn lists_in_one_another_are_read() {
    const DEPTH: usize = 30;
    let deepest = 2 * DEPTH as i16 + 1;
    let bytes = beside(&nested(DEPTH), plain(), 3, |group| {
        // The second has one value less deep, and the third two in the innermost list.
        let values = ["a", "b", "c"].map(ByteArray::from);
        let definitions = [deepest, 5, deepest, deepest];
        column(group, &values, Some(&definitions), Some(&[0, 0, 0, DEPTH as i16]));
    });
    assert_eq!(records_of_text(bytes), [0, 1, 2].map(text));
}

/// What is in lists is copied once, however many they are: a process of its own has little memory at its peak.
#[cfg(target_os = "linux")]
#[test]
fn what_is_in_lists_is_copied_once() {
    const FILE: &str = "CHRONICALS_TEST_NESTED";
    const NAME: &str = "rows::what_is_in_lists_is_copied_once";
    if let Some(path) = std::env::var_os(FILE) {
        let args = ReadArgs { format: Some("text".into()), ..Default::default() };
        assert_eq!(read(Path::new(&path), &args).unwrap(), [text(0)]);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10;
        assert!(peak < 320, "{peak} MiB");
        return;
    }
    const DEPTH: usize = 40;
    let bytes = beside(&nested(DEPTH), plain(), 1, |group| {
        column(group, &[vec![b' '; 20 << 20].into()], Some(&[2 * DEPTH as i16 + 1]), Some(&[0]));
    });
    let file = File::new("d.parquet", bytes);
    let mut process = std::process::Command::new(std::env::current_exe().unwrap());
    let output = process.args(["--exact", NAME]).env(FILE, &file.path).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

/// Of a page of half a mebibyte, a row of five thousand texts takes half a mebibyte.
#[test]
fn a_long_row_of_texts_that_begin_as_the_one_before_is_read() {
    const N: usize = 5000;
    let bytes = beside(LIST_BESIDE, plain().set_encoding(Encoding::DELTA_BYTE_ARRAY), 2, |group| {
        let values: Vec<ByteArray> = (0..N + 1)
            .map(|i| format!("{i:0>100}").chars().rev().collect::<String>().as_str().into())
            .collect();
        let repetitions: Vec<i16> = (0..=N).map(|i| (i > 0 && i < N) as i16).collect();
        column(group, &values, Some(&vec![1; N + 1]), Some(&repetitions));
    });
    assert_eq!(records_of_text(bytes), [0, 1].map(text));
}

const LIST_BESIDE: &str = "repeated binary tags (UTF8);";

/// Ten thousand texts of a mebibyte, each the one before.
#[test]
fn a_row_of_texts_that_are_the_one_before_is_refused() {
    const LONG: u32 = 1 << 20;
    const N: usize = 10_000;
    // One block of one miniblock of 2¹⁴ differences, each of 32 bits.
    let lengths = |first: [u8; 4], least: u32, then: u32, others: u32| {
        let header = [0x80, 0x80, 1, 1, 0x90, 0x4e];
        let least = (((least << 1) as i32) ^ ((least as i32) >> 31)) as u32;
        let least = [
            least as u8 | 0x80,
            (least >> 7) as u8 | 0x80,
            (least >> 14) as u8 | 0x80,
            (least >> 21) as u8 | 0x80,
            (least >> 28) as u8,
        ];
        let mut bytes = [&header[..], &first, &least, &[32]].concat();
        bytes.extend(then.to_le_bytes());
        bytes.extend((1..1 << 14).flat_map(|_| others.to_le_bytes()));
        bytes
    };
    let begun = lengths([0x80, 0x80, 0x80, 0], 0, LONG, 0);
    let added = lengths([0x80, 0x80, 0x80, 1], LONG.wrapping_neg(), 0, LONG);
    let body = [row_of(N as u32), begun, added, vec![b'a'; LONG as usize]].concat();
    let text = told(LIST, &page(DATA, DELTA, 0, N as i32, &body));
    // Each takes 128 beside.
    assert!(text.contains(TOO_MUCH), "{text}");
    let most = (N as u64) * (128 + u64::from(LONG));
    let number =
        text.split("takes ").nth(1).and_then(|t| t.split(' ').next()).unwrap().parse::<u64>().unwrap();
    assert!(number > most && number < most + (8 << 20), "{number}");
}

/// Few rows use a dictionary's longest value.
#[test]
fn a_long_row_beside_a_long_value_is_read() {
    const N: usize = 300;
    let properties = WriterProperties::builder().set_dictionary_page_size_limit(16 << 20);
    let schema = "message m { repeated group messages { required binary role (UTF8); required binary content (UTF8); } }";
    let bytes = written(schema, properties, |group| {
        let repetitions: Vec<i16> = (0..N + 2).map(|i| (i % (N + 1) > 0) as i16).collect();
        let roles: Vec<ByteArray> = (0..N + 2).map(|i| ["user", "assistant"][i % 2].into()).collect();
        column(group, &roles, Some(&vec![1; N + 2]), Some(&repetitions));
        let long: ByteArray = vec![b'a'; 5 << 20].into();
        let content =
            |i| if i == N + 1 { long.clone() } else { format!("message {}", i % 7).as_str().into() };
        let contents: Vec<ByteArray> = (0..N + 2).map(content).collect();
        column(group, &contents, Some(&vec![1; N + 2]), Some(&repetitions));
    });
    let found = records("d.parquet", bytes);
    assert_eq!(found.iter().map(|r| conversation(r).messages.len()).collect::<Vec<_>>(), [N + 1, 1]);
}

/// Indexes one by one, and of no bits.
#[test]
fn a_row_of_a_long_value_in_packed_indexes_is_refused() {
    const N: u32 = 10_000;
    let long = [&(1u32 << 20).to_le_bytes()[..], &[b'a'; 1 << 20]].concat();
    let dictionary = page(DICTIONARY, PLAIN, 0, 2, &[&long[..], &[0; 4]].concat());
    let file = |width: u8, bytes: &[u8]| {
        // 1250 times eight.
        let data = [&row_of(N)[..], &[width, 0xc5, 0x13], bytes].concat();
        [&dictionary[..], &page(DATA, INDEXES, 0, N as i32, &data)].concat()
    };
    for (width, bytes) in [(0, vec![]), (1, vec![0; 1250]), (32, vec![0; 40_000])] {
        let text = told(LIST, &file(width, &bytes));
        assert!(text.contains("takes 1048"), "{width}: {text}");
    }
    // The other value of the two is nothing, and what is in no dictionary is the library's to refuse.
    for (width, bytes) in [(1, vec![255; 1250]), (2, vec![255; 2500])] {
        let text = told_of(LIST, &file(width, &bytes));
        assert!(!text.contains("takes"), "{width}: {text}");
    }
}

#[test]
fn pages_of_nothing_are_read() {
    for encoding in [Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY] {
        let bytes = beside(
            &format!("optional binary none (UTF8); {TAGS}"),
            plain().set_encoding(encoding),
            3,
            |group| {
                column(group, &[], Some(&[0; 3]), None);
                column(group, &[], Some(&[2, 2, 0, 1]), Some(&[0, 1, 0, 0]));
            },
        );
        assert_eq!(records_of_text(bytes), [0, 1, 2].map(text), "{encoding}");
    }
}

/// Of values that are all null some writers leave nothing, which the library does not read.
#[test]
fn pages_without_lengths_are_the_librarys_to_refuse() {
    let nulls = [levels(&[run(0, 1), run(1, 1)]), levels(&[run(0, 2)])].concat();
    for encoding in [DELTA_LENGTHS, DELTA] {
        let text = told_of(LIST, &page(DATA, encoding, 0, 2, &nulls));
        assert!(text.starts_with("F, record 1: the row cannot be read"), "{text}");
    }
}

/// A list of structs, and a map: rows have one message and one entry, two and none, and so on.
pub(crate) fn structs(encoding: Option<Encoding>, version: WriterVersion) -> Vec<u8> {
    let schema = "message m {
        required group messages (LIST) { repeated group list { required group element {
            required binary role (UTF8); optional binary content (UTF8); } } }
        optional group tags (MAP) { repeated group key_value {
            required binary key (UTF8); optional binary value (UTF8); } } }";
    let properties = WriterProperties::builder()
        .set_writer_version(version)
        .set_dictionary_enabled(encoding.is_none())
        .set_data_page_size_limit(300)
        .set_write_batch_size(20);
    let properties = encoding.into_iter().fold(properties, |properties, e| properties.set_encoding(e));
    written(schema, properties, |group| {
        let repetitions: Vec<i16> = (0..STRUCTS / 2).flat_map(|_| [0, 0, 1]).collect();
        let n = repetitions.len();
        let strings = |of: &'static str| (0..n).map(move |i| format!("{of} {}", i % 5).as_str().into());
        let roles: Vec<ByteArray> =
            repetitions.iter().map(|r| ["user", "assistant"][*r as usize].into()).collect();
        column(group, &roles, Some(&vec![1; roles.len()]), Some(&repetitions));
        let contents: Vec<ByteArray> = strings("content").collect();
        column(group, &contents, Some(&vec![2; contents.len()]), Some(&repetitions));
        let keys: Vec<ByteArray> = strings("key").take(STRUCTS / 2).collect();
        let entries = |there: i16| Vec::from_iter((0..STRUCTS).map(|i| if i % 2 == 0 { there } else { 1 }));
        column(group, &keys, Some(&entries(2)), Some(&[0; STRUCTS]));
        column(group, &keys, Some(&entries(3)), Some(&[0; STRUCTS]));
    })
}

const STRUCTS: usize = 100;

#[test]
fn lists_of_structs_and_maps_are_read() {
    for encoding in [None, Some(Encoding::PLAIN), Some(Encoding::DELTA_BYTE_ARRAY)] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let found = records("d.parquet", structs(encoding, version));
            let turn =
                |role: &str, i: usize| json!({ "role": role, "content": format!("content {}", i % 5) });
            for (i, record) in found.iter().enumerate() {
                let first = i / 2 * 3 + i % 2;
                let second = (i % 2 == 1).then(|| turn("assistant", first + 1));
                let expected: Value = [turn("user", first)].into_iter().chain(second).collect();
                assert_eq!(turns(record), expected, "{encoding:?} {version:?} {i}");
            }
            assert_eq!(found.len(), STRUCTS);
        }
    }
}

/// A page of no values is the last to the library.
#[test]
fn a_page_of_lists_without_values_is_survived() {
    for body in [[levels(&[]), levels(&[])].concat(), row_of(2), levels(&[vec![2]])] {
        for encoding in [PLAIN, DELTA, INDEXES, SPLIT] {
            let text = told_of(LIST, &page(DATA, encoding, 0, 0, &body));
            assert!(text.contains("the row cannot be read") || text.contains("page 1 has"), "{text}");
        }
    }
}
