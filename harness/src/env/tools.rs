//! Programs that environments are made with, and the Python program that this one carries for them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Environment, Rival};
use crate::{
    error::{AtPath, Error, Result},
    kernel::references::on_path,
};

const PROGRAM: &str = include_str!("../../../baselines/common/environment.py");

/// A folder with the program and a rival's lock in it.
pub struct Tools {
    folder: tempfile::TempDir,
}

impl Tools {
    /// Writes the program.
    ///
    /// # Errors
    /// The system's temporary folder cannot be written.
    pub fn new(rival: &Rival) -> Result<Self> {
        let folder = tempfile::tempdir().at(&std::env::temp_dir())?;
        for (name, text) in [("environment.py", PROGRAM), ("requirements.txt", rival.requirements)] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).at(&path)?;
        }
        Ok(Self { folder })
    }

    /// The lock.
    pub fn lock(&self) -> String {
        self.folder.path().join("requirements.txt").display().to_string()
    }

    /// Runs the program by the Python of an environment; its standard output.
    ///
    /// # Errors
    /// It fails; what it had to say is on standard error already.
    pub fn run(&self, environment: &Environment, args: &[&str]) -> Result<String> {
        let program = self.folder.path().join("environment.py").display().to_string();
        let mut command = Command::new(&environment.python);
        command.arg(program).args(args).envs(environment.variables(None));
        finish(&mut command, &environment.python)
    }
}

/// Runs a program to its end; its standard output.
///
/// # Errors
/// It cannot be started, or fails.
pub fn finish(command: &mut Command, program: &Path) -> Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().at(program)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::environment(format!("it ended with {}", output.status), program.display().to_string())
        .hint("its own words are above"))
}

/// The Python that was named, or one of the PATH that locks are made for, or any.
///
/// # Errors
/// There is none.
pub fn python(named: Option<&Path>) -> Result<PathBuf> {
    match named {
        Some(path) => on_path(&path.display().to_string())
            .ok_or_else(|| Error::usage("no such program", path.display().to_string()).hint("name a Python")),
        // A version manager puts programs on the PATH that do nothing but say which versions it has.
        None => {
            ["python3.12", "python3"].into_iter().filter_map(on_path).find(|p| runs(p)).ok_or_else(|| {
                Error::environment("no python3 on the PATH that runs", "PATH")
                    .hint("install Python 3.12, or name one with --python")
            })
        }
    }
}

fn runs(python: &Path) -> bool {
    Command::new(python).arg("--version").output().is_ok_and(|o| o.status.success())
}
