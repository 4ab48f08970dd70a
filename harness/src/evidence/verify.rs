//! `chronibench verify`: whether a run folder still is what the harness wrote. Nothing is executed and nothing fetched.

use std::{
    collections::BTreeSet,
    io::ErrorKind::NotFound,
    path::{Path, PathBuf},
};

use chronibench_analysis::RunSummary;
use chronibench_protocol::{
    chain::{Chain, Evidence, Head, follow},
    digest::sha256_hex,
    record::Line,
};
use serde::Serialize;

use super::{
    EVIDENCE, joined, missing,
    places::{Named, Plan},
    read,
};
use crate::{
    error::{Error, Result},
    gate, join,
    kernel::store::{KernelStore, is_run},
    store::{PAGE, RESOLVED, Rendered, Store, event_files, parse_lines, read_text, trial_id},
};

/// What is known of a run folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Standing {
    /// Every chain is whole, and all else follows from the events.
    Verified,
    /// The record is older than chains: all else was checked, and nothing proves the events.
    NoChain,
    /// Something was changed, lost or added.
    Broken,
}

/// Something that is not as the harness wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// File, with the line where there is one.
    pub at: String,
    /// What is wrong.
    pub what: String,
}

/// The outcome for one folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The folder.
    pub dir: PathBuf,
    /// All in all.
    pub standing: Standing,
    /// Trials looked at.
    pub trials: usize,
    /// Their stored lines.
    pub lines: u64,
    /// Files that were rendered again and compared.
    pub rendered: usize,
    /// One hash over the run, where it is chained.
    pub head: Option<String>,
    /// Why it is no more than [`Standing::NoChain`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
    /// What of the scenario is not there, as where a run was interrupted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Checks a run folder.
///
/// # Errors
/// It is no run folder. A folder that was changed is a finding, not an error.
pub fn verify(dir: &Path) -> Result<Verification> {
    if join::is_join(dir) {
        return joined::verify(dir);
    }
    if !dir.join(RESOLVED).is_file() {
        return Err(Error::environment(
            "not a run folder: it has no resolved.yaml",
            dir.display().to_string(),
        )
        .hint("give a folder that `chronibench run` or `chronibench kernel` has made"));
    }
    let mut check = Check { dir, findings: Vec::new() };
    let evidence = match read(dir) {
        Ok(evidence) => evidence,
        Err(e) => {
            check.report(EVIDENCE, e.what);
            None
        }
    };
    if !dir.join(EVIDENCE).exists()
        && let Some(why) = missing::was_chained(dir)
    {
        check.report(EVIDENCE, format!("it is missing: {why}. Restore it, or run the scenario again"));
    }
    let (trials, lines, named) = check.events(evidence.as_ref());
    if let Some(evidence) = &evidence {
        check.files(evidence);
    }
    let (rendered, summary) = check.rendered();
    let left = check.places(&named, summary.as_ref());
    let standing = match (check.findings.is_empty(), &evidence) {
        (false, _) => Standing::Broken,
        (true, None) => Standing::NoChain,
        (true, Some(_)) => Standing::Verified,
    };
    Ok(Verification {
        dir: dir.to_path_buf(),
        standing,
        trials,
        lines,
        rendered,
        head: evidence.map(|e| e.head()),
        unproven: (standing == Standing::NoChain).then(|| OLDER.into()),
        left,
        findings: check.findings,
    })
}

const OLDER: &str = "older than chains: names, ends and report agree, and nothing proves its events";

/// What a gate or a measurement of noise lays beside a run. `gate.json` follows from a plan, where there is one.
const BESIDE: [&str; 3] = [gate::PLAN, "gate.json", "certificate.json"];

struct Check<'a> {
    dir: &'a Path,
    findings: Vec<Finding>,
}

impl Check<'_> {
    fn report(&mut self, at: impl Into<String>, what: impl Into<String>) {
        self.findings.push(Finding { at: at.into(), what: what.into() });
    }

    /// Chains, counts and names of all event files.
    fn events(&mut self, evidence: Option<&Evidence>) -> (usize, u64, Vec<Named>) {
        let files = match event_files(self.dir) {
            Ok(files) => files,
            Err(e) => {
                self.report("events", e.what);
                return (0, 0, Vec::new());
            }
        };
        let (mut ids, mut trials, mut lines) = (BTreeSet::new(), Vec::new(), 0);
        for file in &files {
            let at = self.name(file);
            let id = trial_id(file);
            if !ids.insert(id.clone()) {
                self.report(&at, "the trial lies there twice");
            }
            let text = match read_text(file) {
                Ok(text) => text,
                Err(e) => {
                    self.report(&at, format!("cannot be read: {}", e.what));
                    continue;
                }
            };
            lines += text.lines().count() as u64;
            self.chain(&at, &id, &text, evidence);
            let Some(named) = self.contents(file, &at, &text) else { continue };
            if named.id != id {
                self.report(&at, format!("it is the record of trial {}", named.id));
            }
            trials.push(named);
        }
        for head in evidence.iter().flat_map(|e| &e.trials).filter(|h| !ids.contains(&h.id)) {
            self.report(
                format!("events/{}.jsonl", head.id),
                "the trial is in the evidence and not in the folder",
            );
        }
        (files.len(), lines, trials)
    }

    fn name(&self, file: &Path) -> String {
        file.strip_prefix(self.dir).unwrap_or(file).display().to_string()
    }

    fn chain(&mut self, at: &str, id: &str, text: &str, evidence: Option<&Evidence>) {
        let genesis = evidence.map(|e| e.genesis(id)).unwrap_or_default();
        let entry = evidence.and_then(|e| e.trials.iter().find(|t| t.id == id));
        match (evidence, follow(text, &genesis, id)) {
            (None, Chain::None) => {}
            (None, _) => {
                self.report(at, format!("it is chained, and the folder has no {EVIDENCE} that can be read"))
            }
            (Some(_), Chain::None) => self.report(at, "its lines have no links, and the run is chained"),
            (Some(_), Chain::Broken { line, why }) => self.report(format!("{at}:{line}"), why),
            (Some(_), Chain::Whole(head)) => match entry {
                None => self.report(at, "the evidence does not know this trial"),
                Some(known) if known != &head => self.report(at, ends_otherwise(known, &head)),
                Some(_) => {}
            },
        }
    }

    /// Every line reads, the first names the trial, the last tells how it ended.
    fn contents(&mut self, file: &Path, at: &str, text: &str) -> Option<Named> {
        let lines = match parse_lines(file, text) {
            Ok(lines) => lines,
            Err(e) => {
                let line = e.at.rsplit(':').next().unwrap_or_default();
                self.report(format!("{at}:{line}"), e.what);
                return None;
            }
        };
        if !matches!(lines.last(), Some(Line::Exit(_))) {
            self.report(at, "it does not end with the end of the process: lines are missing");
        }
        let heads = lines.iter().filter(|l| matches!(l, Line::Trial(_) | Line::Kernels(_))).count();
        let named = match lines.first() {
            Some(Line::Trial(header)) => Named::trial(at, header, &lines),
            Some(Line::Kernels(header)) => Named::kernels(at, header),
            _ => {
                self.report(at, "it does not begin with a trial's head");
                return None;
            }
        };
        if heads > 1 {
            self.report(at, "it has the head of more than one trial");
        }
        Some(named)
    }

    /// The places of the trials against the scenario; what is left to run.
    fn places(&mut self, trials: &[Named], summary: Option<&RunSummary>) -> Option<String> {
        let plan = if is_run(self.dir) {
            let text = std::fs::read_to_string(self.dir.join(RESOLVED)).ok()?;
            Plan::kernels(&serde_saphyr::from_str(&text).ok()?)
        } else {
            Plan::training(&Store::open(self.dir).and_then(|s| s.load_head()).ok()?.0, summary)
        };
        let (findings, left) = plan.check(trials);
        self.findings.extend(findings);
        left
    }

    fn files(&mut self, evidence: &Evidence) {
        for (name, hash) in evidence.files.iter().chain(&evidence.beside) {
            match std::fs::read(self.dir.join(name)) {
                Err(e) => self.report(name, format!("cannot be read: {e}")),
                Ok(bytes) if sha256_hex(&bytes) != *hash => {
                    let began = evidence.files.contains_key(name);
                    let what = if began { "the run began with" } else { "the harness wrote" };
                    self.report(name, format!("it is not the file that {what}"));
                }
                Ok(_) => {}
            }
        }
        // Versions that do not say that they write chains did not note these either.
        if !missing::says_chained(self.dir) {
            return;
        }
        let follows = |name: &str| name == "gate.json" && gate::is_gate(self.dir);
        for name in BESIDE.into_iter().filter(|n| !follows(n) && !evidence.beside.contains_key(*n)) {
            if self.dir.join(name).exists() {
                self.report(name, "the evidence does not know this file");
            }
        }
    }

    /// Results and report follow from the events, to the last byte; what lies there besides is not the harness's.
    fn rendered(&mut self) -> (usize, Option<RunSummary>) {
        let files: Result<(Rendered, Option<RunSummary>)> = if is_run(self.dir) {
            KernelStore::open(self.dir).and_then(|s| Ok((s.render()?.1, None)))
        } else {
            Store::open(self.dir).and_then(|s| {
                let (summary, mut files) = s.render()?;
                if gate::is_gate(self.dir) {
                    files.extend(gate::rendered(&s)?);
                }
                Ok((files, Some(summary)))
            })
        };
        let (files, summary) = match files {
            Ok(files) => files,
            Err(e) => {
                self.report(e.at, format!("the report cannot be made again: {}", e.what));
                return (0, None);
            }
        };
        for (name, bytes) in &files {
            match std::fs::read(self.dir.join(name)) {
                Err(e) if e.kind() == NotFound && name == PAGE => {}
                Err(e) => self.report(name, format!("cannot be read: {e}")),
                Ok(found) if found != *bytes => self.report(name, differs(&found, bytes)),
                Ok(_) => {}
            }
        }
        (files.len(), summary)
    }
}

fn ends_otherwise(known: &Head, found: &Head) -> String {
    if known.lines == found.lines {
        "its last line is not the one that the evidence names".into()
    } else {
        format!("it has {} lines, and the evidence names {}", found.lines, known.lines)
    }
}

/// The first line that is not as it is rendered.
pub(super) fn differs(found: &[u8], rendered: &[u8]) -> String {
    let lines = |bytes: &[u8]| -> Vec<Vec<u8>> { bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect() };
    let (found, rendered) = (lines(found), lines(rendered));
    let line = found.iter().zip(&rendered).take_while(|(a, b)| a == b).count() + 1;
    format!("it is not what the events come to; line {line} is the first that differs")
}
