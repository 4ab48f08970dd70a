//! `chronibench claims check`: a ledger of claims against arithmetic and stored runs.

use std::path::{Path, PathBuf};

use chronibench_analysis::{
    claims::{Finding, Ledger, Runs, check, markdown},
    html::plain_html,
};

use crate::{
    cli::{ClaimsArgs, ClaimsCommand},
    error::{AtPath, Error, Exit, Result},
    kernel::store::{KernelStore, is_run},
    scenario::Source,
    store::{RESOLVED, Store, write_whole},
};

/// Runs a sub-command of `claims`.
///
/// # Errors
/// The file or a run folder cannot be used.
pub fn run(command: &ClaimsCommand) -> Result<Exit> {
    match command {
        ClaimsCommand::Check(args) => show(args),
        ClaimsCommand::Schema => {
            let schema = schemars::schema_for!(Ledger);
            println!("{}", serde_json::to_string_pretty(&schema).expect("plain data"));
            Ok(Exit::Pass)
        }
    }
}

fn show(args: &ClaimsArgs) -> Result<Exit> {
    let ledger = load(&args.file)?;
    let dirs = if args.run.is_empty() { run_folders(&args.runs)? } else { args.run.clone() };
    let findings = check(&ledger, &summaries(&dirs)?);
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&findings).expect("plain data")),
        false => print(&findings),
    }
    let text = markdown(&ledger, &findings);
    args.markdown.as_ref().map_or(Ok(()), |path| write_whole(path, text.as_bytes()))?;
    args.html.as_ref().map_or(Ok(()), |path| write_whole(path, plain_html(&text).as_bytes()))?;
    Ok(if findings.iter().all(Finding::as_expected) { Exit::Pass } else { Exit::Claim })
}

fn load(path: &Path) -> Result<Ledger> {
    let text = std::fs::read_to_string(path).at(path)?;
    let source = Source { name: path.display().to_string(), text };
    let ledger: Ledger = source.parse()?;
    ledger.validate().map_err(|what| {
        Error::usage(what, path.display().to_string())
            .hint("`chronibench claims schema` prints what a claims file may hold")
    })?;
    Ok(ledger)
}

/// Every run folder right below `dir`; none where there is no such folder.
fn run_folders(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(dir).at(dir)? {
        folders.push(entry.at(dir)?.path());
    }
    folders.retain(|f| f.join(RESOLVED).is_file());
    folders.sort();
    Ok(folders)
}

/// Summaries made anew from the stored events, so that a changed `results.json` changes nothing.
fn summaries(dirs: &[PathBuf]) -> Result<Runs> {
    let mut runs = Runs::default();
    for dir in dirs {
        let name = dir.canonicalize().unwrap_or_else(|_| dir.clone());
        let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_run(dir) {
            runs.kernels.push((name, KernelStore::open(dir)?.render()?.0));
        } else {
            runs.training.push((name, Store::open(dir)?.render()?.0));
        }
    }
    Ok(runs)
}

fn print(findings: &[Finding]) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table.set_header(["id", "figures", "verdict", "expected", "run"]);
    for f in findings {
        let id = f.part.as_ref().map_or(f.id.clone(), |part| format!("{} {part}", f.id));
        let expected = f.expected.map_or("–", |v| v.name());
        let run = f.run.clone().unwrap_or_else(|| "–".into());
        table.add_row([id.as_str(), &f.figures, &f.verdict_words(), expected, &run]);
    }
    println!("{table}");
    let differ: Vec<&Finding> = findings.iter().filter(|f| !f.as_expected()).collect();
    println!("{} findings, {} not as the file expects", findings.len(), differ.len());
    for f in differ {
        let expected = f.expected.map_or("nothing", |v| v.name());
        println!(
            "{} {}: {}, expected {expected}",
            f.id,
            f.part.as_deref().unwrap_or_default(),
            f.verdict.name()
        );
    }
}
