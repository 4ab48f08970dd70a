//! Rivals and their environments: which Python runs an adapter, with which packages.
//!
//! An environment is a folder of the user's cache, named after the rival and its lock's hash. Its `environment.json`, written
//! last, says which Python runs it and which folders go on that one's paths.

pub mod commands;
pub mod rival;
pub mod tools;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use chronibench_protocol::record::{Resolved, RivalRecord, Skipped};
use serde::{Deserialize, Serialize};

pub use rival::{RIVALS, Rival};

use crate::{
    error::{AtPath, Error, Result},
    kernel::references::on_path,
};

const RECORD: &str = "environment.json";

/// An environment that is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// The Python.
    pub python: PathBuf,
    /// Folder of packages in front of that Python's own, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<PathBuf>,
    /// Folder of shared libraries that its packages need, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libraries: Option<PathBuf>,
    /// How it was made: `venv`, `bundle` or `reuse`.
    pub made: String,
}

impl Environment {
    /// Looks for a rival's environment.
    ///
    /// # Errors
    /// There is none: what to tell the user, with the command that makes one.
    pub fn find(rival: &Rival) -> Result<Self, Skipped> {
        let skipped = |why: String| Skipped {
            what: rival.name.into(),
            why,
            hint: format!("chronibench env sync {}", rival.name),
        };
        if !rival.has_packages() {
            let python = on_path("python3").ok_or_else(|| Skipped {
                hint: "install Python 3.10 or newer".into(),
                ..skipped("no python3 on the PATH".into())
            })?;
            return Ok(Self { python, site: None, libraries: None, made: "path".into() });
        }
        let dir = folder(rival).map_err(|e| skipped(e.what))?;
        let text = std::fs::read(dir.join(RECORD)).map_err(|_| skipped("it is not installed".into()))?;
        let found: Self = serde_json::from_slice(&text)
            .map_err(|e| skipped(format!("{} is damaged: {e}", dir.join(RECORD).display())))?;
        if !found.python.is_file() {
            return Err(skipped(format!("its Python is gone: {}", found.python.display())));
        }
        Ok(found)
    }

    /// Variables that its programs find.
    pub fn variables(&self, threads: Option<usize>) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = [
            ("HF_HUB_OFFLINE", "1"),
            ("TRANSFORMERS_OFFLINE", "1"),
            ("TOKENIZERS_PARALLELISM", "false"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
            ("PYTHONNOUSERSITE", "1"),
        ]
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .to_vec();
        let path = |p: &Path| p.display().to_string();
        all.extend(self.site.as_deref().map(|p| ("PYTHONPATH".into(), path(p))));
        all.extend(self.libraries.as_deref().map(|p| ("LD_LIBRARY_PATH".into(), path(p))));
        all.extend(threads.map(|n| ("OMP_NUM_THREADS".into(), n.to_string())));
        all
    }

    /// What a trial's record says of it.
    pub fn record(&self, rival: &Rival) -> RivalRecord {
        RivalRecord {
            adapter_sha256: rival.adapter_sha256(),
            lock_sha256: rival.lock_sha256(),
            environment: self.made.clone(),
        }
    }
}

/// The environment of every rival that a case names. Cases of a rival without one are left out, and recorded so.
///
/// # Errors
/// No case is left.
pub fn for_cases(resolved: &mut Resolved) -> Result<BTreeMap<String, Environment>> {
    let mut found = BTreeMap::new();
    let mut missing: BTreeMap<String, Skipped> = BTreeMap::new();
    for rival in resolved.cases.iter().filter_map(|c| Rival::named(&c.runner)) {
        match Environment::find(rival) {
            Ok(environment) => _ = found.insert(rival.name.to_string(), environment),
            Err(skipped) => _ = missing.insert(rival.name.to_string(), skipped),
        }
    }
    let (left_out, kept): (Vec<_>, Vec<_>) =
        resolved.cases.drain(..).partition(|c| missing.contains_key(&c.runner));
    resolved.cases = kept;
    for case in left_out {
        resolved.order.retain(|id| *id != case.id);
        resolved.comparisons.retain(|c| c.case != case.id && c.against != case.id);
        let why = &missing[&case.runner];
        let why =
            Skipped { what: case.id, why: format!("{}: {}", why.what, why.why), hint: why.hint.clone() };
        resolved.skipped.push(why);
        // The place of a sweep goes with its last cell.
        let Some(sweep) = case.sweep.map(|s| s.of) else { continue };
        if !resolved.cases.iter().any(|c| c.sweep.as_ref().is_some_and(|s| s.of == sweep)) {
            resolved.order.retain(|id| *id != sweep);
            resolved.comparisons.retain(|c| c.case != sweep && c.against != sweep);
        }
    }
    match missing.into_values().next().filter(|_| resolved.cases.is_empty()) {
        Some(first) => Err(Error::environment(
            "no case can run: none of the rivals that it compares is installed",
            format!("{}: {}", first.what, first.why),
        )
        .hint(first.hint)),
        None => Ok(found),
    }
}

impl Rival {
    /// It needs more than Python itself.
    pub fn has_packages(&self) -> bool {
        self.requirements.lines().any(|l| !l.trim().is_empty() && !l.starts_with('#'))
    }
}

/// The folder of a rival's environment, whether it exists or not.
///
/// # Errors
/// The machine has no place for caches.
pub fn folder(rival: &Rival) -> Result<PathBuf> {
    Ok(cache()?.join("envs").join(format!("{}-{}", rival.name, &rival.lock_sha256()[..12])))
}

/// `$CHRONICALS_CACHE`, else `$XDG_CACHE_HOME/chronicals`, else `~/.cache/chronicals`.
fn cache() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("CHRONICALS_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("chronicals")))
        .or_else(|| Some(variable("HOME")?.join(".cache/chronicals")))
        .map(|dir| std::path::absolute(&dir).at(&dir))
        .unwrap_or_else(|| {
            Err(Error::environment("no place for environments", "CHRONICALS_CACHE, XDG_CACHE_HOME, HOME")
                .hint("set CHRONICALS_CACHE to a folder"))
        })
}
