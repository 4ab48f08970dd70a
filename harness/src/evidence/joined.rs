//! Whether a join follows from its sittings, which are looked for beside it.

use std::path::Path;

use super::{
    Finding, Standing, Verification,
    verify::{self, differs},
};
use crate::{error::Result, join};

/// Checks the folder of a join: each sitting by itself, and that joined again they come to the same bytes.
pub(super) fn verify(dir: &Path) -> Result<Verification> {
    let mut found = Verification {
        dir: dir.to_path_buf(),
        standing: Standing::Verified,
        trials: 0,
        lines: 0,
        rendered: 0,
        head: None,
        unproven: None,
        left: None,
        findings: Vec::new(),
    };
    if let Err(e) = check(dir, &mut found) {
        found.findings.push(Finding { at: e.at, what: e.what });
    }
    found.standing = match (found.findings.is_empty(), &found.unproven) {
        (false, _) => Standing::Broken,
        (true, Some(_)) => Standing::NoChain,
        (true, None) => Standing::Verified,
    };
    Ok(found)
}

fn check(dir: &Path, found: &mut Verification) -> Result<()> {
    let stored = join::stored(dir)?;
    let (there, missing) = join::sittings(dir, &stored);
    let files = if missing.is_empty() {
        for (name, path) in &there {
            let sitting = verify::verify(path)?;
            found.trials += sitting.trials;
            found.lines += sitting.lines;
            found.rendered += sitting.rendered;
            let of_sitting = |f: Finding| Finding { at: format!("{name}/{}", f.at), ..f };
            found.findings.extend(sitting.findings.into_iter().map(of_sitting));
            let unproven = sitting.unproven.map(|why| format!("{name} is {why}"));
            found.unproven = found.unproven.take().or(unproven);
            let left = sitting.left.map(|what| format!("{name} is {what}"));
            found.left = found.left.take().or(left);
        }
        join::files(&join::again(&stored, &there)?)
    } else {
        let why = format!("nothing proves its figures: beside it is no {}", missing.join(", no "));
        found.unproven = Some(why);
        join::files(&stored)
    };
    for (name, bytes) in &files {
        let what = match std::fs::read(dir.join(name)) {
            Err(e) => format!("cannot be read: {e}"),
            Ok(own) if own != *bytes => differs(&own, bytes),
            Ok(_) => continue,
        };
        found.findings.push(Finding { at: name.clone(), what });
    }
    found.rendered += files.len();
    Ok(())
}
