//! The hash chain of a stored trial: what makes a change after the run visible.
//!
//! Every stored line carries `seq`, from 0, and `prev_hash`, the SHA-256 of the bytes of the line before it. The first
//! line's is [`genesis`], which names the run and the trial, so that a line, or a whole trial, fits nowhere else. The hash of
//! the last line is the head. A chain proves integrity, not honesty: whoever makes all of it anew has a whole chain.

use std::{collections::BTreeMap, ops::Deref};

use serde::{Deserialize, Serialize};

use crate::{digest::sha256_hex, record::Line};

/// Version of chains and of `evidence.json`.
pub const SCHEMA: &str = "chronibench.evidence/1";

/// `evidence.json`: what a run folder holds, by hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// [`SCHEMA`].
    pub schema: String,
    /// File → SHA-256 of what was written before the first trial.
    pub files: BTreeMap<String, String>,
    /// Every stored trial, in the order in which they were stored.
    pub trials: Vec<Head>,
    /// File → SHA-256 of what lies beside the trials and does not follow from them, e.g. the plan of a gate.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<String, String>,
}

/// The end of a trial's chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Trial id, also the stem of the event file.
    pub id: String,
    /// Stored lines.
    pub lines: u64,
    /// SHA-256 of the last line.
    pub head: String,
}

impl Evidence {
    /// Of a run of which nothing has run: `files` are names and contents.
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, bytes)| (name.to_string(), sha256_hex(bytes))).collect();
        Self { schema: SCHEMA.into(), files, trials: Vec::new(), beside: BTreeMap::new() }
    }

    /// The run by where and when it was made. What it was to do is left out: a run that stops when it knows enough is
    /// resolved anew after every trial.
    pub fn run_id(&self) -> String {
        sha256_hex(self.listed(|name| name != "resolved.yaml").as_bytes())
    }

    fn listed(&self, keep: impl Fn(&str) -> bool) -> String {
        self.files.iter().filter(|(n, _)| keep(n)).map(|(name, hash)| format!("{hash}  {name}\n")).collect()
    }

    /// One hash over all trials and what lies beside them.
    pub fn head(&self) -> String {
        let of = |t: &Head| format!("{} {} {}\n", t.head, t.lines, t.id);
        let text: String = self.trials.iter().map(of).collect();
        let beside: String = self.beside.iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect();
        sha256_hex(format!("{}{text}{beside}", self.listed(|_| true)).as_bytes())
    }
}

/// What stands in front of a trial's first line.
pub fn genesis(run_id: &str, trial_id: &str) -> String {
    sha256_hex(format!("{SCHEMA}\n{run_id}\n{trial_id}\n").as_bytes())
}

/// The links of a stored line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Place in the trial.
    pub seq: u64,
    /// Hash of the line before.
    pub prev_hash: String,
}

/// The lines of a trial, chained as they come in.
pub struct Record {
    id: String,
    lines: Vec<Line>,
    text: String,
    prev_hash: String,
}

#[derive(Serialize)]
struct Linked<'a> {
    #[serde(flatten)]
    link: Link,
    #[serde(flatten)]
    line: &'a Line,
}

impl Record {
    /// An empty record of a trial of a run.
    pub fn new(run_id: &str, trial_id: &str) -> Self {
        Self {
            id: trial_id.into(),
            lines: Vec::new(),
            text: String::new(),
            prev_hash: genesis(run_id, trial_id),
        }
    }

    /// Adds a line and seals it.
    pub fn push(&mut self, line: Line) {
        let link = Link { seq: self.lines.len() as u64, prev_hash: self.prev_hash.clone() };
        let text = serde_json::to_string(&Linked { link, line: &line }).expect("plain data");
        self.prev_hash = sha256_hex(text.as_bytes());
        self.text += &text;
        self.text.push('\n');
        self.lines.push(line);
    }

    /// The event file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The end of the chain.
    pub fn head(&self) -> Head {
        Head { id: self.id.clone(), lines: self.lines.len() as u64, head: self.prev_hash.clone() }
    }
}

impl Deref for Record {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        &self.lines
    }
}

/// What a chain of stored lines turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// No line has links: the record is older than they are.
    None,
    /// Every line follows from the one before.
    Whole(Head),
    /// It does not, from this line on (from 1).
    Broken {
        /// The first line that does not fit.
        line: u64,
        /// In what way.
        why: String,
    },
}

/// Follows the chain of an event file's text.
pub fn follow(text: &str, run_id: &str, trial_id: &str) -> Chain {
    let links: Vec<Option<Link>> = text.lines().map(|l| serde_json::from_str(l).ok()).collect();
    if links.iter().all(Option::is_none) {
        return Chain::None;
    }
    let mut prev_hash = genesis(run_id, trial_id);
    let mut lines = 0;
    for (line, link) in text.lines().zip(links) {
        let broken = |why: &str| Chain::Broken { line: lines + 1, why: why.into() };
        match link {
            None => return broken("it has no links"),
            Some(l) if l.seq != lines => {
                return broken(&format!("its number is {}, and {lines} is due", l.seq));
            }
            Some(l) if l.prev_hash != prev_hash && lines == 0 => {
                return broken("it does not begin this trial of this run");
            }
            Some(l) if l.prev_hash != prev_hash => return broken("it does not follow the line before it"),
            Some(_) => {}
        }
        prev_hash = sha256_hex(line.as_bytes());
        lines += 1;
    }
    Chain::Whole(Head { id: trial_id.into(), lines, head: prev_hash })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(run: &str, trial: &str) -> Record {
        let mut record = Record::new(run, trial);
        for i in 0..4 {
            record.push(Line::Garbage { recv_ns: i, text: format!("line {i}") });
        }
        record
    }

    fn broken_at(text: &str, run: &str, trial: &str) -> u64 {
        match follow(text, run, trial) {
            Chain::Broken { line, .. } => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_record_is_whole_and_reads_back() {
        let record = record("run", "000-a");
        assert_eq!(follow(record.text(), "run", "000-a"), Chain::Whole(record.head()));
        let read: Vec<Line> = record.text().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(read, *record);
        assert_eq!(record.head().lines, 4);
    }

    #[test]
    fn every_change_breaks_it() {
        let record = record("run", "000-a");
        let lines: Vec<&str> = record.text().lines().collect();
        let join = |l: &[&str]| l.join("\n") + "\n";
        let flipped = record.text().replace("line 1", "line 7");
        assert_eq!(broken_at(&flipped, "run", "000-a"), 3);
        assert_eq!(broken_at(&join(&[lines[0], lines[2], lines[3]]), "run", "000-a"), 2);
        assert_eq!(broken_at(&join(&[lines[0], lines[2], lines[1], lines[3]]), "run", "000-a"), 2);
        assert_eq!(broken_at(&join(&lines[1..]), "run", "000-a"), 1);
        assert_eq!(broken_at(record.text(), "run", "001-a"), 1);
        assert_eq!(broken_at(record.text(), "another", "000-a"), 1);
        let other = self::record("run", "001-b");
        let spliced = join(&[lines[0], lines[1], other.text().lines().nth(2).unwrap()]);
        assert_eq!(broken_at(&spliced, "run", "000-a"), 3);
        // A line that was cut off, or changed at the very end, is whole by itself: the head tells.
        for text in [join(&lines[..3]), record.text().replace("line 3", "line 9")] {
            assert!(matches!(follow(&text, "run", "000-a"), Chain::Whole(h) if h != record.head()));
        }
        let bare = lines[0].replace("\"seq\":0,", "");
        assert_eq!(broken_at(&join(&[&bare, lines[1]]), "run", "000-a"), 1);
    }

    #[test]
    fn a_record_without_links_is_told_apart() {
        assert_eq!(follow("{\"kind\":\"garbage\",\"recv_ns\":0,\"text\":\"\"}\n", "run", "a"), Chain::None);
        assert_eq!(follow("", "run", "a"), Chain::None);
    }

    #[test]
    fn the_head_of_a_run_is_over_files_and_trials() {
        let mut evidence = Evidence::new(&[("resolved.yaml", b"a"), ("environment.json", b"b")]);
        let empty = evidence.head();
        evidence.trials.push(record(&evidence.run_id(), "000-a").head());
        assert_ne!(evidence.head(), empty);
        // What lies beside is in the head, and is not what makes the run.
        let (head, run) = (evidence.head(), evidence.run_id());
        evidence.beside.insert("gate-plan.json".into(), sha256_hex(b"c"));
        assert!(evidence.head() != head && evidence.run_id() == run);
        let other = Evidence::new(&[("resolved.yaml", b"b"), ("environment.json", b"a")]);
        assert_ne!(other.run_id(), evidence.run_id());
    }
}
