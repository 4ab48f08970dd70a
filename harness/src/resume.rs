//! `chronibench run FILE --resume DIR`: a run that was ended, goes on.
//!
//! A trial counts once its event file is whole: that is moved into place in one step, and its end is then noted in
//! `evidence.json`. Whatever moment a kill comes at, a trial is therefore stored whole or not at all. What a trial left
//! that had not ended is set aside in `aside/`, for a look, and the trial runs again.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use chronibench_protocol::{
    chain::{Chain, Evidence, follow},
    digest::sha256_hex,
    record::{Line, Resolved},
};
use serde_json::Value;

use crate::{
    audit,
    error::{AtPath, Error, Exit, Result},
    evidence,
    store::{ENVIRONMENT, RESOLVED, Store, event_files, parse_lines, read_text, trial_id},
};

const ASIDE: &str = "aside";
/// How long a folder may be held by what a harness that was killed has left.
const PATIENCE: Duration = Duration::from_secs(2);

/// The trials that a run has already.
#[derive(Default)]
pub struct Kept(BTreeMap<String, Vec<Line>>);

impl Kept {
    /// The lines of a trial that has run.
    pub fn lines(&self, trial_id: &str) -> Option<&[Line]> {
        self.0.get(trial_id).map(Vec::as_slice)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing has run.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Holds a run folder for one harness, until it is dropped.
pub struct Lock {
    _file: File,
}

/// Takes a run folder; the kernel gives it back when the harness ends, however it ends.
///
/// # Errors
/// Another harness runs in it.
pub fn lock(dir: &Path) -> Result<Lock> {
    let work = dir.join("work");
    std::fs::create_dir_all(&work).at(&work)?;
    let path = work.join("lock");
    let file = File::create(&path).at(&path)?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            // A child of a harness that was just killed may hold it until it has become another program, or ended.
            Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::usage(
                    "another chronibench runs in this folder",
                    dir.display().to_string(),
                )
                .hint("wait for it, or end it first"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, &e)),
        }
    }
}

/// Opens the folder of a run that was ended, and mends what a kill left half done.
///
/// # Errors
/// It is no run of this scenario by this program on this machine, or what it holds was changed.
pub fn open(dir: &Path, resolved: &Resolved, environment: &Value) -> Result<(Store, Kept, Lock)> {
    let begun = dir.join(RESOLVED).is_file() || dir.join("events").is_dir();
    if !begun {
        return Err(Error::usage("there is no run to go on with", dir.display().to_string())
            .hint("name the folder of the run that was ended, or begin one without --resume"));
    }
    for (file, what) in [("gate-plan.json", "a gate"), ("joined.json", "a join")] {
        if dir.join(file).exists() {
            return Err(Error::usage(format!("the folder holds {what}"), dir.display().to_string())
                .hint("run it anew; only a run of a scenario goes on"));
        }
    }
    let lock = lock(dir)?;
    let events = dir.join("events");
    std::fs::create_dir_all(&events).at(&events)?;
    let nothing_ran = event_files(dir)?.is_empty();
    if evidence::read(dir)?.is_none() && nothing_ran {
        // It was ended while the record of what is to run was written.
        for file in [RESOLVED, ENVIRONMENT].map(|f| dir.join(f)).iter().filter(|f| f.exists()) {
            std::fs::remove_file(file).at(file)?;
        }
        return Ok((Store::create(dir, resolved, environment)?, Kept::default(), lock));
    }
    let dir = &dir.canonicalize().at(dir)?;
    let evidence = evidence::of_running(dir)?;
    same_files(dir, &evidence)?;
    let store = Store::open(dir)?;
    let then = store.load_head()?;
    same_scenario(dir, &then.0, resolved)?;
    same_machine(dir, &then.1, environment)?;
    sweep_up(dir)?;
    audit::forget(dir)?;
    let kept = recover(dir, &evidence)?;
    Ok((store, kept, lock))
}

fn changed(what: String, at: String) -> Error {
    Error::new(Exit::Integrity, what, at)
        .hint("restore it; `chronibench verify DIR` says all that was changed. A run that was changed does not go on")
}

fn same_files(dir: &Path, evidence: &Evidence) -> Result<()> {
    for (name, hash) in &evidence.files {
        let path = dir.join(name);
        if sha256_hex(&std::fs::read(&path).at(&path)?) != *hash {
            return Err(changed(
                "it is not the file that the run began with".into(),
                path.display().to_string(),
            ));
        }
    }
    Ok(())
}

/// The first place at which two values differ, with both.
fn difference(at: &str, then: &Value, now: &Value) -> Option<String> {
    let show = |v: &Value| {
        let text = v.to_string();
        if text.chars().count() > 60 { text.chars().take(60).chain(['…']).collect() } else { text }
    };
    match (then, now) {
        (a, b) if a == b => None,
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
            keys.into_iter().find_map(|k| {
                let at = if at.is_empty() { k.clone() } else { format!("{at}.{k}") };
                difference(&at, a.get(k).unwrap_or(&Value::Null), b.get(k).unwrap_or(&Value::Null))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| difference(&format!("{at}[{i}]"), a, b))
        }
        (a, b) => Some(format!("{at} was {}, and is {}", show(a), show(b))),
    }
}

fn same_scenario(dir: &Path, then: &Resolved, now: &Resolved) -> Result<()> {
    let value = |r: &Resolved| serde_json::to_value(r).expect("plain data");
    // As it reads back from where the other one was written to.
    let text = serde_saphyr::to_string(now).expect("plain data");
    let now: Resolved = serde_saphyr::from_str(&text).expect("what was written reads back");
    match difference("", &value(then), &value(&now)) {
        None => Ok(()),
        Some(what) => Err(Error::usage(
            format!("the folder holds a run of another scenario: {what}"),
            dir.display().to_string(),
        )
        .hint("give the scenario and the selection that it was begun with, or begin a run without --resume")),
    }
}

/// What decides how fast a trial is: trials of one run are of one program on one machine.
fn same_machine(dir: &Path, then: &Value, now: &Value) -> Result<()> {
    let parts = [
        ("/program/binary_sha256", "program"),
        ("/machine", "machine"),
        ("/gpu", "gpu"),
        ("/workers", "workers"),
    ];
    for (pointer, name) in parts {
        let of = |v: &Value| v.pointer(pointer).cloned().unwrap_or(Value::Null);
        if let Some(what) = difference(name, &of(then), &of(now)) {
            let what = format!("the run was begun by another program or on another machine: {what}");
            return Err(Error::new(Exit::NotValid, what, dir.display().to_string()).hint(
                "its trials would not be comparable: go on there, or begin a run here and bring the two together by `chronibench join`",
            ));
        }
    }
    Ok(())
}

/// Removes temporary files, and sets aside what trials left that had not ended.
fn sweep_up(dir: &Path) -> Result<()> {
    for folder in [dir.to_path_buf(), dir.join("events"), dir.join("plots")] {
        for path in entries(&folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_file() && name.starts_with(".tmp") {
                std::fs::remove_file(&path).at(&path)?;
            }
        }
    }
    for path in entries(&dir.join("work"))?.into_iter().filter(|p| p.is_dir()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let spec = std::fs::read_to_string(path.join("spec.json")).unwrap_or_default();
        let of = serde_json::from_str::<Value>(&spec).ok();
        let is_trial = of.is_some_and(|s| s["trial_id"] == Value::String(name.clone()));
        if is_trial && path.join("events.jsonl").is_file() {
            for file in entries(&path)?.iter().filter(|f| f.extension().is_some_and(|e| e == "safetensors")) {
                std::fs::remove_file(file).at(file)?;
            }
            set_aside(dir, &path, &name)?;
        } else {
            std::fs::remove_dir_all(&path).at(&path)?;
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    std::fs::read_dir(folder).at(folder)?.map(|e| Ok(e.at(folder)?.path())).collect()
}

/// Moves something to `aside/`, under a name that is free.
fn set_aside(dir: &Path, path: &Path, name: &str) -> Result<()> {
    let aside = dir.join(ASIDE);
    std::fs::create_dir_all(&aside).at(&aside)?;
    let free = (1..).map(|n| aside.join(format!("{name}.{n}"))).find(|p| !p.exists());
    let to = free.expect("numbers do not end");
    std::fs::rename(path, &to).at(&to)
}

/// Reads every stored trial. One that is whole, and not yet noted, is noted; what is not whole was never finished.
fn recover(dir: &Path, evidence: &Evidence) -> Result<Kept> {
    let mut kept = Kept::default();
    for file in event_files(dir)? {
        let (id, text) = (trial_id(&file), read_text(&file)?);
        let noted = evidence.trials.iter().find(|t| t.id == id);
        let chain = follow(&text, &evidence.genesis(&id), &id);
        match (noted, chain) {
            (Some(head), Chain::Whole(found)) if *head == found => {}
            (Some(_), _) => {
                let what = "the stored trial is not what the harness wrote".to_string();
                return Err(changed(what, file.display().to_string()));
            }
            (None, Chain::Whole(found)) if ended(&file, &text) => evidence::add(dir, found)?,
            (None, _) => {
                set_aside(dir, &file, &format!("{id}.jsonl"))?;
                continue;
            }
        }
        kept.0.insert(id, parse_lines(&file, &text)?);
    }
    match evidence.trials.iter().find(|t| !kept.0.contains_key(&t.id)) {
        None => Ok(kept),
        Some(lost) => {
            let at = dir.join(format!("events/{}.jsonl", lost.id));
            Err(changed("a stored trial is lost".into(), at.display().to_string()))
        }
    }
}

fn ended(file: &Path, text: &str) -> bool {
    parse_lines(file, text).is_ok_and(|lines| matches!(lines.last(), Some(Line::Exit(_))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_difference_is_named_with_both_values() {
        let then = json!({"a": {"b": [1, 2]}, "c": "x"});
        assert_eq!(difference("", &then, &then), None);
        let now = json!({"a": {"b": [1, 3]}, "c": "y"});
        assert_eq!(difference("", &then, &now).unwrap(), "a.b[1] was 2, and is 3");
        let more = json!({"a": {"b": [1, 2]}, "c": "x", "d": 1});
        assert_eq!(difference("", &then, &more).unwrap(), "d was null, and is 1");
    }
}
