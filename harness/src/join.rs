//! `chronibench join`: several runs joined through an arm that ran in each.

use chronibench_analysis::{
    join::{Joined, Sitting, join, report_md},
    summarise,
};

use crate::{
    cli::JoinArgs,
    error::{Error, Exit, Result},
    store::{Store, Stored, pretty, write_whole},
};

/// Reads the runs, joins them, and writes `joined.json` and `report.md`.
pub fn run(args: &JoinArgs) -> Result<Exit> {
    let mut sittings = Vec::new();
    for dir in &args.dirs {
        let Stored { resolved, environment, logs } = Store::open(dir)?.load()?;
        let name = dir.canonicalize().ok().and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()));
        let name = name.unwrap_or_else(|| dir.display().to_string());
        let summary = summarise(&resolved, &logs);
        sittings.push(Sitting { name, resolved, summary, environment });
    }
    let joined = join(&args.anchor, &sittings, &args.declare).map_err(|wrong| {
        Error::new(Exit::NotValid, wrong.join("; "), "the runs to join").hint(
            "run the anchor again in every sitting, on one machine with one binary, or name what may differ with --declare",
        )
    })?;
    let json = pretty(&serde_json::to_value(&joined).expect("plain data"));
    write_whole(&args.out.join("joined.json"), &json)?;
    write_whole(&args.out.join("report.md"), report_md(&joined).as_bytes())?;
    print(&joined, args);
    Ok(Exit::Pass)
}

fn print(joined: &Joined, args: &JoinArgs) {
    for row in &joined.rows {
        let ratio = row.ratio.map_or("no ratio".into(), |r| format!("{:.2}× the anchor", r.median));
        println!("{}: {} {ratio}", row.sitting, row.case);
    }
    println!("report: {}", args.out.join("report.md").display());
}
