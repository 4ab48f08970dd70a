//! `chronibench publish DIR`: a run becomes a folder under `reports/`, verified before and after, and a row of the index.

pub mod index;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;
use flate2::{Compression, GzBuilder};
use serde_json::Value;

use crate::{
    error::{AtPath, Error, Exit, Result},
    evidence::{EVIDENCE, Standing, verify},
    kernel::store::{KernelStore, is_run},
    store::{ENVIRONMENT, RESOLVED, Rendered, Store, event_files, read_text, trial_id, write_whole},
};

/// What the help shows.
pub const EXAMPLES: &str = "\
Examples:
  chronibench publish runs/20250131-101500-quickstart
  chronibench publish runs/20250131-101500-quickstart --name quickstart-epyc
  chronibench publish --index

The run is verified first; one that was changed, or is older than chains, is refused. Its folder gets
the scenario as it was resolved, the machine, the events packed, the evidence, results, report and
plots. Nothing is overwritten. --index writes the table of README.md alone.
Exit codes: 2 the name is taken, or the run is not complete; 8 the run is not what the harness wrote.";

/// Arguments of `publish`.
#[derive(Clone, Debug, Args)]
pub struct PublishArgs {
    /// Run folder.
    #[arg(required_unless_present = "index")]
    pub dir: Option<PathBuf>,
    /// Folder of published runs.
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub to: PathBuf,
    /// Name behind the date; by default the scenario's.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Publish a run that is not complete.
    #[arg(long)]
    pub partial: bool,
    /// Write the index of the published runs, and publish nothing.
    #[arg(long, conflicts_with = "dir")]
    pub index: bool,
}

/// Files of a gate or of a measurement of noise, which lie beside those of its run.
const BESIDE: [&str; 4] = ["gate-plan.json", "gate.json", "gate.md", "certificate.json"];

/// Publishes a run, or writes the index.
///
/// # Errors
/// The run is not what the harness wrote, is not complete, or its name is taken.
pub fn run(args: &PublishArgs) -> Result<Exit> {
    if let Some(dir) = &args.dir {
        let published = publish(dir, args)?;
        println!("published: {}", published.display());
    }
    let index = index::write(&args.to)?;
    println!("index: {}", index.display());
    Ok(Exit::Pass)
}

fn publish(dir: &Path, args: &PublishArgs) -> Result<PathBuf> {
    verified(dir)?;
    let (rendered, complete) = render(dir)?;
    if !complete && !args.partial {
        return Err(Error::usage("the run is not complete", dir.display().to_string()).hint(
            "finish it with `chronibench run FILE --resume DIR`, or publish what there is with --partial",
        ));
    }
    let to = args.to.join(name(dir, args.name.as_deref())?);
    if to.exists() {
        return Err(Error::usage("there is a published run of this name", to.display().to_string())
            .hint("choose another with --name NAME; what is published is not overwritten"));
    }
    std::fs::create_dir_all(&args.to).at(&args.to)?;
    // Beside its place and then moved there: a kill leaves no half of a published run.
    let beside = tempfile::Builder::new().prefix(".publish").tempdir_in(&args.to).at(&args.to)?;
    copy(dir, beside.path(), &rendered)?;
    verified(beside.path())?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(beside.path(), open).at(beside.path())?;
    std::fs::rename(beside.keep(), &to).at(&to)?;
    Ok(to)
}

fn verified(dir: &Path) -> Result<()> {
    let found = verify(dir)?;
    let at = dir.display().to_string();
    match found.standing {
        Standing::Verified => Ok(()),
        Standing::NoChain => Err(Error::new(Exit::Integrity, "the run is older than hash chains", at)
            .hint("run the scenario again: a chain made afterwards would prove nothing")),
        Standing::Broken => {
            let first = found.findings.first().map_or(String::new(), |f| format!(": {}: {}", f.at, f.what));
            Err(Error::new(Exit::Integrity, format!("the run is not what the harness wrote{first}"), at).hint(
                "`chronibench verify DIR` says all that differs; a report alone is made anew by `chronibench report DIR`",
            ))
        }
    }
}

/// Results and report, and whether every planned trial is stored.
fn render(dir: &Path) -> Result<(Rendered, bool)> {
    if is_run(dir) {
        let (summary, files) = KernelStore::open(dir)?.render()?;
        return Ok((files, !summary.trials.is_empty()));
    }
    let (summary, files) = Store::open(dir)?.render()?;
    Ok((files, summary.trials_stored >= summary.trials_planned))
}

/// `2026-11-28-quickstart`: the day on which the run began, and what it is.
fn name(dir: &Path, given: Option<&str>) -> Result<String> {
    let path = dir.join(ENVIRONMENT);
    let text = std::fs::read_to_string(&path).at(&path)?;
    let environment: Value =
        serde_json::from_str(&text).map_err(|e| crate::store::damaged(&path, &e.to_string()))?;
    let began = environment["started_at"].as_str().unwrap_or_default();
    let day = began.get(..10).ok_or_else(|| crate::store::damaged(&path, "it has no started_at"))?;
    let name = match given {
        Some(name) => name.to_string(),
        None if is_run(dir) => "kernels".into(),
        None => Store::open(dir)?.load_head()?.0.name,
    };
    let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !name.is_empty() && name.chars().all(fine) {
        true => Ok(format!("{day}-{name}")),
        false => Err(Error::usage("not a name for a folder", format!("--name {name}"))
            .hint("use letters, digits, '-', '_' and '.'")),
    }
}

fn copy(from: &Path, to: &Path, rendered: &Rendered) -> Result<()> {
    for name in [RESOLVED, ENVIRONMENT, EVIDENCE].into_iter().chain(BESIDE) {
        let path = from.join(name);
        if path.is_file() {
            write_whole(&to.join(name), &std::fs::read(&path).at(&path)?)?;
        }
    }
    for file in event_files(from)? {
        let packed = pack(&read_text(&file)?).at(&file)?;
        write_whole(&to.join(format!("events/{}.jsonl.gz", trial_id(&file))), &packed)?;
    }
    rendered.iter().try_for_each(|(name, bytes)| write_whole(&to.join(name), bytes))
}

/// As `gzip -9n` does: no name and no time, so that the same events are the same bytes.
fn pack(text: &str) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()
}
