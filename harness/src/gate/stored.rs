//! A gate against figures of another session: advice, unless an anchor tells the machine's change from the program's.

use std::path::Path;

use chronibench_analysis::{
    RunSummary,
    asked::{asked, differences},
    gate::{GatePlan, Program, SCHEMA, judge, pairs},
};

use chronibench_protocol::record::Resolved;

use super::{GateArgs, baseline::Side, certificate, exit, folder, output};
use crate::{
    environment,
    error::{Error, Exit, Result},
    expect::HfConfig,
    inputs::{self, Extent},
    runner::{Bench, Turn, gpu::Gpu},
    scenario::{Setup, order::interleaved},
    store::{Store, Stored},
};

/// Runs the candidate as often as the earlier run did, up to the last look, and judges the two.
///
/// # Errors
/// The earlier run has no such case or too few trials, or the scenario is unusable.
pub fn run(args: &GateArgs, mut setup: Setup, dir: &Path, candidate: &Side) -> Result<Exit> {
    let then = Store::open(dir)?;
    let Stored { resolved: earlier, environment: machine_then, .. } = then.load()?;
    let then = then.summary()?;
    let cases = gated(&mut setup, &then, args)?;
    let mut design = args.test.design(cases.len())?;
    let rounds = rounds(&then, &cases, &mut design.looks, dir)?;
    let mut advisory = Vec::new();
    if args.anchor.is_none() {
        advisory.push("the baseline's figures are of another session, and no --anchor ran in both".into());
    }
    if machine_then.get("machine") != Some(&environment::machine()?) {
        advisory.push("the baseline's figures are of another machine".into());
    }
    if earlier.measure != setup.resolved.measure || earlier.scenario_sha256 != setup.resolved.scenario_sha256
    {
        advisory.push("the baseline's scenario is another one".into());
    }
    if earlier.model != setup.resolved.model || earlier.data != setup.resolved.data {
        advisory.push("the baseline's model or data set is another one".into());
    }
    advisory.extend(cases.iter().filter_map(|id| asked_otherwise(id, &earlier, &setup.resolved)));
    let about = Program { name: dir.display().to_string(), sha256: None, revision: revision(&machine_then) };
    let plan = GatePlan {
        schema: SCHEMA.into(),
        scenario: setup.resolved.name.clone(),
        baseline: about,
        candidate: candidate.about.clone(),
        design,
        cases,
        enforce: args.enforce.into(),
        certificate: certificate::find(&setup)?,
        advisory,
        uncertified: None,
    };
    for case in &setup.resolved.cases {
        setup.programs.insert(case.arm.clone(), candidate.path.clone());
    }
    let out = args.out.clone().unwrap_or_else(|| folder("gate", &setup.resolved.name));
    let now = match trials(&mut setup, rounds, &out) {
        Err(e) if e.exit == Exit::Interrupted => {
            eprintln!("interrupted; the finished trials are in {}", out.display());
            return Ok(Exit::Interrupted);
        }
        other => other?,
    };
    let pair = |case: &String| pairs::stored(&then, &now, case, args.anchor.as_deref());
    let gate = judge(&plan, &plan.cases.iter().map(pair).collect::<Vec<_>>());
    output::seal(&Store::open(&out)?, &gate)?;
    output::write(&gate, args.junit.as_deref(), args.comment.as_deref())?;
    output::print(&gate, &out);
    Ok(exit(&gate))
}

/// What a case was asked otherwise in the earlier run: the same file, changed on the command line, is another scenario.
fn asked_otherwise(id: &str, then: &Resolved, now: &Resolved) -> Option<String> {
    let of = |r: &Resolved| r.cases.iter().find(|c| c.id == id).map(asked);
    let other = differences(&of(then)?, &of(now)?);
    let words: Vec<String> = other.iter().map(|(name, a, b)| format!("{name} was {a}, and is {b}")).collect();
    (!words.is_empty()).then(|| format!("{id} is another case than the baseline's: {}", words.join(", ")))
}

fn revision(environment: &serde_json::Value) -> Option<String> {
    Some(environment.get("program")?.get("git")?.get("revision")?.as_str()?.to_string())
}

/// The cases that both have, without the anchor; the setup keeps these and the anchor.
fn gated(setup: &mut Setup, then: &RunSummary, args: &GateArgs) -> Result<Vec<String>> {
    let anchor = args.anchor.as_deref();
    let known = |id: &str| then.cases.iter().any(|c| c.id == id);
    if let Some(anchor) = anchor.filter(|a| !known(a) || !setup.resolved.cases.iter().any(|c| c.id == *a)) {
        return Err(Error::usage(
            "both the scenario and the earlier run need this case",
            format!("--anchor {anchor}"),
        )
        .hint("name a case that both ran, e.g. one of another arm"));
    }
    setup.resolved.cases.retain(|c| known(&c.id));
    setup.resolved.comparisons.clear();
    let cases: Vec<String> =
        setup.resolved.cases.iter().map(|c| c.id.clone()).filter(|id| Some(id.as_str()) != anchor).collect();
    match cases.is_empty() {
        false => Ok(cases),
        true => Err(Error::usage("the earlier run has none of the scenario's cases", "--baseline")
            .hint("name a run of the same scenario")),
    }
}

/// Rounds to run: the last look that the earlier run has trials for.
fn rounds(then: &RunSummary, cases: &[String], looks: &mut Vec<u32>, dir: &Path) -> Result<u32> {
    let valid = |id: &String| then.cases.iter().find(|c| c.id == *id).map_or(0, |c| c.valid as u32);
    let fewest = cases.iter().map(valid).min().unwrap_or(0);
    let first = looks.first().copied().unwrap_or(0);
    looks.retain(|n| *n <= fewest);
    looks.last().copied().ok_or_else(|| {
        let what = format!("the earlier run has {fewest} valid trials of a case, a look needs {first}");
        Error::usage(what, dir.display().to_string()).hint(format!("run it with --trials {first} or more"))
    })
}

fn trials(setup: &mut Setup, rounds: u32, out: &Path) -> Result<RunSummary> {
    // Cells of a sweep are repeated as what they are, each.
    setup.resolved.cases.iter_mut().for_each(|c| c.sweep = None);
    setup.resolved.trials = rounds;
    // A gate asks how fast, not whether: no trial of it is audited.
    setup.resolved.audit = None;
    setup.resolved.order = interleaved(&setup.resolved.cases, rounds);
    let gpu = Gpu::open().ok();
    let expect = HfConfig::load(&setup.config)?;
    let store =
        Store::create(out, &setup.resolved, &environment::describe(gpu.as_ref(), Some(&setup.file))?)?;
    let interrupted = match played(setup, &expect, gpu.as_ref(), &store) {
        Err(e) if e.exit == Exit::Interrupted => Some(e),
        other => other.map(|()| None)?,
    };
    // Interrupted or not: what has run is kept, and what only a running gate needs is not.
    store.clean()?;
    let summary = store.publish()?;
    interrupted.map_or(Ok(()), Err)?;
    match summary.trials_valid {
        0 => Err(Error::new(Exit::NotValid, "no trial is valid", out.display().to_string())
            .hint("look at its report.md")),
        _ => Ok(summary),
    }
}

/// Runs the order of the setup into the store.
fn played(setup: &Setup, expect: &HfConfig, gpu: Option<&Gpu>, store: &Store) -> Result<()> {
    let inputs = inputs::prepare(setup, &store.path("inputs"), Extent::Everything)?;
    let bench = Bench { setup, inputs: &inputs, expect, folder: store.folder(), gpu };
    let cases = setup.resolved.cases.len();
    let ran = setup.resolved.order.iter().enumerate().try_for_each(|(position, id)| {
        let case = setup.resolved.cases.iter().find(|c| c.id == *id).expect("the order names cases");
        let turn = Turn { round: (position / cases) as u32, ..Turn::first(case, position as u32) };
        store.add(&bench.run(turn, None, &mut |_| {})?)
    });
    inputs.delete_weights()?;
    ran
}
