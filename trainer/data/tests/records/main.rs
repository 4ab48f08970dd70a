//! Files of records: kinds of file, shapes of record, and what is told about those that cannot be read.

mod alike;
mod bad;
mod files;
mod lists;
mod noise;
mod pages;
mod rows;
mod schema;
mod shapes;

use std::path::{Path, PathBuf};

use chronicals_data::records::{Conversation, ReadArgs, Record, RecordError, Records};
use serde_json::{Value, json};

/// A file of a fresh folder.
struct File {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn new(name: &str, content: impl AsRef<[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        Self { _dir: dir, path }
    }

    /// What an error says, with the file's path as `F`.
    fn message(&self, args: &ReadArgs) -> String {
        let error = read(&self.path, args).expect_err("a mistake in it");
        error.to_string().replace(&self.path.display().to_string(), "F")
    }
}

fn read(path: &Path, args: &ReadArgs) -> Result<Vec<Record>, RecordError> {
    Records::open(path, args)?.map(|located| located.map(|l| l.record)).collect()
}

/// Records of a file with this name and content.
fn records(name: &str, content: impl AsRef<[u8]>) -> Vec<Record> {
    read(&File::new(name, content).path, &ReadArgs::default()).unwrap()
}

fn message(name: &str, content: impl AsRef<[u8]>) -> String {
    File::new(name, content).message(&ReadArgs::default())
}

fn conversation(record: &Record) -> &Conversation {
    match record {
        Record::Conversation(conversation) => conversation,
        other => panic!("{other:?}"),
    }
}

/// The turns of a conversation, as templates get them.
fn turns(record: &Record) -> Value {
    conversation(record).messages.iter().map(|m| json!(m.object())).collect()
}

fn parquet(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/parquet").join(name)
}
