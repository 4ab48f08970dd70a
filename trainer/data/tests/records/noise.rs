//! Readers never panic, and what they give is what they were given.

use std::sync::LazyLock;

use ::parquet::{
    basic::{Compression, Encoding},
    file::properties::WriterVersion,
};
use proptest::prelude::*;

use super::{lists::lists, rows::structs, *};

const ENDINGS: [&str; 6] = ["jsonl", "json", "csv", "tsv", "parquet", "data"];

/// Reads to the end, or to the first error, which says where.
fn survives(ending: &str, content: &[u8]) {
    let file = File::new(&format!("d.{ending}"), content);
    for format in [None, Some("messages"), Some("text")] {
        let args = ReadArgs { format: format.map(String::from), ..Default::default() };
        if let Err(e) = read(&file.path, &args) {
            assert!(e.to_string().contains(&file.path.display().to_string()), "{e}");
        }
    }
}

/// Text that is almost a file of records.
fn almost() -> impl Strategy<Value = Vec<u8>> {
    let parts = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\n",
        "\r\n",
        " ",
        "null",
        "1e9",
        "text",
        "\"text\"",
        "\"messages\"",
        "\"role\": \"user\"",
        "\"content\": \"é\"",
        "{\"text\": \"a\"}",
        "\u{feff}",
        "\t",
        "prompt,completion\n",
    ];
    prop::collection::vec(prop::sample::select(parts.to_vec()), 0..40)
        .prop_map(|parts| parts.concat().into_bytes())
}

/// Parquet files of all compressions, and of lists with lengths in front of strings, and of structs and maps.
static WHOLE: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let stored = ["none.parquet", "snappy.parquet", "zstd.parquet", "gzip.parquet"];
    let stored = stored.map(|name| std::fs::read(parquet(name)).unwrap());
    let encodings = [Some(Encoding::DELTA_LENGTH_BYTE_ARRAY), Some(Encoding::DELTA_BYTE_ARRAY), None];
    let made = encodings.into_iter().flat_map(|encoding| {
        [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0].into_iter().flat_map(move |version| {
            [lists(encoding, Compression::UNCOMPRESSED, version), structs(encoding, version)]
        })
    });
    stored.into_iter().chain(made).collect()
});

/// One with some bytes changed, or cut.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let whole = prop::sample::select(WHOLE.clone());
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6);
    (whole, changes, prop::option::of(any::<prop::sample::Index>())).prop_map(|(mut bytes, changes, cut)| {
        let length = bytes.len();
        changes.into_iter().for_each(|(at, byte)| bytes[at.index(length)] = byte);
        bytes.truncate(cut.map_or(length, |cut| cut.index(length)));
        bytes
    })
}

proptest! {
    #[test]
    fn any_bytes_are_survived(content in prop::collection::vec(any::<u8>(), 0..200), which in 0..ENDINGS.len()) {
        survives(ENDINGS[which], &content);
    }

    #[test]
    fn almost_any_text_is_survived(content in almost(), which in 0..ENDINGS.len()) {
        survives(ENDINGS[which], &content);
    }

    #[test]
    fn damaged_parquet_is_survived(content in damaged()) {
        survives("parquet", &content);
    }

    #[test]
    fn what_is_written_is_read(texts in prop::collection::vec(any::<String>(), 1..10)) {
        let expected: Vec<_> = texts.iter().map(|text| Record::Text { text: text.clone() }).collect();
        let objects: Vec<String> = texts.iter().map(|text| json!({ "text": text }).to_string()).collect();
        prop_assert_eq!(&records("d.jsonl", objects.join("\n")), &expected);
        prop_assert_eq!(&records("d.json", format!("[{}]", objects.join(","))), &expected);
        prop_assert_eq!(&records("d.json", objects.concat()), &expected);
        let cells: Vec<String> = texts.iter().map(|text| format!("\"{}\"", text.replace('"', "\"\""))).collect();
        prop_assert_eq!(&records("d.csv", format!("text\n{}\n", cells.join("\n"))), &expected);
    }
}
