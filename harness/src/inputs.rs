//! What every trial of a run shares: token store, batch plans, starting weights. Made once by a child process, then
//! checked here.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use chronibench_protocol::{
    BatchPlan, TokenStore,
    digest::sha256_hex,
    event::TokenCounts,
    record::{BatchArgs, Case, LedgerStep, Packing, ResolvedData},
    spec::{Dtype, LoraArgs, Method},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::{AtPath, Error, Exit, Result},
    runner::child,
    scenario::Setup,
};

/// What `chronibench worker prepare` is asked to make. Paths are absolute.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareSpec {
    /// Hugging Face `config.json`.
    pub config: PathBuf,
    /// Data set and how it becomes samples.
    pub data: PrepareData,
    /// Where the token store goes.
    pub tokens: PathBuf,
    /// Batch plans to make.
    pub plans: Vec<PreparePlan>,
    /// Starting weights to make, if any.
    pub weights: Option<PrepareWeights>,
    /// Worker threads of the pretraining.
    pub threads: Option<usize>,
    /// Devices that must be there.
    #[serde(default)]
    pub devices: Vec<String>,
}

/// Data set and how it becomes samples.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareData {
    /// The file.
    pub path: PathBuf,
    /// `tokenizer.json` or its folder.
    pub tokenizer: PathBuf,
    /// Chat template in place of the tokenizer's.
    pub chat_template: Option<PathBuf>,
    /// Settings; the paths among them are the scenario's.
    pub settings: ResolvedData,
}

/// One batch plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreparePlan {
    /// Where it goes.
    pub path: PathBuf,
    /// Geometry.
    pub batch: BatchArgs,
    /// Optimizer steps.
    pub steps: u32,
}

/// Starting weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareWeights {
    /// Where the model's go.
    pub path: PathBuf,
    /// A Hugging Face folder whose weights they are; drawn without.
    #[serde(default)]
    pub given: Option<PathBuf>,
    /// Seed.
    pub seed: u64,
    /// Training that they get first.
    pub pretrain: Option<Pretrain>,
    /// Rounded to bf16, as arms in bf16 hold frozen weights and as models are published.
    #[serde(default)]
    pub bf16: bool,
    /// Starting adapters.
    pub adapters: Vec<PrepareAdapter>,
}

/// Training of the starting weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrain {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Geometry and length; an own order of samples.
    pub plan: PreparePlan,
}

/// One starting adapter.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareAdapter {
    /// Where it goes.
    pub path: PathBuf,
    /// Rank and projections.
    pub lora: LoraArgs,
}

/// How much to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Tokens and batches: enough to count.
    Tokens,
    /// Starting weights too: enough to run.
    Everything,
}

/// The shared inputs, made and checked.
pub struct Inputs {
    /// All samples.
    pub tokens: TokenStore,
    /// Hash of the samples.
    pub tokens_sha256: String,
    /// What the tokeniser counted: samples, truncated, refused.
    pub report: Value,
    spec: PrepareSpec,
    plans: BTreeMap<PathBuf, BatchPlan>,
}

/// Makes the inputs in `dir`.
///
/// # Errors
/// The data set, tokenizer or model config is unusable, or the inputs that were made do not hold what they must.
pub fn prepare(setup: &Setup, dir: &Path, extent: Extent) -> Result<Inputs> {
    let spec = prepare_spec(setup, dir, extent);
    let spec_path = dir.join("prepare.json");
    std::fs::write(&spec_path, serde_json::to_vec_pretty(&spec).expect("plain data")).at(&spec_path)?;
    let args = ["worker", "prepare", "--spec"].map(String::from);
    let args: Vec<String> = args.into_iter().chain([spec_path.display().to_string()]).collect();
    let answer = child::answer(&args, dir, "prepare", setup.helper_timeout)?;
    let report: Value = serde_json::from_str(&answer)
        .map_err(|e| Error::new(Exit::Trial, format!("the prepare step answered nonsense: {e}"), answer))?;
    let tokens = TokenStore::load(&spec.tokens)
        .map_err(|e| Error::environment(e.to_string(), spec.tokens.display().to_string()))?;
    let mut plans = BTreeMap::new();
    for p in &spec.plans {
        let bytes = std::fs::read(&p.path).at(&p.path)?;
        let plan: BatchPlan = serde_json::from_slice(&bytes).map_err(|e| {
            Error::environment(format!("not a batch plan: {e}"), p.path.display().to_string())
        })?;
        check_plan(&plan, p, &tokens, spec.data.settings.max_length).map_err(|what| {
            Error::new(Exit::NotValid, what, p.path.display().to_string())
                .hint("the batch planner broke its promise; no trial would be comparable")
        })?;
        plans.insert(p.path.clone(), plan);
    }
    Ok(Inputs { tokens_sha256: tokens.sha256(), tokens, report, spec, plans })
}

impl Inputs {
    /// The token store on disk.
    pub fn tokens_path(&self) -> &Path {
        &self.spec.tokens
    }

    /// The starting weights of the model.
    pub fn weights_path(&self) -> &Path {
        &self.spec.weights.as_ref().expect("made for running").path
    }

    /// The batches of a case.
    pub fn plan(&self, case: &Case) -> (&Path, &BatchPlan) {
        let made = self.spec.plans.iter().find(|p| p.batch == case.batch).expect("one for every geometry");
        (&made.path, &self.plans[&made.path])
    }

    /// The method of a case with its starting adapter filled in.
    pub fn method(&self, case: &Case) -> Method {
        match &case.method {
            Method::Full {} => Method::Full {},
            Method::Lora(lora) => {
                let adapters = self.spec.weights.iter().flat_map(|w| &w.adapters);
                let path = adapters.into_iter().find(|a| same_adapter(&a.lora, lora)).map(|a| a.path.clone());
                Method::Lora(LoraArgs { adapter_weights: path, ..lora.clone() })
            }
        }
    }

    /// The tokeniser's report in words: `2000 read, 2000 samples, 34 truncated`.
    pub fn tokenised(&self) -> String {
        let counts = self.report.as_object().into_iter().flatten();
        let told = counts.filter(|(_, n)| n.as_u64() != Some(0));
        told.map(|(what, n)| format!("{n} {}", what.replace('_', " "))).collect::<Vec<_>>().join(", ")
    }

    /// The harness's own count of the steps that an arm reported.
    pub fn ledger(&self, case: &Case, steps: &[chronibench_protocol::event::Step]) -> Vec<LedgerStep> {
        let (_, plan) = self.plan(case);
        steps.iter().map(|s| LedgerStep::count(s, plan, &self.tokens)).collect()
    }

    /// Real tokens of the distinct samples among the timed steps that an arm reported: a sample that comes again adds nothing.
    pub fn unique(&self, case: &Case, steps: &[chronibench_protocol::event::Step]) -> u64 {
        let (_, plan) = self.plan(case);
        let timed = steps.iter().filter(|s| s.phase == chronibench_protocol::event::Phase::Timed);
        let planned = timed.filter_map(|s| plan.steps.get(s.step as usize));
        let samples: std::collections::BTreeSet<u32> = planned.flat_map(|s| s.samples()).collect();
        samples.iter().map(|s| self.tokens.sample(*s as usize).0.len() as u64).sum()
    }

    /// Tokens of a whole trial of a case, counted from its plan.
    pub fn counts(&self, case: &Case) -> TokenCounts {
        let (_, plan) = self.plan(case);
        let mut sum = TokenCounts::default();
        plan.steps.iter().for_each(|s| sum += s.ledger(&self.tokens, plan.pad_token_id).1);
        sum
    }

    /// Deletes the weights, which are large and follow from config and seed, or from a model's folder; tokens and plans stay.
    pub fn delete_weights(&self) -> Result<()> {
        let Some(weights) = &self.spec.weights else { return Ok(()) };
        for path in weights.adapters.iter().map(|a| &a.path).chain([&weights.path]) {
            std::fs::remove_file(path).at(path)?;
        }
        Ok(())
    }
}

fn same_adapter(a: &LoraArgs, b: &LoraArgs) -> bool {
    a.r == b.r && a.target_modules == b.target_modules
}

fn prepare_spec(setup: &Setup, dir: &Path, extent: Extent) -> PrepareSpec {
    let r = &setup.resolved;
    let plan = |name: &str, batch: BatchArgs, steps: u32| PreparePlan {
        path: dir.join(format!(
            "{name}-{}-b{}-a{}.json",
            batch.packing.name(),
            batch.per_device_train_batch_size,
            batch.gradient_accumulation_steps
        )),
        batch,
        steps,
    };
    let mut plans: Vec<PreparePlan> = Vec::new();
    let mut adapters: Vec<PrepareAdapter> = Vec::new();
    for case in &r.cases {
        if !plans.iter().any(|p| p.batch == case.batch) {
            plans.push(plan("plan", case.batch.clone(), r.measure.total_steps()));
        }
        if let Method::Lora(lora) = &case.method
            && !adapters.iter().any(|a| same_adapter(&a.lora, lora))
        {
            let id = &sha256_hex(lora.target_modules.join(",").as_bytes())[..8];
            let path = dir.join(format!("adapter-r{}-{id}.safetensors", lora.r));
            adapters.push(PrepareAdapter { path, lora: lora.clone() });
        }
    }
    let pretrain = setup.pretrain.as_ref().map(|p| {
        let rows = p.per_device_train_batch_size;
        let batch = BatchArgs {
            packing: Packing::Bfd,
            per_device_train_batch_size: rows,
            gradient_accumulation_steps: 1,
        };
        Pretrain { learning_rate: p.learning_rate, plan: plan("pretrain", batch, p.steps) }
    });
    let weights = (extent == Extent::Everything).then(|| PrepareWeights {
        path: dir.join("init.safetensors"),
        given: setup.weights.clone(),
        seed: r.model.init_seed,
        pretrain,
        bf16: r.cases.iter().any(|c| c.device != "cpu" && c.precision.dtype != Some(Dtype::F32)),
        adapters,
    });
    let mut devices: Vec<String> = r.cases.iter().map(|c| c.device.clone()).collect();
    devices.sort();
    devices.dedup();
    // Plans and counts need no device.
    devices.retain(|_| extent == Extent::Everything);
    PrepareSpec {
        config: setup.config.clone(),
        data: PrepareData {
            path: setup.data.clone(),
            tokenizer: setup.tokenizer.clone(),
            chat_template: setup.chat_template.clone(),
            settings: r.data.clone(),
        },
        tokens: dir.join("tokens.safetensors"),
        plans,
        weights,
        threads: setup.threads,
        devices,
    }
}

/// The harness does not take the planner's word: rows hold known samples and fit, and every epoch has each sample once.
fn check_plan(
    plan: &BatchPlan,
    asked: &PreparePlan,
    tokens: &TokenStore,
    max_length: u32,
) -> Result<(), String> {
    let batch = &asked.batch;
    if plan.steps.len() < asked.steps as usize || plan.packing != batch.packing.name() {
        return Err(format!("{} steps of packing '{}' were planned", plan.steps.len(), plan.packing));
    }
    let samples = batch.per_device_train_batch_size;
    let (rows, longest) = match batch.packing {
        Packing::PaddingFree => (1, samples.saturating_mul(max_length)),
        Packing::None | Packing::Bfd | Packing::Ff => (samples, max_length),
    };
    let lengths = tokens.lengths();
    let mut seen = vec![false; lengths.len()];
    let mut left = lengths.len();
    for (index, step) in plan.steps.iter().enumerate() {
        if step.micro_batches.len() != batch.gradient_accumulation_steps as usize {
            return Err(format!("step {index} has {} micro-batches", step.micro_batches.len()));
        }
        for micro in &step.micro_batches {
            if micro.rows.len() != rows as usize || micro.row_slots > longest {
                return Err(format!("step {index}: {} rows of {} slots", micro.rows.len(), micro.row_slots));
            }
            for row in &micro.rows {
                let mut used = 0;
                for &s in row {
                    let length =
                        lengths.get(s as usize).ok_or(format!("step {index}: unknown sample {s}"))?;
                    used += length;
                    if std::mem::replace(&mut seen[s as usize], true) {
                        return Err(format!("step {index}: sample {s} comes twice in one epoch"));
                    }
                    left -= 1;
                    if left == 0 {
                        seen.fill(false);
                        left = lengths.len();
                    }
                }
                if used > micro.row_slots as usize {
                    return Err(format!("step {index}: {used} tokens in a row of {}", micro.row_slots));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use chronibench_protocol::plan::{MicroBatch, StepPlan};

    use super::*;

    fn check(rows: &[&[u32]], slots: u32) -> Result<(), String> {
        check_packed(Packing::Bfd, rows, slots)
    }

    fn check_packed(packing: Packing, rows: &[&[u32]], slots: u32) -> Result<(), String> {
        let mut tokens = TokenStore::new();
        tokens.push(&[1, 2], &[1, 1]);
        tokens.push(&[3], &[1]);
        let step = |row: &&[u32]| StepPlan {
            micro_batches: vec![MicroBatch { row_slots: slots, rows: vec![row.to_vec()] }],
        };
        let plan = BatchPlan {
            packing: packing.name().into(),
            max_length: 4,
            pad_token_id: 0,
            steps: rows.iter().map(step).collect(),
        };
        let batch = BatchArgs { packing, per_device_train_batch_size: 1, gradient_accumulation_steps: 1 };
        check_plan(&plan, &PreparePlan { path: "p".into(), batch, steps: rows.len() as u32 }, &tokens, 4)
    }

    #[test]
    fn plans_are_not_taken_on_trust() {
        assert_eq!(check(&[&[0, 1], &[1], &[0]], 3), Ok(()));
        assert!(check(&[&[0], &[0]], 3).unwrap_err().contains("twice"));
        assert!(check(&[&[0, 1]], 2).unwrap_err().contains("3 tokens in a row of 2"));
        assert!(check(&[&[7]], 3).unwrap_err().contains("unknown sample 7"));
        assert!(check(&[&[0]], 5).unwrap_err().contains("5 slots"));
        assert!(check_packed(Packing::PaddingFree, &[&[0, 1]], 5).unwrap_err().contains("5 slots"));
    }
}
