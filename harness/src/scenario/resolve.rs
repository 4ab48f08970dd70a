//! Raw → resolved: defaults filled in, files found and hashed, cases expanded and ordered.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use chronibench_protocol::{
    digest::{sha256_hex, sha256_of_file},
    record::{Case, Resolved, ResolvedData, ResolvedModel, ResolvedWeights, Skipped},
};

use super::{
    Scenario,
    cheat::Cheat,
    kernels::Offer,
    located::Word,
    matrix, order, raw,
    raw::{MockScript, Overlong, RawPretrain},
    settings,
    source::{Source, suggestion},
    sweep,
};
use crate::{
    env::Environment,
    error::{AtPath, Error, Exit, Result},
};

/// Version of `resolved.yaml`.
pub const SCHEMA: &str = "chronibench.resolved/1";

/// What of a scenario to run.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only these arms; all when empty.
    pub arms: Vec<String>,
    /// Only cases whose id contains this.
    pub case: Option<String>,
    /// Instead of the scenario's number of trials.
    pub trials: Option<u32>,
}

/// A scenario ready to run: the record of it, and what only the running needs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What is recorded.
    pub resolved: Resolved,
    /// The scenario file, as it was given.
    pub file: PathBuf,
    /// Hash of the scenario's text with the changes of the command line.
    pub changed_sha256: String,
    /// Model config, absolute.
    pub config: PathBuf,
    /// Folder or file of the starting weights, absolute; they are drawn without.
    pub weights: Option<PathBuf>,
    /// Data set, absolute.
    pub data: PathBuf,
    /// Tokenizer, absolute.
    pub tokenizer: PathBuf,
    /// Chat template in place of the tokenizer's, absolute.
    pub chat_template: Option<PathBuf>,
    /// Training of the starting weights.
    pub pretrain: Option<RawPretrain>,
    /// How long a helper of the harness may take.
    pub helper_timeout: Duration,
    /// Worker threads of every arm.
    pub threads: Option<usize>,
    /// Runner → its environment, for every rival that a case names; filled in before a run.
    pub environments: BTreeMap<String, Environment>,
    /// Arm, with its sweep's values → script, for mock arms.
    pub scripts: BTreeMap<String, MockScript>,
    /// Arm → program that plays the worker; this one where none is named.
    pub programs: BTreeMap<String, PathBuf>,
    /// Arm → lie, for arms that are to be caught.
    pub cheats: BTreeMap<String, Cheat>,
}

/// Checks and expands a scenario.
///
/// # Errors
/// Usage errors point into the file; a missing file is an environment error that points there too.
pub fn resolve(scenario: &Scenario, offer: &Offer, filter: &Filter) -> Result<Setup> {
    let (raw, source) = (&scenario.raw, &scenario.source);
    if raw.schema.as_str() != raw::SCHEMA {
        return Err(source.unknown("schema", &raw.schema, &[raw::SCHEMA]));
    }
    let raw = &raw::Raw { trials: filter.trials.unwrap_or(raw.trials), ..raw.clone() };
    settings::check_measure(raw, source)?;
    let named = [
        (Some(&raw.data.template), "template", &offer.templates),
        (raw.data.format.as_ref(), "format", &offer.formats),
    ];
    for (word, kind, known) in named {
        if let Some(word) = word.filter(|word| !known.contains(&word.as_str())) {
            return Err(source.unknown(kind, word, known));
        }
    }
    let device = raw.device.as_ref().map_or("cpu", Word::as_str);
    let numbered = device.strip_prefix("cuda:").is_some_and(|n| n.parse::<usize>().is_ok());
    if let Some(word) = raw.device.as_ref().filter(|_| !numbered && !["cpu", "cuda"].contains(&device)) {
        return Err(source.unknown("device", word, &["cpu", "cuda", "cuda:0"]));
    }
    let cases = matrix::expand(raw, source, offer.seams(device))?;
    let comparisons = matrix::comparisons(raw, source, &cases)?;
    let (cases, skipped) = selected(cases, filter, raw)?;
    let base = scenario.path.parent().unwrap_or(Path::new(""));
    let config = find(base, &raw.model.config, "model config", source)?;
    let weights = raw.model.weights.as_ref();
    let weights = weights.map(|word| find(base, word, "weights", source)).transpose()?;
    let data = find(base, &raw.data.path, "data set", source)?;
    let tokenizer = find(base, &raw.data.tokenizer, "tokenizer", source)?;
    let chat_template = raw.data.chat_template_path.as_ref();
    let chat_template = chat_template.map(|word| find(base, word, "chat template", source)).transpose()?;
    let mut ids: Vec<String> = cases.iter().map(|c| c.id.clone()).collect();
    ids.extend(cases.iter().filter_map(|c| c.sweep.as_ref()).map(|s| s.of.clone()));
    let resolved = Resolved {
        schema: SCHEMA.to_string(),
        name: raw.name.text.clone(),
        title: raw.title.clone(),
        description: raw.description.clone(),
        scenario_sha256: sha256_hex(scenario.original.as_bytes()),
        data: resolved_data(raw, &data)?,
        model: resolved_model(raw, &config, weights.as_deref())?,
        trials: raw.trials,
        timeout_s: raw.timeout_s,
        retries: raw.retries,
        measure: raw.measure.clone(),
        order: order::interleaved(&cases, raw.trials),
        comparisons: comparisons
            .into_iter()
            .filter(|c| ids.contains(&c.case) && ids.contains(&c.against))
            .collect(),
        audit: Some(raw.audit.clone().unwrap_or_default()),
        cases,
        skipped,
    };
    let scripts = sweep::scripts(&raw.arms);
    let cheats = raw.arms.0.iter().filter_map(|(k, a)| Some((k.text.clone(), a.cheat?))).collect();
    Ok(Setup {
        resolved,
        file: scenario.path.clone(),
        changed_sha256: sha256_hex(source.text.as_bytes()),
        config,
        weights,
        data,
        tokenizer,
        chat_template,
        pretrain: raw.model.pretrain.clone(),
        helper_timeout: Duration::from_secs_f64(raw.helper_timeout_s),
        threads: raw.threads,
        environments: BTreeMap::new(),
        scripts,
        programs: BTreeMap::new(),
        cheats,
    })
}

type Cases = Vec<Case>;

/// The arm of a case with its sweep's values, `unsloth@none,full`, or the seam that it is without, `chronicals~norm`.
pub fn label(case: &Case) -> &str {
    case.id.split('/').next().expect("a split has a first part")
}

/// Applies the command line's selection; what it leaves out is recorded.
fn selected(cases: Cases, filter: &Filter, raw: &raw::Raw) -> Result<(Cases, Vec<Skipped>)> {
    let arms: Vec<&str> = raw.arms.keys().collect();
    for arm in &filter.arms {
        if !arms.contains(&arm.as_str()) && !cases.iter().any(|c| label(c) == arm) {
            let e = Error::usage(format!("unknown arm '{arm}'"), format!("--arm {arm}"));
            return Err(e.hint(suggestion(arm, &arms)));
        }
    }
    let arm_ok =
        |c: &Case| filter.arms.is_empty() || filter.arms.iter().any(|a| *a == c.arm || a == label(c));
    let id_ok = |id: &str| filter.case.as_deref().is_none_or(|part| id.contains(part));
    let (kept, dropped): (Vec<_>, Vec<_>) = cases.into_iter().partition(|c| arm_ok(c) && id_ok(&c.id));
    if kept.is_empty() {
        let at = format!("-k {}", filter.case.as_deref().unwrap_or("(none)"));
        let ids: Vec<String> = dropped.into_iter().map(|c| c.id).collect();
        return Err(
            Error::usage("no case is selected", at).hint(format!("the cases are: {}", ids.join(", ")))
        );
    }
    let skipped = dropped.into_iter().map(|c| Skipped {
        what: c.id,
        why: "not selected on the command line".into(),
        hint: "run without --arm and -k".into(),
    });
    let skipped = skipped.collect();
    Ok((kept, skipped))
}

/// A file named in the scenario, relative to it.
fn find(base: &Path, word: &Word, kind: &str, source: &Source) -> Result<PathBuf> {
    let path = base.join(&word.text);
    path.canonicalize().map_err(|e| {
        let what = format!("{kind} '{}' cannot be read: {e}", word.text);
        let hint = format!("paths are relative to the scenario; this one means {}", path.display());
        source.error(Exit::Environment, word.place, what).hint(hint)
    })
}

pub(crate) fn hashed(path: &Path) -> Result<String> {
    Ok(sha256_hex(&std::fs::read(path).at(path)?))
}

/// Of a file of weights, or of all in a folder.
fn hashed_weights(path: &Path) -> Result<String> {
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        let all = std::fs::read_dir(path).at(path)?.map(|entry| Ok(entry.at(path)?.path()));
        files = all.collect::<Result<_>>()?;
        files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
        files.sort();
    }
    let hashes = files.iter().map(|f| sha256_of_file(f).at(f)).collect::<Result<Vec<_>>>()?;
    Ok(if let [one] = &hashes[..] { one.clone() } else { sha256_hex(hashes.concat().as_bytes()) })
}

fn resolved_data(raw: &raw::Raw, path: &Path) -> Result<ResolvedData> {
    let d = &raw.data;
    Ok(ResolvedData {
        path: d.path.text.clone(),
        sha256: hashed(path)?,
        format: d.format.as_ref().map(|word| word.text.clone()),
        columns: d.columns.clone(),
        template: d.template.text.clone(),
        chat_template_path: d.chat_template_path.as_ref().map(|word| word.text.clone()),
        chat_template_kwargs: d.chat_template_kwargs.clone(),
        max_length: d.max_length,
        overlong: match d.overlong {
            Overlong::Truncate => "truncate".into(),
            Overlong::Refuse => "refuse".into(),
            Overlong::Wrapped => "wrapped".into(),
        },
        completion_only_loss: d.completion_only_loss,
        assistant_only_loss: d.assistant_only_loss,
        eos_token: d.eos_token.clone(),
        pad_token: d.pad_token.clone(),
        seed: d.seed,
    })
}

fn resolved_model(raw: &raw::Raw, path: &Path, weights: Option<&Path>) -> Result<ResolvedModel> {
    let of = |(word, path): (&Word, &Path)| {
        Ok(ResolvedWeights { path: word.text.clone(), sha256: hashed_weights(path)? })
    };
    Ok(ResolvedModel {
        config: raw.model.config.text.clone(),
        sha256: hashed(path)?,
        weights: raw.model.weights.as_ref().zip(weights).map(of).transpose()?,
        init_seed: raw.model.init_seed,
        pretrain_steps: raw.model.pretrain.as_ref().map_or(0, |p| p.steps),
    })
}
