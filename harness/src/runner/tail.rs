//! Reading a file while somebody else appends to it.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use chronibench_protocol::{Event, record::Line};

use crate::error::{AtPath, Error, Result};

/// Characters of a line that is no event that are kept.
const GARBAGE_CHARS: usize = 200;

/// The growing event file of an arm.
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    pending: Vec<u8>,
}

impl Tail {
    /// Follows `path`, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), file: None, pending: Vec::new() }
    }

    /// Lines completed since the last call.
    pub fn lines(&mut self, recv_ns: u64) -> Result<Vec<Line>> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(e) => return Err(Error::io(&self.path, &e)),
            }
        }
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.pending).at(&self.path)?;
        }
        let Some(end) = self.pending.iter().rposition(|&b| b == b'\n') else { return Ok(Vec::new()) };
        let rest = self.pending.split_off(end + 1);
        let complete = std::mem::replace(&mut self.pending, rest);
        let lines = complete.split(|&b| b == b'\n').filter(|l| !l.is_empty());
        Ok(lines.map(|l| line(l, recv_ns)).collect())
    }

    /// What is left when the writer has ended: a line that was never completed is garbage.
    pub fn rest(mut self, recv_ns: u64) -> Result<Vec<Line>> {
        let mut lines = self.lines(recv_ns)?;
        if !self.pending.is_empty() {
            lines.push(garbage(&self.pending, recv_ns));
        }
        Ok(lines)
    }
}

fn line(bytes: &[u8], recv_ns: u64) -> Line {
    match serde_json::from_slice::<Event>(bytes) {
        Ok(event) => Line::Event { recv_ns, event },
        Err(_) => garbage(bytes, recv_ns),
    }
}

fn garbage(bytes: &[u8], recv_ns: u64) -> Line {
    Line::Garbage { recv_ns, text: String::from_utf8_lossy(bytes).chars().take(GARBAGE_CHARS).collect() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_line_counts_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let mut tail = Tail::new(&path);
        assert!(tail.lines(0).unwrap().is_empty());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"{\"event\":\"error\",\"what\":\"a\",\"wh").unwrap();
        assert!(tail.lines(1).unwrap().is_empty());
        file.write_all(b"ere\":\"b\",\"hint\":\"c\"}\nhello\nhalf").unwrap();
        let lines = tail.lines(2).unwrap();
        assert!(matches!(&lines[0], Line::Event { recv_ns: 2, event: Event::Error(f) } if f.at == "b"));
        assert!(matches!(&lines[1], Line::Garbage { text, .. } if text == "hello"));
        let rest = tail.rest(3).unwrap();
        assert!(matches!(&rest[..], [Line::Garbage { text, .. }] if text == "half"));
    }
}
