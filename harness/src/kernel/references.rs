//! Other implementations: a Python program that this one carries with it.

use std::path::{Path, PathBuf};

use chronibench_protocol::{kernels::KernelCase, record::Skipped};

use crate::error::{AtPath, Error, Result};

/// The program, `baselines/kernels`.
const PROGRAM: [(&str, &str); 5] = [
    ("references.py", include_str!("../../../baselines/kernels/references.py")),
    ("measure.py", include_str!("../../../baselines/kernels/measure.py")),
    ("pointwise.py", include_str!("../../../baselines/kernels/pointwise.py")),
    ("loss.py", include_str!("../../../baselines/kernels/loss.py")),
    ("attention.py", include_str!("../../../baselines/kernels/attention.py")),
];

/// How references are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum References {
    /// They run by this Python.
    Python(PathBuf),
    /// They do not run.
    None(Option<Skipped>),
}

impl References {
    /// `auto`, `none` or a Python.
    ///
    /// # Errors
    /// The Python that was named does not exist.
    pub fn find(word: &str) -> Result<Self> {
        match word {
            "none" => Ok(References::None(None)),
            "auto" => Ok(on_path("python3").map_or_else(
                || {
                    References::None(Some(Skipped {
                        what: "references".into(),
                        why: "no python3 on the PATH".into(),
                        hint: "name a Python that has torch and transformers with --references PYTHON".into(),
                    }))
                },
                References::Python,
            )),
            path => match on_path(path) {
                Some(python) => Ok(References::Python(python)),
                None => Err(Error::usage("no such program", path)
                    .hint("give a Python that has torch and transformers, `auto` or `none`")),
            },
        }
    }
}

/// A program by its path, or by its name on the PATH; absolute, because children run elsewhere.
pub fn on_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        // Not resolved further: a virtual environment's Python is a link that must stay one.
        return std::path::absolute(name).ok().filter(|p| p.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// Writes the program into a folder; the path of its first file.
///
/// # Errors
/// The folder cannot be written.
pub fn write_program(dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).at(dir)?;
    for (name, text) in PROGRAM {
        let path = dir.join(name);
        std::fs::write(&path, text).at(&path)?;
    }
    Ok(dir.join(PROGRAM[0].0))
}

/// What references are asked: each operation and shape once, whatever our chunks, and nothing that is ours alone.
pub fn cases(ours: &[KernelCase]) -> Vec<KernelCase> {
    let mut all: Vec<KernelCase> = Vec::new();
    for case in ours.iter().filter(|c| c.op != "linear_ce_rows" && c.op != "linear_ce_products") {
        let mut case = case.clone();
        if case.dims.remove("chunk").is_some() {
            case.case = case.case.split(" by ").next().unwrap_or_default().into();
        }
        if !all.contains(&case) {
            all.push(case);
        }
    }
    all
}
