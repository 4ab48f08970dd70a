//! What the sub-commands that show a table of cases have in common.

use std::path::PathBuf;

use chronibench_analysis::table::csv;
use clap::Args;
use serde::Serialize;

use crate::{error::Result, store::write_whole};

/// Which cases, and in which form.
#[derive(Clone, Debug, Args)]
pub struct TableArgs {
    /// Only cases whose id contains this.
    #[arg(short = 'k', value_name = "TEXT")]
    pub case: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Write the table as CSV.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

impl TableArgs {
    /// Writes the rows where they are asked for, and prints: `value` as JSON, or what `print` does.
    ///
    /// # Errors
    /// The CSV file cannot be written.
    pub fn give(
        &self,
        value: &impl Serialize,
        rows: Vec<Vec<String>>,
        print: impl FnOnce(Vec<Vec<String>>),
    ) -> Result<()> {
        if let Some(path) = &self.csv {
            write_whole(path, csv(rows.iter().cloned()).as_bytes())?;
        }
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(value).expect("plain data")),
            false => print(rows),
        }
        Ok(())
    }
}
