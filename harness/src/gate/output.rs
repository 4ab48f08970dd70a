//! What a gate leaves behind: `gate.json` and `gate.md` in the run folder, and what the user asked for.

use std::path::Path;

use chronibench_analysis::gate::{CaseGate, GateReport, comment, junit_xml, table};

use crate::{
    error::Result,
    store::{Rendered, Store, pretty, write_whole},
};

/// Writes the report of a gate into its run folder.
///
/// # Errors
/// The folder cannot be written.
pub fn store(store: &Store, gate: &GateReport) -> Result<()> {
    files(gate).iter().try_for_each(|(name, bytes)| store.write(name, bytes))
}

/// The same of a gate that does not follow from its run folder alone: the evidence has their hashes.
///
/// # Errors
/// The folder cannot be written.
pub fn seal(store: &Store, gate: &GateReport) -> Result<()> {
    files(gate).iter().try_for_each(|(name, bytes)| store.seal(name, bytes))?;
    // The results have the evidence in them.
    store.publish().map(|_| ())
}

/// The report of a gate by file name.
pub fn files(gate: &GateReport) -> Rendered {
    let json = pretty(&serde_json::to_value(gate).expect("plain data"));
    vec![("gate.json".into(), json), ("gate.md".into(), comment(gate).into_bytes())]
}

/// Writes the files that were asked for.
///
/// # Errors
/// A place cannot be written.
pub fn write(gate: &GateReport, junit: Option<&Path>, markdown: Option<&Path>) -> Result<()> {
    if let Some(path) = junit {
        write_whole(path, junit_xml(gate).as_bytes())?;
    }
    if let Some(path) = markdown {
        write_whole(path, comment(gate).as_bytes())?;
    }
    Ok(())
}

/// Prints a gate.
pub fn print(gate: &GateReport, dir: &Path) {
    grid(table(gate));
    for reason in &gate.advisory {
        println!("advisory: {reason}");
    }
    let counts = if gate.enforced { "" } else { " (advice)" };
    println!("{}{counts}: {}", gate.verdict.name(), dir.display());
}

/// A case after a look, while the gate runs.
pub fn progress(case: &CaseGate) {
    eprintln!("{} after {} pairs: {} ({})", case.case, case.ratios.len(), case.verdict.name(), case.words());
}

/// Prints rows, the first one as the heading.
pub fn grid(rows: Vec<Vec<String>>) {
    let mut rows = rows.into_iter();
    let mut grid = comfy_table::Table::new();
    grid.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    if let Some(header) = rows.next() {
        grid.set_header(header);
    }
    grid.add_rows(rows);
    println!("{grid}");
}
