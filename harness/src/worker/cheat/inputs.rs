//! Lies about what is trained on, and with which settings; and about what is saved.

use std::path::Path;

use chronibench_protocol::{
    BatchPlan, Spec, TokenStore,
    event::Failure,
    spec::{DataSpec, Method},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{error::Exit, scenario::cheat::Cheat};

type Lied<T> = Result<T, (Exit, Failure)>;

/// A failure of the machine, not of the lie.
pub fn failure(e: &dyn std::fmt::Display, path: &Path) -> (Exit, Failure) {
    let hint = "check the path and the disk".into();
    (Exit::Environment, Failure { what: e.to_string(), at: path.display().to_string(), hint })
}

/// The specification that is really followed; files that differ are written to `dir`.
pub fn tampered(spec: &Spec, cheat: Cheat, dir: &Path) -> Lied<Spec> {
    let mut spec = spec.clone();
    let rate = spec.train.learning_rate;
    if let Method::Lora(lora) = &mut spec.method {
        let ratio = lora.loraplus_lr_ratio;
        match cheat {
            Cheat::DeadLoraPlus => lora.loraplus_lr_ratio = 1.0,
            Cheat::SwappedLoraPlus => {
                spec.train.learning_rate = rate * ratio;
                lora.loraplus_lr_ratio = 1.0 / ratio;
            }
            _ => {}
        }
    }
    match cheat {
        Cheat::WrongLearningRate => spec.train.learning_rate = rate / 2.0,
        Cheat::NoClipping => spec.train.max_grad_norm = 0.0,
        Cheat::FewerMicroBatches => with_plan(&mut spec, dir, |plan| {
            plan.steps.iter_mut().for_each(|s| s.micro_batches.truncate(1));
        })?,
        Cheat::DuplicatedData => with_plan(&mut spec, dir, |plan| {
            let first = plan.steps[0].clone();
            plan.steps.fill(first);
        })?,
        Cheat::ReplayedEvents => with_plan(&mut spec, dir, |plan| plan.steps.reverse())?,
        Cheat::TruncatedDocuments => with_tokens(&mut spec, dir)?,
        _ => {}
    }
    Ok(spec)
}

fn with_plan(spec: &mut Spec, dir: &Path, change: impl FnOnce(&mut BatchPlan)) -> Lied<()> {
    let from = &spec.data.plan;
    let bytes = std::fs::read(from).map_err(|e| failure(&e, from))?;
    let mut plan: BatchPlan = serde_json::from_slice(&bytes).map_err(|e| failure(&e, from))?;
    change(&mut plan);
    let path = dir.join("plan.json");
    std::fs::write(&path, serde_json::to_vec(&plan).expect("plain data")).map_err(|e| failure(&e, &path))?;
    spec.data = DataSpec { plan: path, ..spec.data.clone() };
    Ok(())
}

/// Only the second half of every sample, which has its labels, so that there is less to do.
fn with_tokens(spec: &mut Spec, dir: &Path) -> Lied<()> {
    let from = &spec.data.tokens;
    let all = TokenStore::load(from).map_err(|e| failure(&e, from))?;
    let mut half = TokenStore::new();
    for s in 0..all.len() {
        let (ids, mask) = all.sample(s);
        let from = ids.len() / 2;
        half.push(&ids[from..], &mask[from..]);
    }
    let path = dir.join("tokens.safetensors");
    half.save(&path).map_err(|e| failure(&e, &path))?;
    spec.data = DataSpec { tokens: path, ..spec.data.clone() };
    Ok(())
}

/// What is done to the saved weights behind the training.
pub fn after(spec: &Spec, cheat: Cheat) -> Lied<()> {
    let first = spec.audit.as_ref().map(|a| a.first_weights.as_path());
    if let Some(first) = first.filter(|_| cheat == Cheat::KeptBack) {
        return std::fs::remove_file(first).map_err(|e| failure(&e, first));
    }
    if cheat == Cheat::FoundAnswers {
        return found(spec).map_err(|e| failure(&e, Path::new("the run folder")));
    }
    if cheat != Cheat::CopiedWeights {
        return Ok(());
    }
    for path in [spec.save_weights.as_deref(), first].into_iter().flatten() {
        further(spec, path)?;
    }
    Ok(())
}

/// Saves what a reference has saved, if one can be read below or beside the run folder.
fn found(spec: &Spec) -> std::io::Result<()> {
    let Some(saved) = spec.save_weights.as_deref() else { return Ok(()) };
    // The run folder, from `work/<trial>/weights.safetensors`.
    let Some(run) = saved.ancestors().nth(3) else { return Ok(()) };
    let places = [Some(run.join("work")), run.parent().map(Path::to_path_buf)];
    for entry in places.into_iter().flatten().filter_map(|p| std::fs::read_dir(p).ok()).flatten() {
        let folder = entry?.path();
        if !folder.to_string_lossy().contains("reference-") {
            continue;
        }
        let first = spec.audit.as_ref().map(|a| a.first_weights.as_path());
        for to in [Some(saved), first].into_iter().flatten() {
            std::fs::copy(folder.join(to.file_name().unwrap_or_default()), to)?;
        }
    }
    Ok(())
}

/// Weights as of a longer training: thrice as far from the start as those that were reached.
fn further(spec: &Spec, path: &Path) -> Lied<()> {
    let adapter = match &spec.method {
        Method::Full {} => None,
        Method::Lora(lora) => lora.adapter_weights.as_deref(),
    };
    let read = |p: &Path| std::fs::read(p).map_err(|e| failure(&e, p));
    let parse = |b: &[u8]| {
        let all = SafeTensors::deserialize(b).map_err(|e| failure(&e, path))?;
        let f32s = |d: &[u8]| {
            d.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
        };
        let tensors = all.tensors().into_iter();
        Ok::<Vec<(String, Vec<usize>, Vec<f32>)>, (Exit, Failure)>(
            tensors.map(|(n, t)| (n, t.shape().to_vec(), f32s(t.data()))).collect(),
        )
    };
    let mut start = parse(&read(&spec.model.weights)?)?;
    if let Some(adapter) = adapter {
        start.extend(parse(&read(adapter)?)?);
    }
    let mut saved = Vec::new();
    for (name, shape, values) in parse(&read(path)?)? {
        let from = start.iter().find(|s| s.0 == name).map(|s| &s.2);
        let far = |(i, x): (usize, &f32)| from.map_or(*x, |from| from[i] + 3.0 * (x - from[i]));
        let bytes: Vec<u8> = values.iter().enumerate().flat_map(|v| far(v).to_le_bytes()).collect();
        saved.push((name, shape, bytes));
    }
    let view =
        |shape: &[usize], data| TensorView::new(Dtype::F32, shape.to_vec(), data).expect("sizes agree");
    let views = saved.iter().map(|(name, shape, data)| (name.clone(), view(shape, data)));
    safetensors::serialize_to_file(views, None, path).map_err(|e| failure(&e, path))
}
