//! The reference: the native arm repeats the audited steps of a case, on the processor in f32 where that is cheap enough, else
//! on the case's own device.

use std::{
    collections::BTreeMap,
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use chronibench_protocol::{
    Spec,
    audit::{AuditArgs, Replay},
    event::TokenCounts,
    record::Case,
    spec::{Dtype, PrecisionArgs, States},
};
use tempfile::TempDir;

use crate::{
    error::{AtPath, Error, Result},
    runner::{Bench, Turn},
};

/// A GPU is given this many times the work of a processor.
const GPU_FACTOR: f64 = 100.0;

/// Weights of a reference, which go when this does.
pub struct Answers {
    _folder: TempDir,
    first: PathBuf,
    last: PathBuf,
}

impl Answers {
    /// Weights after the first step.
    pub fn first(&self) -> &Path {
        &self.first
    }

    /// Weights after the last step.
    pub fn last(&self) -> &Path {
        &self.last
    }
}

/// Losses and norms of every reference that was made; equal settings share them, and a reference that failed is not tried again.
///
/// Weights are not kept: an arm whose settings are those of an arm before it would find in them what it is to reach. They are made anew
/// for every audit trial, after the arm has ended, and are gone before the next one begins.
#[derive(Default)]
pub struct References(BTreeMap<String, Option<Replay>>);

impl References {
    /// What the reference of a case came to; nothing where the scenario wants none.
    ///
    /// # Errors
    /// It costs more than the scenario allows, or fails.
    pub fn figures(&mut self, bench: &Bench<'_>, case: &Case, args: &AuditArgs) -> Result<Option<Replay>> {
        self.of(bench, case, args, false).map(|made| made.map(|(figures, _)| figures))
    }

    /// The same with its weights.
    ///
    /// # Errors
    /// It costs more than the scenario allows, or fails.
    pub fn answers(
        &mut self,
        bench: &Bench<'_>,
        case: &Case,
        args: &AuditArgs,
    ) -> Result<Option<(Replay, Answers)>> {
        let made = self.of(bench, case, args, true)?;
        Ok(made.and_then(|(figures, answers)| Some((figures, answers?))))
    }

    /// The known figures, or new ones; new ones with `weights`.
    fn of(
        &mut self,
        bench: &Bench<'_>,
        case: &Case,
        args: &AuditArgs,
        weights: bool,
    ) -> Result<Option<(Replay, Option<Answers>)>> {
        if args.replay_tflop <= 0.0 {
            return Ok(None);
        }
        let device = device(bench, case, args)?;
        let key =
            serde_json::to_string(&(&case.method, &case.train, &case.batch, &device)).expect("plain data");
        match self.0.get(&key) {
            Some(None) => return Err(failed("it failed for an equal case")),
            Some(Some(known)) if !weights => return Ok(Some((known.clone(), None))),
            _ => {}
        }
        self.0.insert(key.clone(), None);
        let (figures, answers) = make(bench, case, &device, args.steps)?;
        self.0.insert(key, Some(figures.clone()));
        Ok(Some((figures, Some(answers))))
    }
}

fn failed(why: &str) -> Error {
    Error::environment(format!("no reference: {why}"), "the reference")
        .hint("set audit.replay_tflop to 0 to do without")
}

/// Where the reference can run for what the scenario allows.
fn device(bench: &Bench<'_>, case: &Case, args: &AuditArgs) -> Result<String> {
    let shape = bench.expect.shape();
    let (_, plan) = bench.inputs.plan(case);
    let mut counts = TokenCounts::default();
    let steps = plan.steps.iter().take(args.steps as usize);
    steps.for_each(|s| counts += s.ledger(&bench.inputs.tokens, plan.pad_token_id).1);
    let parameters = (shape.block_matmul_params + shape.head_params) as f64;
    let tflop = 6.0 * parameters * counts.slots as f64 / 1e12;
    if tflop <= args.replay_tflop {
        Ok("cpu".into())
    } else if case.device != "cpu" && tflop <= GPU_FACTOR * args.replay_tflop {
        Ok(case.device.clone())
    } else {
        let why = format!("a replay takes {tflop:.1}·10¹² operations, {} are allowed", args.replay_tflop);
        Err(failed(&why).hint("raise audit.replay_tflop"))
    }
}

fn make(bench: &Bench<'_>, case: &Case, device: &str, steps: u32) -> Result<(Replay, Answers)> {
    let private = private_folder(bench.folder)?;
    let folder = private.path();
    let on_cpu = device == "cpu";
    // In f32 throughout: a GPU would else take bf16.
    let f32 = PrecisionArgs { dtype: Some(Dtype::F32), states: Some(States::F32) };
    let spec = Spec {
        trial_id: "reference".into(),
        arm: "reference".into(),
        kernels: BTreeMap::new(),
        device: device.into(),
        precision: if on_cpu { PrecisionArgs::default() } else { f32 },
        recompute: Default::default(),
        offload: false,
        memory_limit_gb: None,
        ..bench.spec(Turn { audit: Some(steps), ..Turn::first(case, 0) }, folder)
    };
    let steps = bench.child("native", None, &spec, folder)?.map_err(|why| failed(&why))?;
    let figures = Replay {
        reference: format!("{device}, f32"),
        losses: steps.iter().map(|s| s.loss).collect(),
        grad_norms: steps.iter().map(|s| s.grad_norm).collect(),
        tensors: Vec::new(),
    };
    let first = spec.audit.expect("of an audit trial").first_weights;
    let last = spec.save_weights.expect("the harness asks for them");
    Ok((figures, Answers { _folder: private, first, last }))
}

/// Begins the name of a folder that a reference of a run works in.
fn prefix(run: &Path) -> String {
    format!(".{}.reference-", run.file_name().unwrap_or_default().to_string_lossy())
}

/// A folder for nobody else, beside the run folder: on a disk that has room for weights, and in no path that an arm is given.
fn private_folder(run: &Path) -> Result<TempDir> {
    let beside = run.parent().unwrap_or(run);
    let prefix = prefix(run);
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix(&prefix).permissions(Permissions::from_mode(0o700));
    builder.tempdir_in(beside).or_else(|_| builder.tempdir()).at(beside)
}

/// Removes what a harness that was killed has left of its references.
///
/// # Errors
/// It cannot be removed.
pub fn forget(run: &Path) -> Result<()> {
    let beside = run.parent().unwrap_or(run);
    let prefix = prefix(run);
    for entry in std::fs::read_dir(beside).at(beside)? {
        let path = entry.at(beside)?.path();
        let is_ours = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix));
        if is_ours && path.is_dir() {
            std::fs::remove_dir_all(&path).at(&path)?;
        }
    }
    Ok(())
}
