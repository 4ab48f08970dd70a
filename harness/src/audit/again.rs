//! `chronibench audit`: every audit once more, from what a run folder holds.

use std::{collections::BTreeMap, path::Path};

use chronibench_analysis::{
    RunSummary, TrialLog,
    judge::{
        Judgement,
        audit::{Audit, Outcome, checks, judge_in_run},
        judge,
    },
};
use chronibench_protocol::{
    BatchPlan, TokenStore,
    record::{LedgerStep, Verdict},
};

use crate::{
    error::{AtPath, Error, Exit, Result},
    kernel,
    store::{Store, Stored, damaged},
};

/// Judges every trial again, recounts its tokens where the inputs are still there, and prints what each audit came to.
///
/// # Errors
/// It is no run folder, or a file in it is damaged.
pub fn again(dir: &Path) -> Result<Exit> {
    if kernel::store::is_run(dir) {
        let e = Error::usage("a run of kernels has no trainings to audit", dir.display().to_string());
        return Err(e.hint("its checks are in its report: `chronibench report DIR`"));
    }
    let stored = Store::open(dir)?.load()?;
    let published = published(dir)?;
    let mut troubles = Vec::new();
    let mut recounted = 0;
    let trials = judged(&stored);
    for (log, judgement) in &trials {
        let id = log.header.as_ref().map_or("(a log without a header)", |h| h.spec.trial_id.as_str());
        troubles.extend(judgement.reasons.iter().map(|r| format!("{id}: {}: {r}", r.audit().name())));
        if let Some(then) = published.get(id).filter(|then| **then != judgement.verdict) {
            troubles.push(format!("{id}: published as {}, now {}", name(*then), name(judgement.verdict)));
        }
        match recount(dir, log)? {
            None => {}
            Some(fresh) if Some(&fresh) == log.ledger.as_ref() => recounted += 1,
            Some(_) => {
                troubles.push(format!("{id}: its tokens, counted again from inputs/, are not those stored"))
            }
        }
    }
    println!("{}", table(&trials));
    println!("✓ held   ✗ failed   ? unclear   · not made");
    let (all, audits) = (trials.len(), trials.iter().filter(|(l, _)| l.is_audit()).count());
    println!(
        "{all} trials judged again, {audits} of them audit trials; tokens of {recounted} recounted from the inputs"
    );
    troubles.iter().for_each(|t| println!("{t}"));
    Ok(if troubles.is_empty() { Exit::Pass } else { Exit::NotValid })
}

/// Every log with its judgement, as the summary has it.
fn judged(stored: &Stored) -> Vec<(&TrialLog, Judgement)> {
    let audit = |log: &TrialLog| stored.logs.iter().find(|a| a.is_audit() && a.case() == log.case());
    let audited: Vec<&str> = stored.resolved.audited().map(|c| c.id.as_str()).collect();
    let judge = |log: &'_ TrialLog| match log.is_audit() {
        true => judge(log),
        false => judge_in_run(log, audit(log), audited.contains(&log.case())),
    };
    let judge = |log| (log, judge(log));
    stored.logs.iter().map(judge).collect()
}

/// Verdicts in `results.json` by trial; none where there is no such file.
fn published(dir: &Path) -> Result<BTreeMap<String, Verdict>> {
    let path = dir.join("results.json");
    if !path.is_file() {
        return Ok(BTreeMap::new());
    }
    let text = std::fs::read(&path).at(&path)?;
    let summary: RunSummary = serde_json::from_slice(&text).map_err(|e| damaged(&path, &e.to_string()))?;
    Ok(summary.cases.into_iter().flat_map(|c| c.trials).map(|t| (t.id, t.verdict)).collect())
}

/// The ledger of a trial from the token store and the plan of the run folder; nothing where they are not there any more.
fn recount(dir: &Path, log: &TrialLog) -> Result<Option<Vec<LedgerStep>>> {
    let Some(header) = &log.header else { return Ok(None) };
    let (tokens, plan) = (dir.join(&header.spec.data.tokens), dir.join(&header.spec.data.plan));
    if !tokens.is_file() || !plan.is_file() {
        return Ok(None);
    }
    let store = TokenStore::load(&tokens).map_err(|e| damaged(&tokens, &e.to_string()))?;
    if store.sha256() != header.tokens_sha256 {
        return Err(damaged(&tokens, "not the token store that the trials read"));
    }
    let bytes = std::fs::read(&plan).at(&plan)?;
    let plan: BatchPlan = serde_json::from_slice(&bytes).map_err(|e| damaged(&plan, &e.to_string()))?;
    Ok(Some(log.steps.iter().map(|s| LedgerStep::count(&s.event, &plan, &store)).collect()))
}

/// One row a case, one column an audit: the gravest over its trials.
fn table(trials: &[(&TrialLog, Judgement)]) -> comfy_table::Table {
    let mut cases: Vec<&str> = Vec::new();
    for (log, _) in trials {
        if !cases.contains(&log.case()) {
            cases.push(log.case());
        }
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header(["case"].into_iter().chain(Audit::ALL.map(Audit::name)));
    for case in cases {
        let own: Vec<_> = trials.iter().filter(|(l, _)| l.case() == case).collect();
        let cell = |audit: Audit| {
            let failed = own.iter().flat_map(|(_, j)| &j.reasons).any(|r| r.audit() == audit);
            let made =
                own.iter().flat_map(|(l, _)| checks(l)).filter(|c| c.audit == audit).map(|c| c.outcome).max();
            match made {
                _ if failed => "✗",
                Some(Outcome::Failed) => "✗",
                Some(Outcome::Held) => "✓",
                Some(Outcome::Unclear) => "?",
                Some(Outcome::Skipped) => "·",
                None => {
                    if audit.is_of_events() {
                        "✓"
                    } else {
                        "·"
                    }
                }
            }
        };
        table.add_row([case].into_iter().chain(Audit::ALL.map(cell)));
    }
    table
}

fn name(verdict: Verdict) -> String {
    serde_json::to_value(verdict).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
}
