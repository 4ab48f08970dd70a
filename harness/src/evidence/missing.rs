//! Whether a run folder without evidence is older than chains, or has lost what it had.

use std::path::Path;

use serde_json::Value;

use crate::store::{ENVIRONMENT, RESOLVED};

/// Key of `environment.json` that says which chains the trials of a run have.
pub(crate) const CHAINS: &str = "chains";

/// Since when every version writes chains, as `started_at` has it.
const SINCE: &str = "2026-11-27T03:35:47";

/// The folder says by itself that its trials have chains.
pub(super) fn says_chained(dir: &Path) -> bool {
    environment(dir).get(CHAINS).is_some()
}

fn environment(dir: &Path) -> Value {
    serde_json::from_str(&read(dir, ENVIRONMENT)).unwrap_or_default()
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap_or_default()
}

/// How the folder itself tells that its run was chained; `None` where it may be older than chains.
///
/// Versions say it in `environment.json`. Those before them that had chains are known by `audit` in `resolved.yaml`, which is as
/// old as chains; a run of kernels has no audit, and is known by the time at which it began.
pub(super) fn was_chained(dir: &Path) -> Option<String> {
    let environment = environment(dir);
    if let Some(chains) = environment.get(CHAINS).and_then(Value::as_str) {
        return Some(format!("{ENVIRONMENT} says that its trials have chains ({chains})"));
    }
    if read(dir, RESOLVED).lines().any(|line| line.starts_with("audit:")) {
        return Some(format!("{RESOLVED} has audits, and every version that has them writes chains"));
    }
    let began = environment.get("started_at").and_then(Value::as_str).filter(|at| *at >= SINCE);
    let kernels = crate::kernel::store::is_run(dir);
    began
        .filter(|_| kernels)
        .map(|at| format!("{ENVIRONMENT} says that it began on {at}, and runs are chained since {SINCE}Z"))
}
