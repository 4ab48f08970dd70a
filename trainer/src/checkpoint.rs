//! Checkpoints: what a training needs to go on as if it had never stopped.
//!
//! A folder `checkpoint-<step>` holds
//!
//! | file | what |
//! |---|---|
//! | `model.safetensors` or `adapter_model.safetensors` | what trains, f32; masters where there are any |
//! | `exp_avg.safetensors`, `exp_avg_sq.safetensors` | AdamW's moments, bytes as the device keeps them |
//! | `products.txt` | of a GPU: the algorithms of its matrix products, which were chosen by timing |
//! | `trainer_state.json` | the step, the [`Identity`] of the training, and its [`Progress`]; written last |
//!
//! and whatever its caller puts beside them. Batches, schedule and stochastic rounding are functions of seed and step, so this is all:
//! a resumed training continues to the bit. A folder is written beside its place and renamed when it is whole; it is renamed before it
//! is removed. What a kill leaves behind has a name of its own, and the next training [takes the folder](take) in order again.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    backend::{Backend, View},
    error::Error,
    formats::write,
    progress::Progress,
    trainer::Trainer,
};

/// 2: adapters lie all A, then all B.
const FORMAT: &str = "chronicals.checkpoint/2";
const STATE: &str = "trainer_state.json";
const PRODUCTS: &str = "products.txt";
const PREFIX: &str = "checkpoint-";
/// Of folders that are being filled or removed.
const HIDDEN: &str = ".checkpoint-";
/// In one of these, a checkpoint whose place another is about to take.
const REPLACED: &str = "replaced";

/// What must be equal where a training is resumed, by name: settings, then hashes of what was made of them.
pub type Identity = Vec<(String, Value)>;

#[derive(Serialize, Deserialize)]
struct State {
    format: String,
    step: u32,
    identity: Identity,
    #[serde(default)]
    progress: Progress,
}

/// Which checkpoints stay when one is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// How many, the newest; all when left out.
    pub newest: Option<u32>,
    /// The step of one that stays besides.
    pub best: Option<u32>,
}

/// Whole checkpoints in a folder, by step.
///
/// # Errors
/// The folder cannot be read; one that is not there has none.
pub fn all(dir: &Path) -> Result<BTreeMap<u32, PathBuf>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries.map_err(|e| Error::io(dir, &e))?,
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(dir, &e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if let Some(step) = name.strip_prefix(PREFIX).and_then(|n| n.parse().ok())
            && path.join(STATE).is_file()
        {
            found.insert(step, path);
        }
    }
    Ok(found)
}

/// Refuses a folder with checkpoints to a training that begins.
///
/// # Errors
/// It has some, or cannot be read.
pub fn refuse_begun(dir: &Path) -> Result<(), Error> {
    let steps: Vec<String> = all(dir)?.into_keys().map(|step| format!("{PREFIX}{step}")).collect();
    if steps.is_empty() {
        return Ok(());
    }
    let what = format!("an earlier training left checkpoints here: {}", steps.join(", "));
    Err(Error::new(what, format!("output_dir, {}", dir.display())).hint(
        "go on from the newest with --resume, give another output_dir, or begin anew with --overwrite, which removes checkpoints and metrics",
    ))
}

/// Removes every checkpoint in a folder.
///
/// # Errors
/// One cannot be removed.
pub fn clear(dir: &Path) -> Result<(), Error> {
    all(dir)?.values().try_for_each(|path| remove(path))
}

/// Where the checkpoint of a step lies.
pub fn place(dir: &Path, step: u32) -> PathBuf {
    dir.join(format!("{PREFIX}{step}"))
}

/// The newest checkpoint in `dir` that is of the training `identity`.
///
/// # Errors
/// The folder cannot be read, or has checkpoints of other trainings alone: what differs from the newest is named.
pub fn newest(dir: &Path, identity: &Identity) -> Result<Option<PathBuf>, Error> {
    let mut first = None;
    for path in all(dir)?.into_values().rev() {
        match read_state(&path).and_then(|state| same(&state, identity, &path)) {
            Ok(()) => return Ok(Some(path)),
            Err(e) => drop(first.get_or_insert(e)),
        }
    }
    first.map_or(Ok(None), Err)
}

/// Steps that a checkpoint's training had taken.
///
/// # Errors
/// The folder is damaged, or of another training: what differs is named.
pub fn steps_of(dir: &Path, identity: &Identity) -> Result<u32, Error> {
    let state = read_state(dir)?;
    same(&state, identity, dir).map(|()| state.step)
}

/// Writes a checkpoint into `dir`, then removes those that are not to be kept. `beside` adds files to it.
///
/// # Errors
/// A parameter is not finite, the folder cannot be written, or the device fails; earlier checkpoints are then as they were.
pub fn save<B: Backend>(
    trainer: &Trainer<B>,
    dir: &Path,
    identity: &Identity,
    progress: &Progress,
    keep: Keep,
    beside: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let step = trainer.step();
    let failed = |e: Error| e.within(format!("checkpoint of step {step}"));
    trainer.check_finite().map_err(failed)?;
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, &e))?;
    let temporary = hidden(dir)?;
    let state = State { format: FORMAT.into(), step, identity: identity.clone(), progress: *progress };
    beside(temporary.path()).and_then(|()| fill(trainer, &state, temporary.path())).map_err(failed)?;
    let to = place(dir, step);
    put(temporary, &to)?;
    prune(dir, step, keep)?;
    Ok(to)
}

/// Puts a whole folder in a place. What was there is moved aside first and removed last: a kill leaves one of the two.
fn put(folder: TempDir, to: &Path) -> Result<(), Error> {
    let dir = to.parent().expect("it lies in a folder");
    let failed = |e: std::io::Error| Error::io(to, &e);
    let aside = hidden(dir)?;
    if to.exists() {
        std::fs::rename(to, aside.path().join(REPLACED)).map_err(failed)?;
    }
    if let Err(e) = std::fs::rename(folder.path(), to) {
        // Nothing there, if nothing was.
        let _ = std::fs::rename(aside.path().join(REPLACED), to);
        return Err(failed(e));
    }
    let _ = folder.keep();
    sync(dir)?;
    aside.close().map_err(failed)
}

/// A folder that the next training removes, if this one does not live to.
fn hidden(dir: &Path) -> Result<TempDir, Error> {
    tempfile::Builder::new().prefix(HIDDEN).tempdir_in(dir).map_err(|e| Error::io(dir, &e))
}

/// Writes a checkpoint's files, and waits until they are on the disk: a power cut leaves the old checkpoint, or the whole new one.
fn fill<B: Backend>(trainer: &Trainer<B>, state: &State, at: &Path) -> Result<(), Error> {
    trainer.save_trainable(&at.join(trainer.trainable_file()))?;
    for (name, view) in moments(trainer) {
        save_bytes(&at.join(file_of(name)), name, trainer.backend().stored(view)?)?;
    }
    let text = serde_json::to_vec_pretty(state).expect("plain data");
    let choices = trainer.backend().choices().map(|choices| (PRODUCTS, choices.into_bytes()));
    for (name, bytes) in choices.into_iter().chain([(STATE, text)]) {
        let path = at.join(name);
        std::fs::write(&path, bytes).map_err(|e| Error::io(&path, &e))?;
    }
    sync_all(at)
}

/// Opens a new folder to all, and waits until it is on the disk.
fn sync_all(at: &Path) -> Result<(), Error> {
    open_to_all(at)?;
    for file in std::fs::read_dir(at).map_err(|e| Error::io(at, &e))? {
        sync(&file.map_err(|e| Error::io(at, &e))?.path())?;
    }
    sync(at)
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::io(path, &e))
}

/// Removes a checkpoint: under another name, so that half of one is never taken for a whole one.
fn remove(path: &Path) -> Result<(), Error> {
    let aside = hidden(path.parent().expect("it lies in a folder"))?;
    std::fs::rename(path, aside.path().join("removed")).map_err(|e| Error::io(path, &e))?;
    aside.close().map_err(|e| Error::io(path, &e))
}

/// The right of one training to write to a folder; it ends with the process at the latest.
pub struct Taken {
    _folder: File,
}

/// Takes a folder for a training, which it makes if need be, and mends what one left there that was killed while it wrote or removed a
/// checkpoint.
///
/// # Errors
/// Another training has it, or it cannot be written.
pub fn take(dir: &Path) -> Result<Taken, Error> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, &e))?;
    let folder = File::open(dir).map_err(|e| Error::io(dir, &e))?;
    match folder.try_lock() {
        Err(TryLockError::WouldBlock) => {
            return Err(Error::new("another training writes to this folder", dir.display().to_string())
                .hint("wait for it, or give another output_dir"));
        }
        // Some file systems have no locks: then nobody is kept out.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, &e))? {
        let path = entry.map_err(|e| Error::io(dir, &e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with(HIDDEN) && path.is_dir() {
            put_back(&path.join(REPLACED), dir)?;
            std::fs::remove_dir_all(&path).map_err(|e| Error::io(&path, &e))?;
        }
    }
    Ok(Taken { _folder: folder })
}

/// A checkpoint that was moved aside, if the other has not come to its place.
fn put_back(path: &Path, dir: &Path) -> Result<(), Error> {
    let Ok(state) = read_state(path) else { return Ok(()) };
    let to = place(dir, state.step);
    if to.exists() { Ok(()) } else { std::fs::rename(path, &to).map_err(|e| Error::io(&to, &e)) }
}

/// Copies the checkpoint of a step from one folder to another that lacks it; whether it is there now.
///
/// # Errors
/// It cannot be copied.
pub fn bring(step: u32, from: &Path, to: &Path) -> Result<bool, Error> {
    let (old, new) = (place(from, step), place(to, step));
    if new.exists() || !old.join(STATE).is_file() {
        return Ok(new.exists());
    }
    let copy = hidden(to)?;
    for file in std::fs::read_dir(&old).map_err(|e| Error::io(&old, &e))? {
        let file = file.map_err(|e| Error::io(&old, &e))?;
        let (path, at) = (file.path(), copy.path().join(file.file_name()));
        std::fs::copy(&path, &at).map_err(|e| Error::io(&path, &e))?;
    }
    sync_all(copy.path())?;
    put(copy, &new).map(|()| true)
}

/// Temporary folders are private; checkpoints are for everybody whom the umask lets in.
fn open_to_all(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let asked = std::fs::metadata(dir.parent().unwrap_or(dir)).map_err(|e| Error::io(dir, &e))?;
    let mode = std::fs::Permissions::from_mode(asked.permissions().mode() & 0o777);
    std::fs::set_permissions(dir, mode).map_err(|e| Error::io(dir, &e))
}

/// Checkpoints behind `step` are of a training that was given up: they go first.
fn prune(dir: &Path, step: u32, keep: Keep) -> Result<(), Error> {
    let Some(newest) = keep.newest else { return Ok(()) };
    let mut all: Vec<_> = all(dir)?.into_iter().collect();
    all.sort_by_key(|(s, _)| (*s <= step, *s));
    let old = all.len().saturating_sub(newest.max(1) as usize);
    let removed = all.into_iter().take(old).filter(|(s, _)| Some(*s) != keep.best);
    removed.into_iter().try_for_each(|(_, path)| remove(&path))
}

fn damaged(what: String, path: &Path) -> Error {
    Error::new(what, path.display().to_string())
        .hint("resume from another checkpoint, or train from the beginning")
}

fn read_state(dir: &Path) -> Result<State, Error> {
    let path = dir.join(STATE);
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, &e))?;
    let state: State = serde_json::from_slice(&text)
        .map_err(|e| damaged(format!("not a checkpoint's state: {e}"), &path))?;
    if state.format != FORMAT {
        return Err(damaged(format!("a checkpoint of format '{}', not '{FORMAT}'", state.format), &path));
    }
    Ok(state)
}

/// Checks that a checkpoint is of the training `identity`.
fn same(state: &State, identity: &Identity, dir: &Path) -> Result<(), Error> {
    let get = |side: &Identity, name: &str| side.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let mut names = identity.iter().chain(&state.identity).map(|(name, _)| name);
    let Some(name) = names.find(|name| get(identity, name) != get(&state.identity, name)) else {
        return Ok(());
    };
    let told = |side: &Identity| get(side, name).map_or("nothing".to_string(), |v| v.to_string());
    let what = format!(
        "the checkpoint is of another training: {name} was {}, and is {}",
        told(&state.identity),
        told(identity)
    );
    Err(Error::new(what, dir.join(STATE).display().to_string())
        .hint("set it as it was, or train from the beginning: with another output_dir, or with --overwrite"))
}

/// What a checkpoint says besides parameters and moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resumed {
    /// How far the training had come.
    pub progress: Progress,
    /// The device takes the algorithms of its matrix products that the checkpoint names; where not, what follows may round otherwise.
    pub same_products: bool,
}

/// Takes up the training that `dir` holds.
///
/// # Errors
/// The folder is damaged, or of another training: what differs is named. The trainer is then not to be used.
pub fn load<B: Backend>(trainer: &mut Trainer<B>, dir: &Path, identity: &Identity) -> Result<Resumed, Error> {
    let state = read_state(dir)?;
    same(&state, identity, dir)?;
    trainer.load_trainable(&dir.join(trainer.trainable_file()))?;
    let choices = dir.join(PRODUCTS);
    let same_products = if choices.is_file() {
        let text = std::fs::read_to_string(&choices).map_err(|e| Error::io(&choices, &e))?;
        trainer.parts().0.adopt(&text)
    } else {
        trainer.backend().choices().is_none()
    };
    for (name, view) in moments(trainer) {
        let bytes = load_bytes(&dir.join(file_of(name)), name)?;
        trainer.parts().0.restore(view, &bytes).map_err(|e| damaged(e.to_string(), &dir.join(STATE)))?;
    }
    trainer.set_step(state.step);
    Ok(Resumed { progress: state.progress, same_products })
}

/// Both moments of everything that trains, under torch's names.
fn moments<B: Backend>(trainer: &Trainer<B>) -> [(&'static str, View); 2] {
    let model = trainer.model();
    let first = &model.groups[0];
    let whole = |view: View| View { offset: 0, len: model.grads.len, ..view };
    [("exp_avg", whole(first.m)), ("exp_avg_sq", whole(first.v))]
}

fn file_of(name: &str) -> String {
    format!("{name}.safetensors")
}

fn save_bytes(path: &Path, name: &str, bytes: Vec<u8>) -> Result<(), Error> {
    let failed = |e| write::failure(path, e);
    let view = TensorView::new(Dtype::U8, vec![bytes.len()], &bytes).map_err(failed)?;
    safetensors::serialize_to_file([(name, view)], None, path).map_err(failed)
}

fn load_bytes(path: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let file = std::fs::read(path).map_err(|e| Error::io(path, &e))?;
    let tensors = SafeTensors::deserialize(&file);
    match tensors.and_then(|t| t.tensor(name).map(|t| t.data().to_vec())) {
        Ok(bytes) => Ok(bytes),
        Err(e) => Err(Error::new(format!("not the optimizer's states: {e}"), path.display().to_string())
            .hint("resume from another checkpoint, or train from the beginning")),
    }
}
