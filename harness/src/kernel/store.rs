//! The run folder of kernels: that of a scenario, with other lines in it.

use std::path::{Path, PathBuf};

use chronibench_analysis::{
    html::plain_html,
    kernels::{KernelLog, KernelSummary, report_md, results_csv, summarise},
};
use chronibench_protocol::{
    Record,
    kernels::{ResolvedKernels, SCHEMA},
};
use serde_json::Value;

use crate::{
    error::{AtPath, Error, Result},
    evidence,
    store::{
        ENVIRONMENT, PAGE, RESOLVED, Rendered, add_trial, damaged, make_folder, pretty, read_trials,
        write_whole,
    },
};

/// A run folder.
pub struct KernelStore {
    dir: PathBuf,
}

/// Whether a folder holds a run of kernels.
pub fn is_run(dir: &Path) -> bool {
    std::fs::read_to_string(dir.join(RESOLVED)).is_ok_and(|text| {
        text.lines().any(|l| l.starts_with("schema:") && l.contains("chronibench.kernels/"))
    })
}

impl KernelStore {
    /// Makes a new run folder and its record of what is to run.
    ///
    /// # Errors
    /// The folder holds a run already, or cannot be written.
    pub fn create(dir: &Path, resolved: &ResolvedKernels, environment: &Value) -> Result<Self> {
        let dir = make_folder(dir, &["events", "work"])?;
        let yaml = serde_saphyr::to_string(resolved).expect("plain data");
        evidence::begin(&dir, yaml.as_bytes(), &pretty(environment))?;
        Ok(Self { dir })
    }

    /// Opens the folder of an earlier run.
    ///
    /// # Errors
    /// It is none.
    pub fn open(dir: &Path) -> Result<Self> {
        if !is_run(dir) {
            return Err(Error::environment("not a run of kernels", dir.display().to_string())
                .hint("give a folder that `chronibench kernel` has made"));
        }
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.dir
    }

    /// Where a trial keeps its files while it runs.
    pub fn work(&self, trial_id: &str) -> PathBuf {
        self.dir.join("work").join(trial_id)
    }

    /// An empty record of a trial.
    ///
    /// # Errors
    /// The folder's evidence cannot be read.
    pub fn record(&self, trial_id: &str) -> Result<Record> {
        evidence::record(&self.dir, trial_id)
    }

    /// Adds a trial.
    pub fn add(&self, record: &Record) -> Result<()> {
        add_trial(&self.dir, record)
    }

    /// Renders results and report from what is stored and writes them.
    ///
    /// # Errors
    /// A file is missing or damaged; it is named, with the line.
    pub fn publish(&self) -> Result<KernelSummary> {
        let (summary, files) = self.render()?;
        files.iter().try_for_each(|(name, bytes)| write_whole(&self.dir.join(name), bytes))?;
        Ok(summary)
    }

    /// Results and report by file name: the same bytes whenever and wherever it is done.
    ///
    /// # Errors
    /// A file is missing or damaged; it is named, with the line.
    pub fn render(&self) -> Result<(KernelSummary, Rendered)> {
        let read = |name: &str| {
            let path = self.dir.join(name);
            std::fs::read_to_string(&path).at(&path).map(|text| (path, text))
        };
        let (path, text) = read(RESOLVED)?;
        let resolved: ResolvedKernels =
            serde_saphyr::from_str(&text).map_err(|e| damaged(&path, &e.without_snippet().to_string()))?;
        if resolved.schema != SCHEMA {
            return Err(damaged(&path, &format!("{} is not {SCHEMA}", resolved.schema)));
        }
        let (path, text) = read(ENVIRONMENT)?;
        let environment: Value = serde_json::from_str(&text).map_err(|e| damaged(&path, &e.to_string()))?;
        let mut logs: Vec<KernelLog> =
            read_trials(&self.dir)?.into_iter().map(KernelLog::from_lines).collect();
        logs.sort_by_key(|l| l.header.as_ref().map_or(u32::MAX, |h| h.position));
        let mut summary = summarise(&resolved, &logs);
        summary.evidence = evidence::read(&self.dir)?;
        let report = report_md(&resolved, &summary, &environment);
        let files = vec![
            ("results.json".into(), pretty(&serde_json::to_value(&summary).expect("plain data"))),
            ("results.csv".into(), results_csv(&summary).into_bytes()),
            (PAGE.into(), plain_html(&report).into_bytes()),
            ("report.md".into(), report.into_bytes()),
        ];
        Ok((summary, files))
    }

    /// Removes what only a running run needs.
    pub fn clean(&self) -> Result<()> {
        let work = self.dir.join("work");
        std::fs::remove_dir_all(&work).at(&work)
    }
}
