//! The program of another revision of the repository, built in folders of its own.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::{AtPath, Error, Result},
    interrupt, lock,
    runner::child::{self, Worker},
};

/// Where revisions are built; the compiler's output is shared between them.
const BUILDS: &str = "runs/builds";

/// The commit that a name stands for in the repository around the current folder.
pub fn resolve(name: &str) -> Option<String> {
    git(&["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{name}^{{commit}}")]).ok()
}

fn git(args: &[&str]) -> Result<String> {
    let output = Command::new("git").args(args).output().at(Path::new("git"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_string()),
        false => Err(Error::environment(
            String::from_utf8_lossy(&output.stderr).trim().to_string(),
            format!("git {}", args.join(" ")),
        )
        .hint("check the repository")),
    }
}

/// The program of a commit; built when it is not there yet, by one gate at a time.
///
/// # Errors
/// Git or cargo fails.
pub fn build(revision: &str) -> Result<PathBuf> {
    let builds = Path::new(BUILDS);
    std::fs::create_dir_all(builds).at(builds)?;
    let builds = builds.canonicalize().at(builds)?;
    let program = builds.join(revision);
    if program.is_file() {
        return Ok(program);
    }
    // Checkouts, and above all the compiler's output, are shared by all revisions: what lies there must be ours until it is copied.
    let target = builds.join("target");
    let _alone = lock::alone(&target)?;
    if program.is_file() {
        return Ok(program);
    }
    let sources = builds.join(format!("{revision}-sources"));
    forget(&sources);
    let at = sources.display().to_string();
    git(&["worktree", "add", "--force", "--detach", &at, revision])?;
    eprintln!("building {revision} (cargo's output: {}/stderr.log)", sources.display());
    let built = cargo(&sources, &target);
    if let Ok(from) = &built {
        let partial = builds.join(format!("{revision}.partial"));
        std::fs::copy(from, &partial).at(from)?;
        std::fs::rename(&partial, &program).at(&program)?;
        forget(&sources);
    }
    built.map(|_| program)
}

/// Takes a checkout away; what is not there is as good.
fn forget(sources: &Path) {
    let _ = git(&["worktree", "remove", "--force", &sources.display().to_string()]);
    let _ = std::fs::remove_dir_all(sources);
    let _ = git(&["worktree", "prune"]);
}

fn cargo(sources: &Path, target: &Path) -> Result<PathBuf> {
    interrupt::install();
    let cargo = std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
    let args = ["build", "--release", "--locked", "-p", "chronibench", "--target-dir"].map(String::from);
    let args: Vec<String> = args.into_iter().chain([target.display().to_string()]).collect();
    let status = child::wait(&mut Worker::spawn_program(&cargo, &args, sources, None)?)?;
    match status.success() {
        true => Ok(target.join("release/chronibench")),
        false => Err(Error::environment(
            format!("the revision does not build:\n{}", child::stderr_tail(sources)),
            sources.display().to_string(),
        )
        .hint("name a revision that builds, or a program")),
    }
}
