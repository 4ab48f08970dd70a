//! `chronibench gate` and `chronibench noise`: is this program slower than that one, and may this machine say so?
//!
//! Both programs play the worker of one scenario in one session, in turns ([`turns`]). What they measure goes through the
//! test of [`chronibench_analysis::sequential`] after each look's pairs, until it is decided.

pub mod args;
pub mod baseline;
pub mod certificate;
pub mod criterion;
pub mod noise;
pub mod output;
pub mod revision;
pub mod stored;
pub mod turns;

use std::path::{Path, PathBuf};

use chronibench_analysis::{
    RunSummary,
    gate::{GatePlan, GateReport, judge, pairs},
    sequential::GateVerdict,
};

use crate::{
    env::Rival,
    error::{Error, Exit, Result},
    history, interrupt, session,
    store::{Rendered, Store},
};
use args::GateArgs;
use baseline::{Baseline, Side};
use turns::Turns;

/// The plan of a gate, in its run folder.
pub(crate) const PLAN: &str = "gate-plan.json";

/// Runs a gate.
///
/// # Errors
/// The command line, the scenario or the baseline is unusable. A slower candidate is an exit, not an error.
pub fn run(args: &GateArgs) -> Result<Exit> {
    args.save_baseline.as_deref().map_or(Ok(()), baseline::check_name)?;
    let Some(scenario) = &args.scenario else { return criterion::run(args) };
    let setup = session::ready(&args.cases.of(scenario.clone()))?;
    let design = args.test.design(setup.resolved.cases.len())?;
    interrupt::install();
    let candidate = args.candidate.as_deref().map_or_else(Side::this, Side::program)?;
    let name = args.baseline.as_deref().expect("required by the command line");
    args.check_for(Baseline::is_run(name))?;
    let baseline = match Baseline::find(name)? {
        Baseline::Program(side) => side,
        Baseline::Run(dir) => return stored::run(args, setup, &dir, &candidate),
    };
    // A program that plays the worker brings its own arms, and not its adapters.
    for case in setup.resolved.cases.iter().filter(|c| Rival::named(&c.runner).is_some()) {
        eprintln!("note: {}: both sides run this program's adapter: it shows the machine alone", case.id);
    }
    let out = args.out.clone().unwrap_or_else(|| folder("gate", &setup.resolved.name));
    let plan = GatePlan {
        schema: chronibench_analysis::gate::SCHEMA.into(),
        scenario: setup.resolved.name.clone(),
        baseline: baseline.about.clone(),
        candidate: candidate.about.clone(),
        design,
        cases: setup.resolved.cases.iter().map(|c| c.id.clone()).collect(),
        enforce: args.enforce.into(),
        certificate: certificate::find(&setup)?,
        advisory: Vec::new(),
        uncertified: None,
    };
    let mut turns = Turns::start(setup, (&baseline.path, &candidate.path), &out)?;
    turns.store().seal(PLAN, &crate::store::pretty(&serde_json::to_value(&plan).expect("plain data")))?;
    match turns.gate(&plan, 0) {
        Err(e) if e.exit == Exit::Interrupted => {
            turns.finish()?;
            eprintln!("interrupted; the finished trials are in {}", out.display());
            return Ok(Exit::Interrupted);
        }
        other => other?,
    };
    turns.finish()?;
    let gate = publish(&Store::open(&out)?, &plan)?;
    output::write(&gate, args.junit.as_deref(), args.comment.as_deref())?;
    output::print(&gate, &out);
    let exit = exit(&gate);
    if let Some(file) = args.history.as_ref().filter(|_| gate.verdict == GateVerdict::Pass) {
        println!("{} cases added to {}", history::add(file, &out)?, file.display());
    }
    if let Some(name) = args.save_baseline.as_ref().filter(|_| gate.verdict == GateVerdict::Pass) {
        println!("saved as baseline {name}: {}", baseline::save(name, &candidate)?.display());
    }
    Ok(exit)
}

/// A run folder holds a gate.
pub fn is_gate(dir: &Path) -> bool {
    dir.join(PLAN).is_file()
}

/// Judges a stored gate again.
///
/// # Errors
/// A file of the folder is missing or damaged.
pub fn report(dir: &Path) -> Result<Exit> {
    let gate = publish(&Store::open(dir)?, &stored_plan(dir)?)?;
    output::print(&gate, dir);
    Ok(exit(&gate))
}

fn stored_plan(dir: &Path) -> Result<GatePlan> {
    let path = dir.join(PLAN);
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, &e))?;
    serde_json::from_str(&text).map_err(|e| crate::store::damaged(&path, &e.to_string()))
}

/// The files of a stored gate, by its plan and its trials.
///
/// # Errors
/// A file of the folder is missing or damaged.
pub(crate) fn rendered(store: &Store) -> Result<Rendered> {
    Ok(output::files(&judged(&store.summary()?, &stored_plan(store.folder())?)))
}

/// Renders the run and the gate from what is stored.
fn publish(store: &Store, plan: &GatePlan) -> Result<GateReport> {
    let gate = judged(&store.publish()?, plan);
    output::store(store, &gate)?;
    Ok(gate)
}

fn judged(summary: &RunSummary, plan: &GatePlan) -> GateReport {
    let pairs: Vec<_> = plan.cases.iter().map(|case| pairs::live(summary, case, 0..u32::MAX)).collect();
    judge(plan, &pairs)
}

/// A FAIL counts where it is enforced; figures that are not valid always do.
pub(crate) fn exit(gate: &GateReport) -> Exit {
    match gate.verdict {
        GateVerdict::Invalid => Exit::NotValid,
        GateVerdict::Pass => Exit::Pass,
        _ if !gate.enforced => Exit::Pass,
        GateVerdict::Fail => Exit::Regression,
        GateVerdict::Inconclusive => Exit::Inconclusive,
    }
}

fn folder(what: &str, scenario: &str) -> PathBuf {
    session::default_folder(&format!("{what}-{scenario}"))
}
