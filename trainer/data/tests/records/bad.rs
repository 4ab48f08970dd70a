//! What is told about files and records that cannot be read.

use super::*;

const FIRST: &str = r#"{"messages": [{"role": "user", "content": "a"}]}"#;

/// The message for a second record behind a good one.
fn second(record: Value) -> String {
    message("d.jsonl", format!("{FIRST}\n{record}\n"))
}

#[test]
fn a_turn_is_named_with_its_record() {
    let turns = |turn: Value| second(json!({"messages": [{"role": "user", "content": "a"}, turn]}));
    let shape = "a turn is {\"role\": \"user\", \"content\": …} or {\"from\": \"human\", \"value\": …}";
    for (turn, told) in [
        (json!("x"), format!("is a string, not an object; {shape}")),
        (json!({"content": "x"}), format!("has no \"role\", only \"content\"; {shape}")),
        (json!({"role": "user"}), format!("has no \"content\"; {shape}")),
        (json!({"from": "human"}), format!("has no \"value\"; {shape}")),
        (json!({"role": 1, "content": "x"}), "has a number under \"role\", not a string; put its text in quotes or remove the record".into()),
        (json!({"role": "user", "content": 1}), "has a number under \"content\", not a string; put its text in quotes or remove the record".into()),
        (
            json!({"role": "user", "content": [{"type": "image_url"}]}),
            "has content that is not text alone; models here read text; remove images and sounds, or the record".into(),
        ),
        (
            json!({"from": "narrator", "value": "x"}),
            "is from \"narrator\"; known are human, user, gpt, assistant, system, tool, function and observation".into(),
        ),
    ] {
        assert_eq!(turns(turn), format!("F:2: turn 2 of \"messages\" {told}"));
    }
}

#[test]
fn a_record_without_the_format_s_keys_is_named_with_those_it_has() {
    assert_eq!(
        second(json!({"text": "x", "id": 1})),
        "F:2: key \"messages\" is missing, which every messages record has; this one has \"text\", \"id\"; add the key or \
         remove the record"
    );
    let list = "not a list of turns; write [{\"role\": \"user\", \"content\": …}, …]";
    assert_eq!(second(json!({"messages": "hello"})), format!("F:2: \"messages\" is a string, {list}"));
    assert_eq!(second(json!({"messages": null})), format!("F:2: \"messages\" is null, {list}"));
    assert_eq!(
        second(json!({"messages": []})),
        "F:2: \"messages\" is an empty list, not a list of turns; add turns or remove the record"
    );
    let text = message("d.jsonl", r#"{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}"#);
    assert!(text.starts_with("F:1: \"prompt\" is an array, not a string;"), "{text}");
    let text = message("d.jsonl", r#"{"prompt": 1, "completion": [{"role": "assistant", "content": "b"}]}"#);
    assert!(text.starts_with("F:1: \"prompt\" is a number, not a string;"), "{text}");
}

#[test]
fn broken_json_is_named_with_its_line() {
    let json = |content: &str| message("d.json", content);
    for (content, told) in [
        ("\"x\"", "F:1: the file begins with neither `[` nor `{`;"),
        ("\n\n[{\"text\": \"a\"}\n{\"text\": \"b\"}]", "F:4: a comma is missing;"),
        ("[{\"text\": \"a\"},\n\n", "F:3: the array does not end;"),
        ("[{\"text\": \"a\"}] x", "F:1: something follows the array;"),
        ("[{\"text\": \"a\"}, 7]", "F:1: this is not an object;"),
        ("[{\"text\": \"a\"},\n{\"text\": \"b", "F:2: the file ends inside a record;"),
        ("[{\"text\": \"a\"},\n{\"text\":\n oops}]", "F:3: not JSON at column 2: expected value;"),
        ("[{\"text\": \"a\"},]", "F:1: this is not an object;"),
        (
            "{\"a\": [{}], \"b\": [{}]}",
            "data set F: it holds several arrays of objects: \"a\", \"b\"; keep one",
        ),
        ("{\"a\": 1}", "F:1: no known format has the keys \"a\";"),
        ("[]", "data set F is empty;"),
        ("", "data set F is empty;"),
        ("[{}]", "F:1: no known format has the keys no keys;"),
    ] {
        let text = json(content);
        assert!(text.starts_with(told), "{content:?}: {text}");
    }
}

#[test]
fn broken_tables_are_named_with_their_line() {
    for (content, told) in [
        ("text,text\na,b\n", "F:1: column \"text\" comes twice; rename one of the two"),
        ("text,id\na,1\nb\n", "F:3: 1 cells in a table of 2 columns; a cell with separators"),
        ("text\nx\n\"a\nb\n", "F:3: a quoted cell does not end;"),
        ("question\nx\n", "F:2: no known format has the keys \"question\";"),
        ("text\n", "data set F is empty;"),
        ("", "data set F is empty;"),
    ] {
        let text = message("d.csv", content);
        assert!(text.starts_with(told), "{content:?}: {text}");
    }
    let text = message("d.csv", b"text\n\xff\n");
    assert_eq!(text, "F:2: a cell is not UTF-8; save the file as UTF-8");
}

#[test]
fn a_cell_without_end_does_not_fill_the_memory() {
    let content = format!("text\n\"{}", "a\n".repeat(9 << 20));
    let text = message("d.csv", content);
    assert!(text.contains("the record is longer than") && text.contains("quotes"), "{text}");
}

#[test]
fn files_that_are_something_else_are_told_so() {
    let gzip = message("d.jsonl", b"\x1f\x8b\x08\0rest");
    assert_eq!(gzip, "data set F: it is compressed; decompress it first (`gunzip` or `unzstd`)");
    let text = message("d.parquet", "not Parquet at all");
    assert!(text.starts_with("data set F: it is no Parquet file that can be read:"), "{text}");
    let whole = std::fs::read(parquet("none.parquet")).unwrap();
    let text = message("d.parquet", &whole[..whole.len() / 2]);
    assert!(text.starts_with("data set F: it is no Parquet file that can be read:"), "{text}");
    let path = parquet("brotli.parquet");
    let e = read(&path, &ReadArgs::default()).unwrap_err().to_string();
    assert!(e.contains("it is compressed with BROTLI") && e.contains("zstd"), "{e}");
}

/// The library steps over them one by one: 2³¹ of them in six bytes.
#[test]
fn lists_without_bytes_in_parquets_metadata_are_refused() {
    const MANY: [u8; 5] = [0xff, 0xff, 0xff, 0xff, 0x07];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.parquet");
    let told = |metadata: &[u8]| {
        let length = (metadata.len() as u32).to_le_bytes();
        std::fs::write(&path, [b"PAR1", metadata, &length, b"PAR1"].concat()).unwrap();
        Records::open(&path, &ReadArgs::default()).err().expect("no file of records").to_string()
    };
    let list = [&[0xa9, 0xf1][..], &MANY, &[0]].concat();
    let set_in_a_struct = [&[0xac, 0x1a, 0xf2][..], &MANY, &[0, 0]].concat();
    let map = [&[0xab][..], &MANY, &[0x12, 0]].concat();
    // Behind an integer that the library reads however long it is, and as deep as it goes: 64 below what it knows of a column.
    let behind = [&[0xa6][..], &[0x80; 12], &[0, 0x19, 0xf1], &MANY, &[0]].concat();
    let deep = [&[0x49, 0x1c, 0x19, 0x1c, 0x3c, 0xac][..], &[0x1c; 62], &[0x19, 0xf1], &MANY].concat();
    for metadata in [list, set_in_a_struct, map, behind, deep] {
        let e = told(&metadata);
        assert!(e.contains("data.parquet") && e.contains("2147483647 values without any bytes"), "{e}");
    }
    // Values with bytes end with the file, and a few without do no harm: what is wrong then is the library's to say.
    let integers = [&[0xa9, 0xf5][..], &MANY, &[0]].concat();
    for metadata in [&integers[..], &[0xa9, 0x51, 0], &[], &[0x0c; 300]] {
        let e = told(metadata);
        assert!(e.contains("no Parquet file that can be read"), "{e}");
    }
}
