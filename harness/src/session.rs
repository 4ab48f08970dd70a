//! A run from scenario to report.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use chronibench_analysis::{
    RunSummary, TrialLog, judge::faults::environment_fault, report::notes, skipped, summary::summary_table,
};
use chronibench_protocol::record::{Case, Line, Resolved, Verdict};

use crate::{
    audit::Audits,
    cli::{RunArgs, SelectArgs},
    env, environment,
    error::{Exit, Result},
    estimate::Pace,
    expect::HfConfig,
    gate::{
        self,
        baseline::{self, Side},
    },
    history,
    inputs::{self, Extent, Inputs},
    interrupt, join, kernel,
    progress::Progress,
    resume::{self, Kept},
    runner::{Bench, Turn, gpu::Gpu, idle},
    scenario::{Filter, Scenario, Setup, order, resolve},
    store::Store,
    worker,
};

/// Runs a scenario.
pub fn run(args: &RunArgs) -> Result<Exit> {
    args.save_baseline.as_deref().map_or(Ok(()), baseline::check_name)?;
    let setup = ready(&args.select)?;
    let expect = HfConfig::load(&setup.config)?;
    interrupt::install();
    let gpu = Gpu::open().ok();
    let begun = args.resume.clone().or_else(|| args.out.clone());
    let out = begun.unwrap_or_else(|| default_folder(&setup.resolved.name));
    let environment = environment::describe(gpu.as_ref(), Some(&setup.file))?;
    let (store, kept, _lock) = match &args.resume {
        Some(dir) => resume::open(dir, &setup.resolved, &environment)?,
        None => {
            let store = Store::create(&out, &setup.resolved, &environment)?;
            let lock = resume::lock(store.folder())?;
            (store, Kept::default(), lock)
        }
    };
    let progress = Progress::new(&setup.resolved);
    if args.resume.is_some() {
        progress.say(&format!("{} trials are kept from before", kept.len()));
    }
    progress.say("preparing data, batches and starting weights");
    let inputs = inputs::prepare(&setup, &store.path("inputs"), Extent::Everything)?;
    progress.say(&format!("data: {}", inputs.tokenised()));
    let bench =
        Bench { setup: &setup, inputs: &inputs, expect: &expect, folder: store.folder(), gpu: gpu.as_ref() };
    let ran = trials(&bench, &store, &kept, progress, Duration::from_secs(args.idle_wait));
    tidy(&store, &inputs, args.keep_inputs)?;
    let summary = match ran {
        Err(e) if e.exit == Exit::Interrupted => {
            eprintln!("interrupted; the finished trials are in {}", out.display());
            eprintln!("to go on: the same command with --resume {} for --out", out.display());
            return Ok(Exit::Interrupted);
        }
        other => other?,
    };
    print(&setup.resolved, &summary, &out);
    let exit = exit(&summary);
    if let Some(name) = args.save_baseline.as_ref().filter(|_| exit == Exit::Pass) {
        println!("saved as baseline {name}: {}", baseline::save(name, &Side::this()?)?.display());
    }
    if let Some(file) = args.history.as_ref().filter(|_| exit == Exit::Pass) {
        println!("{} cases added to {}", history::add(file, store.folder())?, file.display());
    }
    Ok(exit)
}

/// Rebuilds the report of an earlier run.
pub fn report(dir: &Path) -> Result<Exit> {
    if join::is_join(dir) {
        return join::report(dir);
    }
    if gate::is_gate(dir) {
        return gate::report(dir);
    }
    if kernel::store::is_run(dir) {
        return kernel::report(dir);
    }
    let store = Store::open(dir)?;
    let summary = store.publish()?;
    print(&store.load_head()?.0, &summary, dir);
    Ok(exit(&summary))
}

/// Reads and resolves the scenario of a command line.
pub fn set_up(args: &SelectArgs) -> Result<Setup> {
    let scenario = Scenario::load(&args.file, &args.cases.set)?;
    let filter = Filter { arms: args.cases.arms.clone(), case: args.cases.case.clone(), trials: args.trials };
    resolve::resolve(&scenario, &worker::offer(), &filter)
}

/// The scenario of a command line with the environments of its rivals; what is left out is said.
///
/// # Errors
/// The scenario is unusable, or no case can run here.
pub fn ready(args: &SelectArgs) -> Result<Setup> {
    let mut setup = set_up(args)?;
    setup.environments = env::for_cases(&mut setup.resolved)?;
    for line in skipped::lines(&setup.resolved.skipped) {
        eprintln!("{line}");
    }
    Ok(setup)
}

/// Every trial in order; the run folder is complete after each.
fn trials(
    bench: &Bench<'_>,
    store: &Store,
    kept: &Kept,
    mut progress: Progress,
    idle_wait: Duration,
) -> Result<RunSummary> {
    let resolved = &bench.setup.resolved;
    let mut pace = Pace::new(resolved, &bench.expect.shape(), bench.inputs);
    let audits = Audits::prepare(bench)?;
    for (position, case) in resolved.cases.iter().enumerate() {
        let turn = audits.as_ref().and_then(|a| a.turn(position, case));
        let Some(turn) = turn.filter(|t| kept.lines(&t.trial_id()).is_none()) else { continue };
        progress.audit(position, resolved.cases.len(), &case.id);
        store.add(&bench.run(turn, audits.as_ref(), &mut |_| ())?)?;
    }
    let mut summary = store.publish()?;
    progress.audited(&summary);
    for (position, id) in resolved.order.iter().enumerate() {
        let Some(case) = case_of(id, resolved, &summary) else {
            progress.say(&format!("no cell of {id} is valid: nothing to repeat"));
            continue;
        };
        let round = order::round(&resolved.order, position, &resolved.cases);
        for attempt in 0..=resolved.retries {
            let turn = Turn { round, attempt, ..Turn::first(case, position as u32) };
            let fault = match kept.lines(&turn.trial_id()) {
                Some(lines) => {
                    pace.add(&case.id, lines);
                    fault(lines)
                }
                None => {
                    let say = |text: &str| progress.say(text);
                    let gpu = if case.device == "cpu" { None } else { bench.gpu };
                    let not_idle = idle::wait(gpu, idle_wait, &say)?;
                    let turn = Turn { gpu_not_idle: not_idle.as_deref(), ..turn };
                    progress.begin(position, &case.id, pace.left(&resolved.order[position..]));
                    let record = bench.run(turn, audits.as_ref(), &mut |event| progress.event(event))?;
                    store.add(&record)?;
                    pace.add(&case.id, &record);
                    summary = store.publish()?;
                    progress.end(position, &summary, &turn.trial_id());
                    fault(&record)
                }
            };
            let Some(fault) = fault.filter(|_| attempt < resolved.retries) else { break };
            progress.say(&format!("        {fault}: begun again"));
        }
    }
    progress.finish();
    Ok(summary)
}

/// The fault of the machine that ended a trial.
fn fault(lines: &[Line]) -> Option<String> {
    environment_fault(&TrialLog::from_lines(lines.to_vec())).map(|f| f.to_string())
}

/// The case of a place in the order: its own, or the best cell of its sweep.
fn case_of<'a>(id: &str, resolved: &'a Resolved, summary: &RunSummary) -> Option<&'a Case> {
    let sweep = summary.sweeps.iter().find(|s| s.id == id);
    let id = sweep.map_or(Some(id), |s| s.best.as_deref())?;
    resolved.cases.iter().find(|c| c.id == id)
}

fn tidy(store: &Store, inputs: &Inputs, keep_inputs: bool) -> Result<()> {
    if !keep_inputs {
        inputs.delete_weights()?;
    }
    store.clean()
}

pub(crate) fn default_folder(name: &str) -> PathBuf {
    let time = jiff::ZonedDateTime::now().strftime("%Y%m%d-%H%M%S").to_string();
    Path::new("runs").join(format!("{time}-{name}"))
}

fn print(resolved: &Resolved, summary: &RunSummary, dir: &Path) {
    let mut rows = summary_table(summary).into_iter();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    if let Some(header) = rows.next() {
        table.set_header(header);
    }
    table.add_rows(rows);
    println!("{table}");
    for trial in summary.cases.iter().flat_map(|c| &c.trials).filter(|t| t.verdict != Verdict::Valid) {
        println!("{}: {}", trial.id, trial.reasons.join("; "));
    }
    notes(resolved, summary).iter().for_each(|note| println!("{note}"));
    println!("report: {}", dir.join("report.md").display());
}

/// Crashes and timeouts first: what did not finish cannot be judged.
fn exit(summary: &RunSummary) -> Exit {
    if summary.deciding().any(|v| matches!(v, Verdict::Error | Verdict::Timeout)) {
        Exit::Trial
    } else if summary.verdict.is_some_and(|v| v != Verdict::Valid) {
        Exit::NotValid
    } else {
        Exit::Pass
    }
}
