//! The index of published runs: a table in their folder's `README.md`, between two marks. What stands around it is anybody's.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{
    error::{AtPath, Error, Result},
    store::{ENVIRONMENT, RESOLVED, damaged, write_whole},
};

/// Before the table.
pub const BEGIN: &str = "<!-- published runs: written by `chronibench publish --index` -->";
/// After the table.
pub const END: &str = "<!-- end of published runs -->";

const NEW: &str = "# Published runs\n\nEvery folder is a run as `chronibench run` leaves it, with its events packed. `chronibench verify DIR` checks \
                   it, and `chronibench report DIR` makes its report again.\n";

/// Writes the index of a folder of published runs.
///
/// # Errors
/// A run's report or machine cannot be read, or `README.md` has no marks.
pub fn write(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("README.md");
    write_whole(&path, text(dir)?.as_bytes())?;
    Ok(path)
}

/// `README.md` as it should be.
///
/// # Errors
/// As [`write()`].
pub fn text(dir: &Path) -> Result<String> {
    let path = dir.join("README.md");
    let known = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => format!("{NEW}\n{BEGIN}\n{END}\n"),
        other => other.at(&path)?,
    };
    let marks = known.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = marks.ok_or_else(|| {
        Error::usage("there is no place for the table", path.display().to_string())
            .hint(format!("put these two lines where it is to stand:\n         {BEGIN}\n         {END}"))
    })?;
    Ok(format!("{head}{BEGIN}\n{}{END}{tail}", table(dir)?))
}

/// One row a run, the latest first.
fn table(dir: &Path) -> Result<String> {
    let mut names: Vec<String> = Vec::new();
    if dir.is_dir() {
        for entry in std::fs::read_dir(dir).at(dir)? {
            let entry = entry.at(dir)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') && entry.path().join(RESOLVED).is_file() {
                names.push(name);
            }
        }
    }
    names.sort();
    names.reverse();
    let rows: Result<Vec<String>> = names.iter().map(|n| row(dir, n)).collect();
    Ok(format!("| run | date | device | outcome |\n|---|---|---|---|\n{}", rows?.concat()))
}

fn row(dir: &Path, name: &str) -> Result<String> {
    let path = dir.join(name).join("report.md");
    let report = std::fs::read_to_string(&path).at(&path)?;
    let mut lines = report.lines().filter(|l| !l.is_empty());
    let title = lines.next().and_then(|l| l.strip_prefix("# "));
    let outcome = lines.next().filter(|l| l.starts_with("**"));
    let (title, outcome) =
        title.zip(outcome).ok_or_else(|| damaged(&path, "it does not begin with a title and a verdict"))?;
    let path = dir.join(name).join(ENVIRONMENT);
    let text = std::fs::read_to_string(&path).at(&path)?;
    let environment: Value = serde_json::from_str(&text).map_err(|e| damaged(&path, &e.to_string()))?;
    let day = environment["started_at"].as_str().and_then(|t| t.get(..10)).unwrap_or("–");
    Ok(format!("| [{name}]({name}/report.md): {title} | {day} | {} | {outcome} |\n", device(&environment)))
}

/// The GPU, or else the processor.
fn device(environment: &Value) -> String {
    let gpu = environment.pointer("/gpu/devices/0/name").and_then(Value::as_str);
    let plain = |text: &str| text.replace('|', " ").split_whitespace().collect::<Vec<_>>().join(" ");
    match gpu {
        Some(name) => plain(name),
        None => {
            let cpu = environment.pointer("/machine/cpu").and_then(Value::as_str).unwrap_or("a processor");
            let cores = environment.pointer("/machine/usable_cores").and_then(Value::as_u64).unwrap_or(0);
            format!("{}, {cores} cores", plain(cpu))
        }
    }
}
