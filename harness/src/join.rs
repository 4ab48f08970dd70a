//! `chronibench join`: several runs joined through an arm that ran in each.

use std::path::{Component, Path, PathBuf};

use chronibench_analysis::{
    join::{Joined, SCHEMA, Sitting, join, report_md},
    summarise, times,
};

use crate::{
    cli::JoinArgs,
    error::{AtPath, Error, Exit, Result},
    store::{RESOLVED, Rendered, Store, Stored, damaged, pretty, write_whole},
};

/// File of a folder that holds a join.
const JOINED: &str = "joined.json";

/// Reads the runs, joins them, and writes `joined.json` and `report.md`.
pub fn run(args: &JoinArgs) -> Result<Exit> {
    let named = |dir: &PathBuf| {
        let name = dir.canonicalize().ok().and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()));
        (name.unwrap_or_else(|| dir.display().to_string()), dir.clone())
    };
    let sittings: Vec<_> = args.dirs.iter().map(named).collect();
    publish(&joined(&args.anchor, &sittings, &args.declare)?, &args.out)
}

/// Joins the sittings of a stored join anew, and writes it in place of what was there.
///
/// # Errors
/// A sitting is not beside the join, or they cannot be joined any more.
pub fn report(dir: &Path) -> Result<Exit> {
    let stored = stored(dir)?;
    let (there, missing) = sittings(dir, &stored);
    if !missing.is_empty() {
        let what = format!("its sittings are not beside it: {}", missing.join(", "));
        return Err(Error::environment(what, dir.display().to_string())
            .hint("put their run folders there, or join them again with `chronibench join`"));
    }
    publish(&again(&stored, &there)?, dir)
}

fn joined(anchor: &str, dirs: &[(String, PathBuf)], declared: &[String]) -> Result<Joined> {
    let mut sittings = Vec::new();
    for (name, dir) in dirs {
        let Stored { resolved, environment, logs } = Store::open(dir)?.load()?;
        let summary = summarise(&resolved, &logs);
        sittings.push(Sitting { name: name.clone(), resolved, summary, environment });
    }
    join(anchor, &sittings, declared).map_err(|wrong| {
        Error::new(Exit::NotValid, wrong.join("; "), "the runs to join").hint(
            "run the anchor again in every sitting, on one machine with one binary, or name what may differ with --declare",
        )
    })
}

/// A folder holds a join.
pub(crate) fn is_join(dir: &Path) -> bool {
    dir.join(JOINED).is_file() && !dir.join(RESOLVED).exists()
}

/// A join as it is stored.
///
/// # Errors
/// The file is damaged.
pub(crate) fn stored(dir: &Path) -> Result<Joined> {
    let path = dir.join(JOINED);
    let text = std::fs::read_to_string(&path).at(&path)?;
    let joined: Joined = serde_json::from_str(&text).map_err(|e| damaged(&path, &e.to_string()))?;
    match joined.schema == SCHEMA {
        true => Ok(joined),
        false => Err(damaged(&path, &format!("{} is not {SCHEMA}", joined.schema))),
    }
}

/// The sittings of a join that lie beside it, with their folders, and the names of those that do not.
pub(crate) fn sittings(dir: &Path, joined: &Joined) -> (Vec<(String, PathBuf)>, Vec<String>) {
    let around = dir.canonicalize().ok().and_then(|d| d.parent().map(Path::to_path_buf)).unwrap_or_default();
    // A name is a folder's, and leads nowhere else.
    let is_name = |name: &str| {
        let mut parts = Path::new(name).components();
        matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
    };
    let is_there = |name: &String| is_name(name) && around.join(name).join(RESOLVED).is_file();
    let (there, missing): (Vec<String>, Vec<String>) = joined.sittings.iter().cloned().partition(is_there);
    (there.into_iter().map(|name| (name.clone(), around.join(name))).collect(), missing)
}

/// The join of the same sittings, through the same anchor, with the differences that were declared.
///
/// # Errors
/// They cannot be joined.
pub(crate) fn again(stored: &Joined, sittings: &[(String, PathBuf)]) -> Result<Joined> {
    let declared: Vec<String> = stored.differences.keys().cloned().collect();
    joined(&stored.anchor, sittings, &declared)
}

/// What a join leaves behind, by name.
pub(crate) fn files(joined: &Joined) -> Rendered {
    let json = pretty(&serde_json::to_value(joined).expect("plain data"));
    vec![(JOINED.into(), json), ("report.md".into(), report_md(joined).into_bytes())]
}

fn publish(joined: &Joined, out: &Path) -> Result<Exit> {
    files(joined).iter().try_for_each(|(name, bytes)| write_whole(&out.join(name), bytes))?;
    for row in &joined.rows {
        let ratio = row.ratio.map_or("no ratio".into(), |r| format!("{} the anchor", times(r.median)));
        println!("{}: {} {ratio}", row.sitting, row.case);
    }
    println!("report: {}", out.join("report.md").display());
    Ok(Exit::Pass)
}
