//! The run folder. Every file is written beside its place and then moved there, so that a reader, or a kill, never
//! meets half a file.

use std::{
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use chronibench_analysis::{RunSummary, TrialLog, html, report, summarise, summary};
use chronibench_protocol::{
    Record,
    record::{Line, Resolved},
};
use serde_json::Value;

use crate::{
    error::{AtPath, Error, Result},
    evidence,
};

/// A run folder.
pub struct Store {
    dir: PathBuf,
}

/// What a report is made of.
pub struct Stored {
    /// The scenario as it was resolved.
    pub resolved: Resolved,
    /// The machine.
    pub environment: Value,
    /// All trials, in the order in which they ran.
    pub logs: Vec<TrialLog>,
}

/// Files of a report by name.
pub type Rendered = Vec<(String, Vec<u8>)>;

pub(crate) const RESOLVED: &str = "resolved.yaml";
pub(crate) const ENVIRONMENT: &str = "environment.json";
/// The report as one page: it says what `report.md` says, and a folder may be without it.
pub(crate) const PAGE: &str = "report.html";

impl Store {
    /// Makes a new run folder and its record of what is to run.
    ///
    /// # Errors
    /// The folder holds a run already, or cannot be written.
    pub fn create(dir: &Path, resolved: &Resolved, environment: &Value) -> Result<Self> {
        let store = Self { dir: make_folder(dir, &["events", "inputs", "work"])? };
        let yaml = serde_saphyr::to_string(resolved).expect("plain data");
        evidence::begin(&store.dir, yaml.as_bytes(), &pretty(environment))?;
        Ok(store)
    }

    /// What is stored so far, judged and measured, with nothing rendered.
    pub fn summary(&self) -> Result<RunSummary> {
        let Stored { resolved, logs, .. } = self.load()?;
        Ok(summarise(&resolved, &logs))
    }

    /// Opens the folder of an earlier run.
    ///
    /// # Errors
    /// It is none.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.join(RESOLVED).is_file() {
            return Err(Error::environment(
                "not a run folder: it has no resolved.yaml",
                dir.display().to_string(),
            )
            .hint("give a folder that `chronibench run` has made"));
        }
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.dir
    }

    /// A place in the folder.
    pub fn path(&self, sub: &str) -> PathBuf {
        self.dir.join(sub)
    }

    /// Adds a trial.
    pub fn add(&self, record: &Record) -> Result<()> {
        add_trial(&self.dir, record)
    }

    /// What a run began with: scenario and machine.
    ///
    /// # Errors
    /// A file is missing or damaged; it is named.
    pub fn load_head(&self) -> Result<(Resolved, Value)> {
        let path = self.path(RESOLVED);
        let text = std::fs::read_to_string(&path).at(&path)?;
        let mut resolved: Resolved =
            serde_saphyr::from_str(&text).map_err(|e| damaged(&path, &e.without_snippet().to_string()))?;
        if resolved.order.is_empty() || evidence::is_older_gate(&self.dir) {
            // Gates audit nothing, and did not always say so.
            resolved.audit = None;
        }
        let path = self.path(ENVIRONMENT);
        let text = std::fs::read_to_string(&path).at(&path)?;
        Ok((resolved, serde_json::from_str(&text).map_err(|e| damaged(&path, &e.to_string()))?))
    }

    /// Reads everything back.
    ///
    /// # Errors
    /// A file is missing or damaged; it is named, with the line.
    pub fn load(&self) -> Result<Stored> {
        let (mut resolved, environment) = self.load_head()?;
        let mut logs: Vec<TrialLog> = read_trials(&self.dir)?.into_iter().map(TrialLog::from_lines).collect();
        logs.sort_by_key(|l| l.header.as_ref().map_or(u32::MAX, |h| h.position));
        if resolved.order.is_empty() {
            // A gate decides on the way what runs next.
            resolved.order = logs.iter().filter_map(|l| Some(l.header.as_ref()?.case.clone())).collect();
        }
        Ok(Stored { resolved, environment, logs })
    }

    /// Renders results and report from what is stored and writes them.
    pub fn publish(&self) -> Result<RunSummary> {
        let (summary, files) = self.render()?;
        files.iter().try_for_each(|(name, bytes)| write_whole(&self.path(name), bytes))?;
        Ok(summary)
    }

    /// Results and report by file name: the same bytes whenever and wherever it is done.
    ///
    /// # Errors
    /// A file is missing or damaged; it is named, with the line.
    pub fn render(&self) -> Result<(RunSummary, Rendered)> {
        let Stored { resolved, environment, logs } = self.load()?;
        let mut summary = summarise(&resolved, &logs);
        summary.evidence = evidence::read(&self.dir)?;
        let mut files: Rendered = vec![
            ("results.json".into(), pretty(&serde_json::to_value(&summary).expect("plain data"))),
            ("results.csv".into(), summary::results_csv(&summary).into_bytes()),
        ];
        let plots = report::plots(&resolved, &summary, &logs);
        let text = report::report_md(&resolved, &summary, &environment);
        let page = html::report_html(&resolved, &summary, &logs, &text, &plots);
        files.extend(plots.into_iter().map(|(name, svg)| (format!("plots/{name}"), svg.into_bytes())));
        files.push(("report.md".into(), text.into_bytes()));
        files.push((PAGE.into(), page.into_bytes()));
        Ok((summary, files))
    }

    /// Removes what only a running run needs.
    pub fn clean(&self) -> Result<()> {
        let work = self.path("work");
        std::fs::remove_dir_all(&work).at(&work)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_whole(&self.path(name), bytes)
    }

    /// Writes a file that does not follow from the trials; the evidence has its hash from then on.
    pub(crate) fn seal(&self, name: &str, bytes: &[u8]) -> Result<()> {
        evidence::seal(&self.dir, name, bytes)
    }
}

/// Makes the folder of a new run and those below it; its absolute path, because children run elsewhere.
pub(crate) fn make_folder(dir: &Path, below: &[&str]) -> Result<PathBuf> {
    for sub in below {
        let path = dir.join(sub);
        std::fs::create_dir_all(&path).map_err(|e| {
            Error::environment(format!("the run folder cannot be made: {e}"), path.display().to_string())
                .hint("choose a writable place with --out DIR")
        })?;
    }
    let whole = dir.canonicalize().at(dir)?;
    if whole.join(RESOLVED).exists() {
        return Err(Error::usage("the folder holds a run already", dir.display().to_string())
            .hint("choose another with --out DIR, or look at this one with `chronibench report DIR`"));
    }
    Ok(whole)
}

/// Writes a file beside its place and moves it there, making its folder where there is none.
///
/// # Errors
/// The place cannot be written; what was there stays.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).at(folder)?;
    // Temporary files are private; a report is for everybody whom the umask lets in.
    let open = std::fs::Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().permissions(open).tempfile_in(folder).at(folder)?;
    file.write_all(bytes).at(path)?;
    file.persist(path).map_err(|e| Error::io(path, &e.error))?;
    Ok(())
}

pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data");
    bytes.push(b'\n');
    bytes
}

/// Events of a published run are compressed, by `gzip`.
fn is_compressed(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".jsonl.gz")
}

/// Adds a trial to a run folder, and the end of its chain to the evidence.
pub(crate) fn add_trial(dir: &Path, record: &Record) -> Result<()> {
    let head = record.head();
    write_whole(&dir.join(format!("events/{}.jsonl", head.id)), record.text().as_bytes())?;
    evidence::add(dir, head)
}

/// The lines of every trial of a run folder, in the order of their files' names.
///
/// # Errors
/// A file is damaged; it is named, with the line.
pub(crate) fn read_trials(dir: &Path) -> Result<Vec<Vec<Line>>> {
    event_files(dir)?.iter().map(|f| parse_lines(f, &read_text(f)?)).collect()
}

/// The event files of a run folder, in the order of their names.
pub(crate) fn event_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let events = dir.join("events");
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&events).at(&events)? {
        files.push(entry.at(&events)?.path());
    }
    files.retain(|f| f.to_string_lossy().ends_with(".jsonl") || is_compressed(f));
    files.sort();
    Ok(files)
}

/// The trial that an event file is of.
pub(crate) fn trial_id(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.trim_end_matches(".gz").trim_end_matches(".jsonl").to_string()
}

/// The text of an event file, unpacked.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    let mut file = std::fs::File::open(path).at(path)?;
    let read = match is_compressed(path) {
        true => flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text),
        false => file.read_to_string(&mut text),
    };
    read.at(path)?;
    Ok(text)
}

/// The lines of an event file's text.
pub(crate) fn parse_lines(path: &Path, text: &str) -> Result<Vec<Line>> {
    let parse = |(i, line): (usize, &str)| {
        serde_json::from_str::<Line>(line).map_err(|e| {
            let at = format!("{}:{}", path.display(), i + 1);
            Error::environment(format!("not a stored line: {e}"), at).hint(
                "the file was changed after the run; restore it, or remove it to report without this trial",
            )
        })
    };
    text.lines().enumerate().map(parse).collect()
}

pub(crate) fn damaged(path: &Path, what: &str) -> Error {
    Error::environment(what.to_string(), path.display().to_string())
        .hint("the file was changed after the run; restore it")
}
