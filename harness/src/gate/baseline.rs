//! What a gate compares with: a saved program, any program, a revision, or an earlier run.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use chronibench_analysis::gate::Program;
use chronibench_protocol::digest::sha256_hex;
use serde_json::{Value, json};

use super::revision;
use crate::{
    environment,
    error::{AtPath, Error, Result},
    runner::child::this_program,
    store::{self, write_whole},
};

/// Where saved baselines lie.
const SAVED: &str = "runs/baselines";

/// The other side of a gate.
#[derive(Clone, Debug)]
pub enum Baseline {
    /// A program that takes turns with the candidate.
    Program(Side),
    /// Figures of another session.
    Run(PathBuf),
}

/// A program with its name.
#[derive(Clone, Debug)]
pub struct Side {
    /// For the report.
    pub about: Program,
    /// The program; absolute.
    pub path: PathBuf,
}

impl Baseline {
    /// The name is that of a run folder.
    pub fn is_run(name: &str) -> bool {
        Path::new(name).join(store::RESOLVED).is_file()
    }

    /// Finds what the user named: a run folder, a program, a saved baseline, or a revision, which is built.
    ///
    /// # Errors
    /// It is none of these, or the revision does not build.
    pub fn find(name: &str) -> Result<Self> {
        let path = Path::new(name);
        if Self::is_run(name) {
            return Ok(Self::Run(path.to_path_buf()));
        }
        if path.is_file() {
            return Ok(Self::Program(Side::program(path)?));
        }
        if is_name(name) && saved(name).is_dir() {
            return load(name).map(Self::Program);
        }
        match revision::resolve(name) {
            Some(revision) => {
                let path = revision::build(&revision)?;
                let about =
                    Program { name: name.into(), sha256: Some(hash(&path)?), revision: Some(revision) };
                Ok(Self::Program(Side { about, path }))
            }
            None => Err(Error::usage(
                "no run folder, program, saved baseline or revision",
                format!("--baseline {name}"),
            )
            .hint(
                "save one with `chronibench run FILE --save-baseline NAME`, or name a revision, e.g. HEAD~1",
            )),
        }
    }
}

impl Side {
    /// A program by its path.
    ///
    /// # Errors
    /// It is not there, or is no program: better said here than by every trial.
    pub fn program(path: &Path) -> Result<Self> {
        let whole = path.canonicalize().at(path)?;
        let about = whole.metadata().at(path)?;
        if !about.is_file() || about.permissions().mode() & 0o111 == 0 {
            return Err(Error::environment("not a program that may be executed", path.display().to_string())
                .hint(format!("name a `chronibench` program, or `chmod +x {}`", path.display())));
        }
        let about = Program { name: path.display().to_string(), sha256: Some(hash(&whole)?), revision: None };
        Ok(Self { about, path: whole })
    }

    /// The program that is running.
    pub fn this() -> Result<Self> {
        let path = this_program()?;
        let about =
            Program { name: "this program".into(), sha256: Some(hash(&path)?), revision: this_revision() };
        Ok(Self { about, path })
    }
}

/// Revision of this program's sources, marked when they were changed since.
fn this_revision() -> Option<String> {
    let program = environment::program().ok()?;
    let git = program.get("git")?;
    let dirty = git.get("dirty").and_then(Value::as_bool).unwrap_or(false);
    Some(format!("{}{}", git.get("revision")?.as_str()?, if dirty { "-dirty" } else { "" }))
}

fn hash(path: &Path) -> Result<String> {
    Ok(sha256_hex(&std::fs::read(path).at(path)?))
}

fn saved(name: &str) -> PathBuf {
    Path::new(SAVED).join(name)
}

fn is_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "-._+".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(fine)
}

/// A saved baseline has this name.
pub fn is_saved(name: &str) -> bool {
    is_name(name) && saved(name).is_dir()
}

/// Checks a name for a baseline before anything runs.
///
/// # Errors
/// It cannot be the name of a folder.
pub fn check_name(name: &str) -> Result<()> {
    match is_name(name) {
        true => Ok(()),
        false => Err(Error::usage("not a name for a baseline", format!("--save-baseline {name}"))
            .hint("use letters, digits, '-', '_', '.' and '+'")),
    }
}

/// Keeps a program under a name, in place of what was there.
///
/// # Errors
/// The folder cannot be written.
pub fn save(name: &str, side: &Side) -> Result<PathBuf> {
    let dir = saved(name);
    let program = dir.join("chronibench");
    let bytes = std::fs::read(&side.path).at(&side.path)?;
    write_whole(&program, &bytes)?;
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&program, executable).at(&program)?;
    let about = json!({
        "sha256": sha256_hex(&bytes),
        "revision": side.about.revision,
        "saved_at": jiff::Timestamp::now().to_string(),
    });
    write_whole(&dir.join("baseline.json"), &store::pretty(&about))?;
    Ok(dir)
}

fn load(name: &str) -> Result<Side> {
    let dir = saved(name);
    let path = dir.join("baseline.json");
    let text = std::fs::read_to_string(&path).at(&path)?;
    let about: Value = serde_json::from_str(&text).map_err(|e| store::damaged(&path, &e.to_string()))?;
    let mut side = Side::program(&dir.join("chronibench"))?;
    let word = |key: &str| about.get(key).and_then(Value::as_str).map(str::to_string);
    if word("sha256") != side.about.sha256 {
        return Err(store::damaged(&side.path, "the saved program is not the one that was saved"));
    }
    side.about = Program { name: name.into(), revision: word("revision"), ..side.about };
    Ok(side)
}
