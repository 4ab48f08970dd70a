//! Audits: what the harness looks up by itself to tell whether an arm really trained.
//!
//! Every case gets one *audit trial* of a few untimed steps, whose weights are saved after the first step and after the last.
//! The harness infers rates from the files (`updates`), has the native arm repeat the steps as a `reference`, evaluates the
//! weights on samples that nobody trained on (`probe`), and checks that documents of a row do not see each other
//! (`isolation`). Timed trials are held against the same reference and probe. Findings are stored; verdicts follow from them.

mod again;
mod isolation;
mod probe;
mod reference;
mod updates;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use chronibench_protocol::{
    Event, Spec,
    audit::{AuditArgs, Findings, Peak},
    record::{Case, Line, Skipped},
    spec::{DataSpec, Method, ModelSpec},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Exit, Result},
    estimate,
    runner::{Bench, Turn, child},
};
pub use again::again;
use probe::ProbeSet;
pub(crate) use reference::forget;
use reference::{Answers, References};
use updates::Saved;

/// What `chronibench worker evaluate` is asked. Paths are absolute.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateSpec {
    /// The model; its weights are not read.
    pub model: ModelSpec,
    /// What to evaluate on.
    pub data: DataSpec,
    /// Whether there are adapters, and of which shape.
    pub method: Method,
    /// Where to compute.
    pub device: String,
    /// Sets of files, each with all tensors of the model and the adapters.
    pub weights: Vec<Vec<PathBuf>>,
}

/// What the audits of a run share.
pub struct Audits {
    args: AuditArgs,
    peaks: BTreeMap<String, Peak>,
    probe: Option<ProbeSet>,
    references: RefCell<References>,
}

impl Audits {
    /// Measures the machine and chooses the samples to evaluate on; nothing where the scenario wants no audits.
    ///
    /// # Errors
    /// The harness is interrupted, or cannot write.
    pub fn prepare(bench: &Bench<'_>) -> Result<Option<Self>> {
        let Some(args) = bench.setup.resolved.audit.clone().filter(|a| a.steps > 0) else { return Ok(None) };
        let cases: Vec<&Case> = bench.setup.resolved.audited().collect();
        let mut peaks = BTreeMap::new();
        for case in &bench.setup.resolved.cases {
            if !peaks.contains_key(&case.device)
                && let Some(peak) = peak(bench, &case.device)?
            {
                peaks.insert(case.device.clone(), peak);
            }
        }
        let probe = match cases.first() {
            Some(case) if args.probe_samples > 0 => ProbeSet::choose(bench, &args, &case.device)?,
            _ => None,
        };
        Ok(Some(Self { args, peaks, probe, references: RefCell::default() }))
    }

    /// The turn of a case's audit trial; none for an arm that trains nothing and says so.
    pub fn turn<'c>(&self, position: usize, case: &'c Case) -> Option<Turn<'c>> {
        let audit = Some(self.args.steps);
        case.trains().then_some(Turn { audit, ..Turn::first(case, position as u32) })
    }

    /// What the files and events of a trial tell, while the files are there.
    ///
    /// # Errors
    /// The harness is interrupted, or cannot write. An audit that cannot be made is left out, and that is said; where the arm gave nothing
    /// for it, it is held against it.
    pub fn findings(
        &self,
        bench: &Bench<'_>,
        turn: Turn<'_>,
        spec: &Spec,
        lines: &[Line],
    ) -> Result<Findings> {
        let mut found = Findings { peak: self.peaks.get(&spec.device).cloned(), ..Findings::default() };
        let done = lines.iter().any(|l| matches!(l, Line::Event { event: Event::Done(_), .. }));
        if !done || !turn.case.trains() {
            return Ok(found);
        }
        let answers = match turn.audit {
            Some(_) => {
                // The arm's own trials first: no arm runs while the reference's answers are there.
                self.isolate(bench, turn, spec, &mut found)?;
                self.look_into(bench, turn, spec, &mut found)?
            }
            None => {
                let figures = || self.references.borrow_mut().figures(bench, turn.case, &self.args);
                found.replay = attempt("replay", &mut found.skipped, figures)?.flatten();
                None
            }
        };
        let Some(set) = &self.probe else {
            skip(
                &mut found.skipped,
                "probe",
                "no sample is left that no trial trains on",
                "give more data, or fewer steps",
            );
            return Ok(found);
        };
        let saved = spec.save_weights.as_deref().expect("the harness asks for them");
        let of_reference = answers.as_ref().map(Answers::last);
        found.probe = attempt("probe", &mut found.skipped, || set.probe(bench, spec, saved, of_reference))?;
        Ok(found)
    }

    /// What the weights of an audit trial tell, beside the reference's.
    fn look_into(
        &self,
        bench: &Bench<'_>,
        turn: Turn<'_>,
        spec: &Spec,
        found: &mut Findings,
    ) -> Result<Option<Answers>> {
        let made = || self.references.borrow_mut().answers(bench, turn.case, &self.args);
        let (replay, answers) = attempt("replay", &mut found.skipped, made)?.flatten().unzip();
        found.replay = replay;
        let audit = spec.audit.as_ref().expect("of an audit trial");
        let trainable = bench.expect.trainable(&spec.method);
        let lacking = updates::lacking(&audit.first_weights, &trainable);
        let first = Some(audit.first_weights.as_path()).filter(|_| lacking.is_none());
        if let Some(why) = lacking {
            skip(&mut found.refused, "update", &why, "let the arm heed spec.audit");
        }
        let start = start(spec);
        let last = spec.save_weights.as_deref().expect("the harness asks for them");
        let saved = Saved { start: &start, first, last };
        let beside = answers.as_ref().map(|a| (a.first(), a.last()));
        let looked = || updates::look(spec, &trainable, &saved, beside);
        if let Some((updates, tensors)) = attempt("update", &mut found.skipped, looked)? {
            found.updates = updates;
            if let Some(replay) = &mut found.replay {
                replay.tensors = tensors;
            }
        }
        Ok(answers)
    }

    /// Whether documents of a row see each other. An arm that trains on such rows all along, and fails on one of two documents, is held
    /// to have something to hide.
    fn isolate(&self, bench: &Bench<'_>, turn: Turn<'_>, spec: &Spec, found: &mut Findings) -> Result<()> {
        if !self.args.isolation || !isolation::applies(turn.case) {
            return Ok(());
        }
        let looked = attempt("isolation", &mut found.skipped, || isolation::look(bench, turn, spec))?;
        match looked {
            Some(Ok(isolation)) => found.isolation = Some(isolation),
            Some(Err(why)) => {
                let list = match isolation::is_usual(bench.inputs.plan(turn.case).1) {
                    true => &mut found.refused,
                    false => &mut found.skipped,
                };
                skip(list, "isolation", &why, "let the arm train on a row of two documents");
            }
            None => {}
        }
        Ok(())
    }
}

/// The files that a trial starts from.
fn start(spec: &Spec) -> Vec<&Path> {
    let adapter = match &spec.method {
        Method::Full {} => None,
        Method::Lora(lora) => lora.adapter_weights.as_deref(),
    };
    [spec.model.weights.as_path()].into_iter().chain(adapter).collect()
}

/// The user wants to leave, or the machine hangs.
fn ends(e: &Error) -> bool {
    e.exit == Exit::Interrupted || e.fatal
}

/// Runs an audit; one that fails is left out and told, unless the run ends with it.
fn attempt<T>(
    what: &str,
    skipped: &mut Vec<Skipped>,
    audit: impl FnOnce() -> Result<T>,
) -> Result<Option<T>> {
    match audit() {
        Ok(found) => Ok(Some(found)),
        Err(e) if ends(&e) => Err(e),
        Err(Error { what: why, hint, .. }) => {
            skip(skipped, what, &why, if hint.is_empty() { "see the message" } else { &hint });
            Ok(None)
        }
    }
}

fn skip(skipped: &mut Vec<Skipped>, what: &str, why: &str, hint: &str) {
    skipped.push(Skipped { what: what.into(), why: why.into(), hint: hint.into() });
}

/// The fastest product of a device; nothing where it cannot be measured.
fn peak(bench: &Bench<'_>, device: &str) -> Result<Option<Peak>> {
    let args = ["worker", "calibrate", "--device", device].map(String::from);
    match child::answer(&args, &bench.folder.join("work"), "calibrate", bench.setup.helper_timeout) {
        Ok(answer) => Ok(estimate::rate(&answer).map(|gflops| Peak {
            gflops,
            method: match device {
                "cpu" => "best f32 product of 768³ in this session".into(),
                _ => "best bf16 product of 8192³ in this session".into(),
            },
        })),
        Err(e) if ends(&e) => Err(e),
        Err(_) => Ok(None),
    }
}
