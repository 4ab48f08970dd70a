//! The reference: the native arm repeats the audited steps of a case, on the processor in f32 where that is cheap enough, else
//! on the case's own device.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    rc::Rc,
};

use chronibench_protocol::{
    Spec,
    audit::AuditArgs,
    event::TokenCounts,
    record::Case,
    spec::{Dtype, PrecisionArgs, States},
};

use crate::{
    error::{AtPath, Error, Result},
    runner::{Bench, Turn},
};

/// A GPU is given this many times the work of a processor.
const GPU_FACTOR: f64 = 100.0;

/// What the reference did.
pub struct Reference {
    /// `cpu, f32`.
    pub name: String,
    /// Loss of every step.
    pub losses: Vec<f64>,
    /// Gradient norm of every step.
    pub grad_norms: Vec<f64>,
    first: PathBuf,
    last: PathBuf,
}

impl Reference {
    /// Weights after the first step.
    pub fn first(&self) -> &Path {
        &self.first
    }

    /// Weights after the last step.
    pub fn last(&self) -> &Path {
        &self.last
    }
}

/// Every reference that was made; equal settings share one, and one that failed is not tried again.
#[derive(Default)]
pub struct References(BTreeMap<String, Option<Rc<Reference>>>);

impl References {
    /// The reference of a case; nothing where the scenario wants none.
    ///
    /// # Errors
    /// It costs more than the scenario allows, or fails.
    pub fn of(&mut self, bench: &Bench<'_>, case: &Case, args: &AuditArgs) -> Result<Option<Rc<Reference>>> {
        if args.replay_tflop <= 0.0 {
            return Ok(None);
        }
        let device = device(bench, case, args)?;
        let key =
            serde_json::to_string(&(&case.method, &case.train, &case.batch, &device)).expect("plain data");
        if let Some(known) = self.0.get(&key) {
            return known.clone().map(Some).ok_or_else(|| failed("it failed for an equal case"));
        }
        let folder = bench.folder.join("work").join(format!("reference-{:03}", self.0.len()));
        self.0.insert(key.clone(), None);
        let made = Rc::new(make(bench, case, &device, args.steps, &folder)?);
        self.0.insert(key, Some(made.clone()));
        Ok(Some(made))
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

fn make(bench: &Bench<'_>, case: &Case, device: &str, steps: u32, folder: &Path) -> Result<Reference> {
    std::fs::create_dir_all(folder).at(folder)?;
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
    let (losses, grad_norms) = bench
        .child("native", None, &spec, folder)?
        .map(|steps| (steps.iter().map(|s| s.loss).collect(), steps.iter().map(|s| s.grad_norm).collect()))
        .map_err(|why| failed(&why))?;
    let audit = spec.audit.expect("of an audit trial");
    let last = spec.save_weights.expect("the harness asks for them");
    Ok(Reference { name: format!("{device}, f32"), losses, grad_norms, first: audit.first_weights, last })
}
