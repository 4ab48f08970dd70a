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
/// Bytes of an event file. A trial of a hundred thousand steps stays below it; what exceeds it is no report.
const LIMIT: u64 = 256 << 20;
/// Bytes of a line, and of one reading. The longest event, of a model's tensors, has some hundred thousand.
const LONGEST: usize = 16 << 20;
/// Lines that are no events.
const GARBAGE_LINES: usize = 10_000;

/// The growing event file of an arm.
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    pending: Vec<u8>,
    read: u64,
    garbage: usize,
}

impl Tail {
    /// Follows `path`, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), file: None, pending: Vec::new(), read: 0, garbage: 0 }
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
            // No more than this is ever held.
            self.read += file.take(LONGEST as u64).read_to_end(&mut self.pending).at(&self.path)? as u64;
        }
        let Some(end) = self.pending.iter().rposition(|&b| b == b'\n') else { return Ok(Vec::new()) };
        let rest = self.pending.split_off(end + 1);
        let complete = std::mem::replace(&mut self.pending, rest);
        let lines = complete.split(|&b| b == b'\n').filter(|l| !l.is_empty());
        let lines: Vec<Line> = lines.map(|l| line(l, recv_ns)).collect();
        self.garbage += lines.iter().filter(|l| matches!(l, Line::Garbage { .. })).count();
        Ok(lines)
    }

    /// What is wrong with the file as a whole: it, or a line of it, is too long to be a report, or too much of it is none.
    pub fn flooded(&self) -> Option<String> {
        if self.read > LIMIT {
            Some(format!("at most {} MiB of events, saw more", LIMIT >> 20))
        } else if self.pending.len() > LONGEST {
            Some(format!("at most {} MiB in a line of the event file, saw more", LONGEST >> 20))
        } else {
            (self.garbage > GARBAGE_LINES)
                .then(|| format!("nothing but events, saw more than {GARBAGE_LINES} other lines"))
        }
    }

    /// What is left when the writer has ended: a line that was never completed is garbage.
    pub fn rest(&mut self, recv_ns: u64) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        loop {
            let before = self.read;
            lines.extend(self.lines(recv_ns)?);
            if self.read == before || self.flooded().is_some() {
                break;
            }
        }
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

    #[test]
    fn a_flood_is_noticed_and_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        std::fs::write(&path, "no event\n".repeat(20_000)).unwrap();
        let mut tail = Tail::new(&path);
        tail.lines(0).unwrap();
        assert!(tail.flooded().unwrap().contains("nothing but events"));
        std::fs::write(&path, vec![b'x'; 3 * LONGEST]).unwrap();
        let mut tail = Tail::new(&path);
        for _ in 0..2 {
            tail.lines(0).unwrap();
        }
        assert!(tail.flooded().unwrap().contains("in a line"));
        assert!(tail.pending.len() <= 2 * LONGEST);
    }
}
