//! The hash chain of a stored trial: what makes a change after the run visible.
//!
//! Every stored line carries `seq`, from 0, and `prev_hash`, the SHA-256 of the bytes of the line before it. The first
//! line's is [`Evidence::genesis`], which names the run, the trial, and the head of the trial stored before it, so that a line, or a
//! whole trial, fits nowhere else, and none can be taken out from among the others. The hash of the last line is the head. A chain
//! proves integrity, not honesty: whoever makes all of it anew has a whole chain.

use std::{collections::BTreeMap, ops::Deref};

use serde::{Deserialize, Serialize};

use crate::{digest::sha256_hex, record::Line};

/// Version of chains and of `evidence.json`.
pub const SCHEMA: &str = "chronibench.evidence/2";

/// The version before, whose trials are chained each for itself: a trial and its entry could be taken out together, and the scenario
/// changed, without a trace in the chains of the others.
pub const UNLINKED: &str = "chronibench.evidence/1";

/// `evidence.json`: what a run folder holds, by hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// [`SCHEMA`], or [`UNLINKED`].
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

    /// The run by where and when it was made and by what it was to do; before trials were linked, by the first two alone.
    pub fn run_id(&self) -> String {
        sha256_hex(self.listed(|name| self.is_linked() || name != "resolved.yaml").as_bytes())
    }

    fn is_linked(&self) -> bool {
        self.schema != UNLINKED
    }

    /// What stands in front of the first line of a trial: of one that is stored, or of the next one.
    pub fn genesis(&self, trial_id: &str) -> String {
        let (schema, run_id) = (&self.schema, self.run_id());
        let before = self.trials.iter().take_while(|t| t.id != trial_id).last();
        let before = before.map_or(String::new(), |t| t.head.clone());
        sha256_hex(
            match self.is_linked() {
                true => format!("{schema}\n{run_id}\n{before}\n{trial_id}\n"),
                false => format!("{schema}\n{run_id}\n{trial_id}\n"),
            }
            .as_bytes(),
        )
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
    /// An empty record of a trial, behind its [`Evidence::genesis`].
    pub fn new(genesis: String, trial_id: &str) -> Self {
        Self { id: trial_id.into(), lines: Vec::new(), text: String::new(), prev_hash: genesis }
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

/// Follows the chain of an event file's text from its [`Evidence::genesis`] on.
pub fn follow(text: &str, genesis: &str, trial_id: &str) -> Chain {
    let links: Vec<Option<Link>> = text.lines().map(|l| serde_json::from_str(l).ok()).collect();
    if links.iter().all(Option::is_none) {
        return Chain::None;
    }
    let mut prev_hash = genesis.to_string();
    let mut lines = 0;
    for (line, link) in text.lines().zip(links) {
        let broken = |why: &str| Chain::Broken { line: lines + 1, why: why.into() };
        match link {
            None => return broken("it has no links"),
            Some(l) if l.seq != lines => {
                return broken(&format!("its number is {}, and {lines} is due", l.seq));
            }
            Some(l) if l.prev_hash != prev_hash && lines == 0 => {
                return broken("it does not begin this trial of this run, behind the trial before it");
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

    fn evidence(schema: &str, run: &str) -> Evidence {
        Evidence { schema: schema.into(), ..Evidence::new(&[("environment.json", run.as_bytes())]) }
    }

    fn genesis(run: &str, trial: &str) -> String {
        evidence(SCHEMA, run).genesis(trial)
    }

    fn record(run: &str, trial: &str) -> Record {
        recorded(genesis(run, trial), trial)
    }

    fn recorded(genesis: String, trial: &str) -> Record {
        let mut record = Record::new(genesis, trial);
        for i in 0..4 {
            record.push(Line::Garbage { recv_ns: i, text: format!("line {i}") });
        }
        record
    }

    fn broken_at(text: &str, run: &str, trial: &str) -> u64 {
        match follow(text, &genesis(run, trial), trial) {
            Chain::Broken { line, .. } => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_record_is_whole_and_reads_back() {
        let record = record("run", "000-a");
        assert_eq!(follow(record.text(), &genesis("run", "000-a"), "000-a"), Chain::Whole(record.head()));
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
            assert!(
                matches!(follow(&text, &genesis("run", "000-a"), "000-a"), Chain::Whole(h) if h != record.head())
            );
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
        evidence.trials.push(recorded(evidence.genesis("000-a"), "000-a").head());
        assert_ne!(evidence.head(), empty);
        // What lies beside is in the head, and is not what makes the run.
        let (head, run) = (evidence.head(), evidence.run_id());
        evidence.beside.insert("gate-plan.json".into(), sha256_hex(b"c"));
        assert!(evidence.head() != head && evidence.run_id() == run);
        let other = Evidence::new(&[("resolved.yaml", b"b"), ("environment.json", b"a")]);
        assert_ne!(other.run_id(), evidence.run_id());
    }

    #[test]
    fn a_trial_follows_the_one_before_it() {
        for (schema, linked) in [(SCHEMA, true), (UNLINKED, false)] {
            let mut evidence = evidence(schema, "run");
            for id in ["audit-a", "000-a", "001-a"] {
                evidence.trials.push(recorded(evidence.genesis(id), id).head());
            }
            let second = evidence.genesis("000-a");
            // What comes behind a trial does not matter to it; what came before does.
            let last = Evidence { trials: evidence.trials[..2].to_vec(), ..evidence.clone() };
            assert_eq!(last.genesis("000-a"), second);
            assert_eq!(last.genesis("001-a"), evidence.genesis("001-a"), "that of the next trial");
            let first = Evidence { trials: evidence.trials[1..].to_vec(), ..evidence.clone() };
            assert_eq!(first.genesis("000-a") != second, linked, "{schema}");
        }
    }

    #[test]
    fn the_scenario_is_part_of_a_run_that_is_linked() {
        let run = |schema: &str, resolved: &[u8]| {
            let files = [("resolved.yaml", resolved), ("environment.json", b"b".as_slice())];
            Evidence { schema: schema.into(), ..Evidence::new(&files) }.run_id()
        };
        assert_ne!(run(SCHEMA, b"steps: 4"), run(SCHEMA, b"steps: 0"));
        assert_eq!(run(UNLINKED, b"steps: 4"), run(UNLINKED, b"steps: 0"));
    }
}
