//! What makes a stored run hard to change unseen: `evidence.json` beside the chained events, and its verification.

mod joined;
mod missing;
mod places;
mod verify;

use std::path::Path;

use chronibench_protocol::{
    Record,
    chain::{Evidence, Head, SCHEMA, UNLINKED},
    digest::sha256_hex,
};

use crate::{
    cli::VerifyArgs,
    error::{AtPath, Error, Exit, Result},
    store::{ENVIRONMENT, RESOLVED, damaged, pretty, write_whole},
};

pub(crate) use missing::CHAINS;
pub use verify::{Finding, Standing, Verification, verify};

/// Verifies run folders and says what was found.
///
/// # Errors
/// A folder is no run folder.
pub fn show(args: &VerifyArgs) -> Result<Exit> {
    let mut exit = Exit::Pass;
    for dir in &args.dirs {
        let found = verify(dir)?;
        let refused = args.require_chain && found.standing == Standing::NoChain;
        if found.standing == Standing::Broken || refused {
            exit = Exit::Integrity;
        }
        match args.json {
            true => println!("{}", serde_json::to_string(&found).expect("plain data")),
            false => print(&found),
        }
    }
    Ok(exit)
}

fn print(found: &Verification) {
    let standing = match found.standing {
        Standing::Verified => "VERIFIED",
        Standing::NoChain => "NO_CHAIN",
        Standing::Broken => "BROKEN",
    };
    println!("{standing:<9} {}", found.dir.display());
    let looked = format!("{} trials, {} lines, {} rendered files", found.trials, found.lines, found.rendered);
    match (&found.head, found.standing) {
        (Some(head), _) => println!("          {looked}; head {}", &head[..16]),
        (None, Standing::NoChain) => {
            let why = found.unproven.as_deref().unwrap_or("nothing proves its events");
            println!("          {looked}; {why}");
            println!("          (--require-chain makes that a failure)");
        }
        (None, _) => println!("          {looked}"),
    }
    if let Some(left) = &found.left {
        println!("          {left}");
    }
    for finding in &found.findings {
        println!("          {}: {}", finding.at, finding.what);
    }
}

/// File of a run folder.
pub const EVIDENCE: &str = "evidence.json";

/// Writes what a run begins with, the evidence last: a folder has it or is none.
pub(crate) fn begin(dir: &Path, resolved: &[u8], environment: &[u8]) -> Result<()> {
    let files = [(RESOLVED, resolved), (ENVIRONMENT, environment)];
    for (name, bytes) in files {
        write_whole(&dir.join(name), bytes)?;
    }
    write(dir, &Evidence::new(&files))
}

/// The evidence of a run folder; `None` where the run is older than chains.
pub(crate) fn read(dir: &Path) -> Result<Option<Evidence>> {
    let path = dir.join(EVIDENCE);
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.at(&path)?,
    };
    let evidence: Evidence = serde_json::from_str(&text).map_err(|e| damaged(&path, &e.to_string()))?;
    if ![SCHEMA, UNLINKED].contains(&evidence.schema.as_str()) {
        return Err(damaged(&path, &format!("{} is not {SCHEMA}", evidence.schema)));
    }
    Ok(Some(evidence))
}

/// The evidence of a run that goes on.
pub(crate) fn of_running(dir: &Path) -> Result<Evidence> {
    read(dir)?.ok_or_else(|| {
        Error::environment("the run has no evidence.json to go on with", dir.display().to_string())
            .hint("it was begun by an earlier version; run the scenario anew")
    })
}

/// A gate from before trials were linked, whose scenario may ask for audits that no gate makes.
pub(crate) fn is_older_gate(dir: &Path) -> bool {
    let evidence = read(dir).ok().flatten();
    evidence.is_some_and(|e| e.schema == UNLINKED && e.beside.contains_key("gate.json"))
}

/// An empty record of a trial, linked to the trial that was stored last.
///
/// # Errors
/// The folder is older than chains, or its evidence is damaged.
pub(crate) fn record(dir: &Path, trial_id: &str) -> Result<Record> {
    Ok(Record::new(of_running(dir)?.genesis(trial_id), trial_id))
}

/// Adds the end of a trial's chain.
pub(crate) fn add(dir: &Path, head: Head) -> Result<()> {
    let mut evidence = of_running(dir)?;
    evidence.trials.retain(|t| t.id != head.id);
    evidence.trials.push(head);
    write(dir, &evidence)
}

/// Writes a file that does not follow from the trials, and notes its hash.
pub(crate) fn seal(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let mut evidence = of_running(dir)?;
    evidence.beside.insert(name.into(), sha256_hex(bytes));
    write_whole(&dir.join(name), bytes)?;
    write(dir, &evidence)
}

fn write(dir: &Path, evidence: &Evidence) -> Result<()> {
    write_whole(&dir.join(EVIDENCE), &pretty(&serde_json::to_value(evidence).expect("plain data")))
}
