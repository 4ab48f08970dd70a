//! One trial: a child process, watched until it ends, and its record.

pub mod child;
pub mod gpu;
pub mod idle;
mod logs;
mod memory;
pub(crate) mod orphans;
pub mod sample;
mod tail;
pub mod watch;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use chronibench_protocol::{
    Event, Record, Spec,
    event::Step,
    record::{Case, Exit, Line, Presence, TensorChange, TrialHeader},
    spec::{AuditTrial, DataSpec, Method, ModelSpec, PROTOCOL},
};

use crate::{
    audit::Audits,
    env::{Environment, Rival},
    error::{AtPath, Result},
    evidence,
    expect::HfConfig,
    inputs::Inputs,
    runner::{child::Worker, gpu::Gpu},
    scenario::Setup,
    weights,
};

/// What all trials of a run have in common.
pub struct Bench<'a> {
    /// The scenario.
    pub setup: &'a Setup,
    /// Tokens, plans and starting weights.
    pub inputs: &'a Inputs,
    /// The harness's own knowledge of the model.
    pub expect: &'a HfConfig,
    /// The run folder; trials keep their files under `work/` while they run.
    pub folder: &'a Path,
    /// The GPU, where there is one.
    pub gpu: Option<&'a Gpu>,
}

/// Which trial of the run.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// What runs.
    pub case: &'a Case,
    /// Repetition, from 0.
    pub round: u32,
    /// Place in the order, from 0.
    pub position: u32,
    /// How often it was begun before.
    pub attempt: u32,
    /// What keeps the GPU from being idle.
    pub gpu_not_idle: Option<&'a str>,
    /// Steps of an audit trial; none for one that is measured.
    pub audit: Option<u32>,
}

impl<'a> Turn<'a> {
    /// The first trial of a case, in its own place.
    pub fn first(case: &'a Case, position: u32) -> Self {
        Self { case, round: 0, position, attempt: 0, gpu_not_idle: None, audit: None }
    }

    /// The arm, with its sweep's values: what scripts are filed under.
    pub fn arm(&self) -> &'a str {
        match &self.case.sweep {
            None => &self.case.arm,
            Some(_) => crate::scenario::label(self.case),
        }
    }

    /// Unique in the run, and a file name.
    pub fn trial_id(&self) -> String {
        let case = self.case.id.replace('/', "_");
        let again = if self.attempt > 0 { format!(".retry{}", self.attempt) } else { String::new() };
        match self.audit {
            None => format!("{:03}-{case}{again}", self.position),
            Some(_) => format!("audit-{case}"),
        }
    }
}

impl Bench<'_> {
    /// Runs one trial to its end, whatever that is, and returns its record.
    ///
    /// # Errors
    /// The harness itself fails or is interrupted. An arm that fails is a record, not an error.
    pub fn run(
        &self,
        turn: Turn<'_>,
        audits: Option<&Audits>,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<Record> {
        let dir = self.folder.join("work").join(turn.trial_id());
        std::fs::create_dir_all(&dir).at(&dir)?;
        let spec = self.spec(turn, &dir);
        write_spec(&spec, &dir)?;
        let mut lines = evidence::record(self.folder, &turn.trial_id())?;
        lines.push(Line::Trial(Box::new(self.header(turn, &spec))));
        let exit = self.watch(&turn.case.runner, Some(turn.arm()), &dir, &mut |line| {
            if let Line::Event { event, .. } = &line {
                on_event(event);
            }
            lines.push(self.without_folder(line));
        })?;
        let steps: Vec<Step> = lines.iter().filter_map(step).cloned().collect();
        let unique = Some(self.inputs.unique(turn.case, &steps));
        lines.push(Line::Ledger { steps: self.inputs.ledger(turn.case, &steps), unique });
        if lines.iter().any(|l| matches!(l, Line::Event { event: Event::Done(_), .. })) {
            lines.push(Line::Weights { tensors: weight_changes(&spec)? });
        }
        if let Some(audits) = audits {
            lines.push(Line::Audit(Box::new(audits.findings(self, turn, &spec, &lines)?)));
        }
        lines.push(Line::Exit(exit));
        logs::keep(&dir, self.folder, &turn.trial_id())?;
        std::fs::remove_dir_all(&dir).at(&dir)?;
        Ok(lines)
    }

    /// Runs an arm beside the trials, and returns its steps, or why it failed.
    ///
    /// # Errors
    /// The harness itself fails or is interrupted.
    pub fn child(
        &self,
        runner: &str,
        arm: Option<&str>,
        spec: &Spec,
        dir: &Path,
    ) -> Result<std::result::Result<Vec<Step>, String>> {
        write_spec(spec, dir)?;
        let mut lines = Vec::new();
        let exit = self.watch(runner, arm, dir, &mut |line| lines.push(line))?;
        let told = lines.iter().find_map(|l| match l {
            Line::Event { event: Event::Error(e), .. } => Some(e.what.clone()),
            _ => None,
        });
        if exit.code == Some(0) && told.is_none() {
            return Ok(Ok(lines.iter().filter_map(step).cloned().collect()));
        }
        let last = exit.stderr_tail.lines().last().unwrap_or("it ended without a word").to_string();
        Ok(Err(told.unwrap_or(last)))
    }

    /// The specification of a turn whose files are in `dir`.
    pub fn spec(&self, turn: Turn<'_>, dir: &Path) -> Spec {
        let case = turn.case;
        Spec {
            protocol: PROTOCOL.into(),
            trial_id: turn.trial_id(),
            arm: case.arm.clone(),
            model: ModelSpec {
                config: self.setup.config.clone(),
                weights: self.inputs.weights_path().to_path_buf(),
            },
            data: DataSpec {
                tokens: self.inputs.tokens_path().to_path_buf(),
                plan: self.inputs.plan(case).0.to_path_buf(),
            },
            method: self.inputs.method(case),
            train: case.train.clone(),
            measure: self.setup.resolved.measure.clone(),
            kernels: case.kernels.clone(),
            threads: self.setup.threads,
            device: case.device.clone(),
            options: case.options.clone(),
            precision: case.precision,
            recompute: case.recompute,
            offload: case.offload,
            memory_limit_gb: case.memory_limit_gb,
            save_weights: Some(dir.join("weights.safetensors")),
            audit: turn.audit.map(|steps| AuditTrial {
                steps: steps.min(self.setup.resolved.measure.total_steps()),
                first_weights: dir.join("first.safetensors"),
            }),
        }
    }

    fn header(&self, turn: Turn<'_>, spec: &Spec) -> TrialHeader {
        TrialHeader {
            schema: chronibench_protocol::record::SCHEMA.into(),
            case: turn.case.id.clone(),
            round: turn.round,
            position: turn.position,
            started_at: jiff::Timestamp::now().to_string(),
            spec: self.portable(spec),
            expected_trainable: self.expect.trainable(&spec.method),
            tokens_sha256: self.inputs.tokens_sha256.clone(),
            model: self.expect.shape(),
            attempt: turn.attempt,
            gpu_not_idle: turn.gpu_not_idle.map(String::from),
            rival: self.rival(&turn.case.runner).map(|(rival, environment)| environment.record(rival)),
        }
    }

    /// The specification as it is recorded: paths in the run folder are relative to it, and the model config is named
    /// as in the scenario, so that a record means the same on another machine.
    fn portable(&self, spec: &Spec) -> Spec {
        let mut spec = spec.clone();
        let relative = |path: &mut PathBuf| *path = self.relative(path);
        relative(&mut spec.model.weights);
        relative(&mut spec.data.tokens);
        relative(&mut spec.data.plan);
        spec.save_weights.as_mut().map(relative);
        if let Some(audit) = &mut spec.audit {
            relative(&mut audit.first_weights);
        }
        if let Method::Lora(lora) = &mut spec.method {
            lora.adapter_weights.as_mut().map(relative);
        }
        spec.model.config = PathBuf::from(&self.setup.resolved.model.config);
        spec
    }

    fn without_folder(&self, mut line: Line) -> Line {
        if let Line::Event { event: Event::Done(done), .. } = &mut line {
            done.weights = done.weights.take().map(|p| self.relative(&p));
        }
        line
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.folder).unwrap_or(path).to_path_buf()
    }

    /// Spawns an arm and collects events and samples until it ends or is ended.
    fn watch(
        &self,
        runner: &str,
        arm: Option<&str>,
        dir: &Path,
        collect: &mut dyn FnMut(Line),
    ) -> Result<Exit> {
        let mut worker = self.spawn(runner, arm, dir)?;
        let limit = Duration::from_secs_f64(self.setup.resolved.timeout_s);
        watch::watch(&mut worker, dir, self.gpu, (limit, sample::INTERVAL), collect)
    }

    /// Starts a rival's adapter by the Python of its environment, and any other arm as this program, or another build of it, run
    /// again.
    fn spawn(&self, runner: &str, arm: Option<&str>, dir: &Path) -> Result<Worker> {
        let threads = self.setup.threads;
        if let Some((rival, environment)) = self.rival(runner) {
            let adapter = rival.write_program(&dir.join("program"))?.display().to_string();
            let argv = [vec![adapter], files(dir).to_vec()].concat();
            let variables = environment.variables(threads);
            return Worker::spawn_with(&environment.python, &argv, dir, threads, &variables);
        }
        let program = match arm.and_then(|arm| self.setup.programs.get(without_values(arm))) {
            Some(program) => program.clone(),
            None => child::this_program()?,
        };
        Worker::spawn_program(&program, &self.argv(runner, arm, dir), dir, threads)
    }

    /// The rival of a runner, with its environment; `None` for the arms that this program holds.
    fn rival(&self, runner: &str) -> Option<(&'static Rival, &Environment)> {
        Rival::named(runner).zip(self.setup.environments.get(runner))
    }

    fn argv(&self, runner: &str, arm: Option<&str>, dir: &Path) -> Vec<String> {
        let mut argv: Vec<String> = ["worker", "train", "--arm"].map(String::from).to_vec();
        argv.push(runner.into());
        argv.extend(files(dir));
        if let Some(script) = arm.and_then(|arm| self.setup.scripts.get(arm)) {
            argv.extend(["--script".into(), serde_json::to_string(script).expect("plain data")]);
        }
        if let Some(cheat) = arm.and_then(|arm| self.setup.cheats.get(without_values(arm))) {
            argv.extend(["--cheat".into(), serde_json::to_string(cheat).expect("plain data")]);
        }
        argv
    }
}

fn write_spec(spec: &Spec, dir: &Path) -> Result<()> {
    let path = dir.join("spec.json");
    std::fs::write(&path, serde_json::to_vec_pretty(spec).expect("plain data")).at(&path)
}

/// An arm's name without its sweep's values.
fn without_values(arm: &str) -> &str {
    arm.split('@').next().unwrap_or(arm)
}

/// What every arm is given, whatever its program.
fn files(dir: &Path) -> [String; 4] {
    let path = |name: &str| dir.join(name).display().to_string();
    ["--spec".into(), path("spec.json"), "--events".into(), path("events.jsonl")]
}

fn step(line: &Line) -> Option<&Step> {
    match line {
        Line::Event { event: Event::Step(step), .. } => Some(step),
        _ => None,
    }
}

/// Weights before and after. A save that cannot be read has lost every tensor, and is judged so.
fn weight_changes(spec: &Spec) -> Result<Vec<TensorChange>> {
    let adapter = match &spec.method {
        Method::Full {} => None,
        Method::Lora(lora) => lora.adapter_weights.as_deref(),
    };
    let before: Vec<&Path> = [spec.model.weights.as_path()].into_iter().chain(adapter).collect();
    let after = spec.save_weights.as_deref().expect("the harness asks for them");
    weights::compare(&before, after).or_else(|_| {
        let lost =
            |t: TensorChange| TensorChange { present: Presence::Before, delta_norm: 0.0, changed: 0, ..t };
        let each = before.iter().map(|p| weights::compare(&[p], p));
        Ok(each.collect::<Result<Vec<_>>>()?.into_iter().flatten().map(lost).collect())
    })
}
