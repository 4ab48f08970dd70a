//! The same records in every kind of file.

use std::io::Write;

use super::*;

const RECORDS: [(&str, &str); 3] = [("a \"b\"", "1,\n2"), ("ü\t🧀", "'x'"), ("", "last")];

fn expected() -> Vec<Record> {
    let record = |&(prompt, completion): &(&str, &str)| Record::Completion {
        prompt: prompt.into(),
        completion: completion.into(),
    };
    RECORDS.iter().map(record).collect()
}

fn objects() -> Vec<String> {
    let object = |(prompt, completion)| json!({"prompt": prompt, "completion": completion}).to_string();
    RECORDS.map(object).to_vec()
}

fn table(delimiter: &str, ends: &str) -> String {
    let cell = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let row = |(prompt, completion): &(&str, &str)| [cell(prompt), cell(completion)].join(delimiter);
    let rows = RECORDS.iter().map(row);
    std::iter::once(["prompt", "completion"].join(delimiter)).chain(rows).collect::<Vec<_>>().join(ends)
}

#[test]
fn every_kind_holds_the_same() {
    let lines = objects().join("\n");
    let array = format!(" \n[{}\n]\n", objects().join(",\n"));
    let held = format!("{{\"version\": 1, \"empty\": [], \"tags\": [\"x\"], \"data\": {array}}}");
    for (name, content, kind) in [
        ("d.jsonl", lines.clone(), "JSON Lines"),
        ("d.ndjson", lines.replace('\n', "\r\n\r\n"), "JSON Lines"),
        ("d.txt", lines.clone(), "JSON Lines"),
        ("d", array.clone(), "JSON"),
        ("d.json", array.clone(), "JSON"),
        ("d.json", format!("\u{feff}{array}"), "JSON"),
        ("d.json", objects().join(" \n "), "JSON"),
        ("d.json", held, "JSON"),
        ("d.JSON", array, "JSON"),
        ("d.csv", table(",", "\n"), "CSV"),
        ("d.csv", table(",", "\r\n"), "CSV"),
        ("d.tsv", table("\t", "\n"), "CSV"),
    ] {
        let file = File::new(name, &content);
        let found = Records::open(&file.path, &ReadArgs::default()).unwrap();
        assert_eq!((found.kind(), found.format().name), (kind, "prompt_completion"), "{name} {content}");
        let found: Vec<Record> = found.map(|r| r.unwrap().record).collect();
        assert_eq!(found, expected(), "{name} {content}");
    }
}

#[test]
fn a_table_may_have_a_mark_further_columns_and_lists() {
    let csv = "\u{feff}id,messages\n1,\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"a\"\"}]\"\n";
    assert_eq!(turns(&records("d.csv", csv)[0]), json!([{"role": "user", "content": "a"}]));
}

#[test]
fn places_are_lines_or_records() {
    let places = |name: &str, content: &str| {
        let file = File::new(name, content);
        let found = Records::open(&file.path, &ReadArgs::default()).unwrap();
        found.map(|r| r.unwrap().place.unwrap().number()).collect::<Vec<_>>()
    };
    assert_eq!(places("d.jsonl", "\n{\"text\": \"a\"}\n\n{\"text\": \"b\"}"), [2, 4]);
    assert_eq!(places("d.json", "[\n{\"text\":\n \"a\"},\n\n{\"text\": \"b\"}]"), [2, 5]);
    assert_eq!(places("d.csv", "text\n\"a\n\n\"\nb\n"), [2, 5]);
    assert_eq!(places("d.json", "{\"rows\": [{\"text\": \"a\"}, {\"text\": \"b\"}]}"), [1, 2]);
}

#[test]
fn parquet_of_every_usual_compression() {
    for name in ["none", "snappy", "zstd", "gzip"] {
        let path = parquet(&format!("{name}.parquet"));
        let found = Records::open(&path, &ReadArgs::default()).unwrap();
        assert_eq!((found.kind(), found.format().name), ("Parquet", "messages"));
        let found: Vec<_> = found.map(|r| r.unwrap()).collect();
        assert_eq!(found.len(), 10, "{name}");
        assert_eq!(
            turns(&found[0].record),
            json!([{"role": "user", "content": "Count to 0: ä 🧀"}]),
            "{name}"
        );
        let last = json!([
            {"role": "user", "content": "Count to 9: ä 🧀"},
            {"role": "assistant", "content": "1 2 3 4 5 6 7 8 9", "name": "counter"}
        ]);
        assert_eq!(turns(&found[9].record), last, "{name}");
        assert!(found[9].place.as_ref().unwrap().to_string().ends_with(".parquet, record 10"), "{name}");
    }
}

#[test]
fn parquet_is_known_by_its_first_bytes_too() {
    let bytes = std::fs::read(parquet("zstd.parquet")).unwrap();
    assert_eq!(records("train-00000-of-00001", bytes).len(), 10);
}

#[test]
fn parquet_columns_of_text_are_text() {
    let mut args = ReadArgs { format: Some("text".into()), ..Default::default() };
    args.columns.text = Some("source".into());
    let found = read(&parquet("snappy.parquet"), &args).unwrap();
    assert_eq!(found[..2], [Record::Text { text: "web".into() }, Record::Text { text: "book".into() }]);
    args.columns.text = Some("when".into());
    let found = read(&parquet("snappy.parquet"), &args).unwrap();
    assert!(
        matches!(&found[3], Record::Text { text } if text.starts_with("2024-07-26 12:00:03")),
        "{found:?}"
    );
}

/// The writer goes on only when the first record has been read, as it would not if the file were read whole.
#[cfg(unix)]
#[test]
fn the_first_record_is_read_before_the_last_is_written() {
    let one = objects().remove(0);
    for (name, head, tail) in [
        ("d.jsonl", format!("{one}\n"), format!("{one}\n")),
        ("d.json", format!("[{one},"), format!("{one}]")),
        ("d.csv", "prompt,completion\na,b\n".to_string(), "c,d\n".to_string()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (read_one, go_on) = std::sync::mpsc::channel();
        let pipe = path.clone();
        let writer = std::thread::spawn(move || {
            let mut pipe = std::fs::File::options().write(true).open(pipe).unwrap();
            pipe.write_all(head.as_bytes()).unwrap();
            let told = go_on.recv_timeout(std::time::Duration::from_secs(60));
            pipe.write_all(tail.as_bytes()).unwrap();
            told
        });
        let mut found = Records::open(&path, &ReadArgs::default()).unwrap();
        found.next().unwrap().unwrap();
        read_one.send(()).unwrap();
        assert_eq!(found.inspect(|r| assert!(r.is_ok())).count(), 1, "{name}");
        writer.join().unwrap().unwrap_or_else(|e| panic!("{name} was read on: {e}"));
    }
}
