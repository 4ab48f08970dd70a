use std::io::Write;

use super::*;

fn file(content: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_ref()).unwrap();
    file
}

fn read_all(content: impl AsRef<[u8]>) -> Result<Vec<Record>, RecordError> {
    let file = file(content);
    Records::open(file.path(), &ReadArgs::default())?.map(|r| r.map(|l| l.record)).collect()
}

/// The error's text with the file's path replaced by `F`.
fn message(content: impl AsRef<[u8]>) -> String {
    let file = file(content);
    let path = file.path().display().to_string();
    let error = match Records::open(file.path(), &ReadArgs::default()) {
        Ok(records) => records.collect::<Result<Vec<_>, _>>().unwrap_err(),
        Err(e) => e,
    };
    error.to_string().replace(&path, "F")
}

fn instruction(instruction: &str, input: Option<&str>, output: &str) -> Record {
    Record::Instruction {
        instruction: instruction.into(),
        input: input.map(String::from),
        output: output.into(),
    }
}

const GOOD: &str = "{\"instruction\": \"a\", \"output\": \"b\"}\n";

#[test]
fn alpaca_with_optional_input_blank_lines_and_no_last_newline() {
    let records = read_all(concat!(
        "{\"instruction\": \"Größe?\", \"input\": \"x\", \"output\": \"1\"}\r\n",
        "\n",
        "{\"instruction\": \"b\", \"input\": \"\", \"output\": \"2\", \"source\": 7}\n  \n",
        "{\"output\": \"3\", \"instruction\": \"c\", \"input\": null}\n",
        "{\"instruction\": \"d\", \"output\": \"4\"}",
    ));
    let expected = [
        instruction("Größe?", Some("x"), "1"),
        instruction("b", None, "2"),
        instruction("c", None, "3"),
        instruction("d", None, "4"),
    ];
    assert_eq!(records.unwrap(), expected);
}

#[test]
fn text_is_recognised_and_a_byte_order_mark_is_skipped() {
    let f = file("\u{feff}{\"text\": \"hello\"}\n");
    let records = Records::open(f.path(), &ReadArgs::default()).unwrap();
    assert_eq!((records.kind(), records.format().name), ("JSON Lines", "text"));
    let records: Vec<_> = records.map(|r| r.unwrap().record).collect();
    assert_eq!(records, [Record::Text { text: "hello".into() }]);
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("absent.jsonl");
    let e = Records::open(&path, &ReadArgs::default()).err().unwrap();
    assert!(matches!(e, RecordError::Io { .. }), "{e}");
    assert!(e.to_string().contains("absent.jsonl: No such file"), "{e}");
    let e = Records::open(dir.path(), &ReadArgs::default()).err().unwrap();
    assert!(e.to_string().contains("directory"), "{e}");
}

#[test]
fn an_empty_file_is_an_error() {
    assert_eq!(message(""), "data set F is empty; it needs at least one record");
    assert_eq!(message("\n \n\t\n"), "data set F is empty; it needs at least one record");
}

#[test]
fn a_malformed_line_is_named_with_file_line_and_column() {
    let text = message(format!("{GOOD}\n{{\"instruction\": \"a\", oops\n{GOOD}"));
    assert!(
        text.starts_with("F:3: not JSON at column 22: key must be a string; every line must be"),
        "{text}"
    );
    let text = message(format!("{GOOD}{{\"instruction\": \"a"));
    assert!(text.starts_with("F:2: not JSON at column 18: EOF while parsing a string;"), "{text}");
    let text = message(format!("{GOOD}[{{\"text\": \"a\"}}]"));
    assert!(text.starts_with("F:2: this is an array, not an object;") && text.contains(".json"), "{text}");
    let text = message(b"{\"text\": \"\xff\"}");
    assert_eq!(text, "F:1: byte 11 of the line is not UTF-8; save the file as UTF-8");
}

#[test]
fn a_missing_key_is_named_with_the_keys_found() {
    assert_eq!(
        message(format!("{GOOD}{{\"instruction\": \"a\", \"response\": \"b\"}}")),
        "F:2: key \"output\" is missing, which every alpaca record has; this one has \"instruction\", \"response\"; \
         add the key or remove the record"
    );
    assert!(message(format!("{GOOD}{{}}")).contains("\"instruction\" is missing"));
    assert_eq!(
        message("{\"question\": \"a\", \"answer\": \"b\"}"),
        "F:1: no known format has the keys \"question\", \"answer\"; known are messages (\"messages\"), sharegpt \
         (\"conversations\"), prompt_completion (\"prompt\", \"completion\"), alpaca (\"instruction\", \"output\"), text \
         (\"text\"); where yours are called otherwise, name them, e.g. `columns: {prompt: question, completion: answer}`"
    );
}

#[test]
fn a_value_that_is_not_text_is_named() {
    let with = |value: &str| {
        message(format!("{GOOD}{{\"instruction\": \"a\", \"input\": {value}, \"output\": \"b\"}}"))
    };
    assert!(with("3").starts_with("F:2: \"input\" is a number, not a string;"));
    assert!(with("[\"x\"]").starts_with("F:2: \"input\" is an array, not a string;"));
    assert!(message("{\"text\": null}").starts_with("F:1: \"text\" is null, not a string;"));
}

#[test]
fn a_line_without_end_does_not_fill_the_memory() {
    let text = message(vec![b' '; MAX_RECORD_BYTES + 2]);
    assert!(text.starts_with(&format!("F:1: the record is longer than {MAX_RECORD_BYTES} bytes;")), "{text}");
}
