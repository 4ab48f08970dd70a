//! The harness's own comparison of the weights before and after a trial, a few tensors at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    os::unix::fs::FileExt,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use chronibench_protocol::{
    digest::sha256_hex,
    event::TensorInfo,
    record::{Presence, TensorChange},
};
use safetensors::{Dtype, tensor::Metadata};

use crate::error::{AtPath, Error, Result};

/// More threads than this wait for memory. Each holds a tensor twice, and the largest of a model may have gigabytes.
const MOST_THREADS: usize = 8;

/// One safetensors file, opened but not read: a 7B model need not fit into memory twice.
pub(crate) struct Weights {
    file: File,
    path: PathBuf,
    data_start: u64,
    tensors: BTreeMap<String, Stored>,
}

struct Stored {
    shape: Vec<usize>,
    span: (usize, usize),
}

impl Weights {
    /// Opens a file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let bad = |what: String| {
            Error::usage(what, path.display().to_string()).hint("weights are saved as f32 safetensors")
        };
        let mut file = File::open(path).at(path)?;
        let mut length = [0u8; 8];
        file.read_exact(&mut length).at(path)?;
        let size = file.metadata().at(path)?.len();
        let header = u64::from_le_bytes(length);
        if header > size {
            return Err(bad("not a safetensors file".into()));
        }
        let mut head = vec![0; header as usize];
        file.read_exact(&mut head).at(path)?;
        let meta: Metadata = serde_json::from_slice(&head).map_err(|e| bad(e.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, info) in meta.tensors() {
            if info.dtype != Dtype::F32 {
                return Err(bad(format!("tensor {name} is {:?}", info.dtype)));
            }
            tensors.insert(name, Stored { shape: info.shape.clone(), span: info.data_offsets });
        }
        let end = tensors.values().map(|t| t.span.1 as u64).max().unwrap_or(0);
        if 8 + header + end > size {
            return Err(bad("the file ends early".into()));
        }
        Ok(Self { file, path: path.to_path_buf(), data_start: 8 + header, tensors })
    }

    /// Whether there is a tensor of this name and shape.
    pub(crate) fn has(&self, t: &TensorInfo) -> bool {
        self.tensors.get(&t.name).is_some_and(|s| s.shape == t.shape)
    }

    /// The values of a tensor that is there.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<f32>> {
        Ok(values(&self.bytes(name)?).collect())
    }

    /// The same as it is stored.
    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let (from, to) = self.tensors[name].span;
        let mut bytes = vec![0; to - from];
        self.file.read_exact_at(&mut bytes, self.data_start + from as u64).at(&self.path)?;
        Ok(bytes)
    }
}

/// Compares every tensor of either side. `before` may be several files (model and adapter).
///
/// # Errors
/// A file cannot be read or is not f32 safetensors.
pub fn compare(before: &[&Path], after: &Path) -> Result<Vec<TensorChange>> {
    let before = before.iter().map(|p| Weights::open(p)).collect::<Result<Vec<_>>>()?;
    let after = Weights::open(after)?;
    let names: BTreeSet<String> =
        before.iter().chain([&after]).flat_map(|w| w.tensors.keys().cloned()).collect();
    let change = |name: String| {
        let source = before.iter().find(|w| w.tensors.contains_key(&name));
        let kept = after.tensors.contains_key(&name);
        match source {
            Some(w) if kept => both(w, &after, name),
            Some(w) => one(w, name, Presence::Before),
            None => one(&after, name, Presence::After),
        }
    };
    let mut changes = side_by_side(names.into_iter().collect(), change)?;
    changes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(changes)
}

/// Runs `change` for every tensor by a few threads, each of which holds one tensor of either side.
fn side_by_side(
    names: Vec<String>,
    change: impl Fn(String) -> Result<TensorChange> + Sync,
) -> Result<Vec<TensorChange>> {
    let queue = Mutex::new(names.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut made = Vec::new();
        while let Some(name) = next() {
            made.push(change(name)?);
        }
        Ok(made)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let parts: Vec<Result<Vec<TensorChange>>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|t| t.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    parts.into_iter().try_fold(Vec::new(), |mut all, part| {
        all.extend(part?);
        Ok(all)
    })
}

fn both(before: &Weights, after: &Weights, name: String) -> Result<TensorChange> {
    let (shape, other) = (before.tensors[&name].shape.clone(), &after.tensors[&name].shape);
    if shape != *other {
        // Another shape under the same name is another tensor: the old one is lost.
        return one(before, name, Presence::Before);
    }
    let (x, y) = (before.bytes(&name)?, after.bytes(&name)?);
    if x == y {
        // Most of a model under LoRA.
        let hash = hash(&x);
        return Ok(TensorChange {
            least_bf16_change: least_bf16_change(values(&x)),
            hashes: Some([hash.clone(), hash]),
            ..still(shape, &x, name, Presence::Both)
        });
    }
    let pairs = || values(&x).zip(values(&y));
    let square = |v: f64| v * v;
    let delta: f64 = pairs().map(|(a, b)| square(f64::from(b) - f64::from(a))).sum();
    Ok(TensorChange {
        shape,
        present: Presence::Both,
        // JSON has no NaN; `finite` says what happened.
        delta_norm: if delta.is_finite() { delta.sqrt() } else { 0.0 },
        norm: norm(values(&x)),
        finite: values(&y).all(f32::is_finite),
        changed: pairs().filter(|(a, b)| a.to_bits() != b.to_bits()).count() as u64,
        least_bf16_change: None,
        hashes: Some([&x, &y].map(|bytes| hash(bytes))),
        name,
    })
}

fn one(side: &Weights, name: String, present: Presence) -> Result<TensorChange> {
    let shape = side.tensors[&name].shape.clone();
    Ok(still(shape, &side.bytes(&name)?, name, present))
}

/// A tensor that nothing is known to have moved.
fn still(shape: Vec<usize>, bytes: &[u8], name: String, present: Presence) -> TensorChange {
    TensorChange {
        shape,
        present,
        delta_norm: 0.0,
        norm: norm(values(bytes)),
        finite: values(bytes).all(f32::is_finite),
        changed: 0,
        least_bf16_change: None,
        hashes: None,
        name,
    }
}

/// The least change that moves an element when the sum is rounded to bf16, which has 8 significant bits: for 2^e ≤ |x| < 2^(e+1)
/// at least 2^(e-9), the half of the spacing below 2^e. None where a value is not one of bf16's.
fn least_bf16_change(values: impl Iterator<Item = f32> + Clone) -> Option<f64> {
    if values.clone().any(|v| v.to_bits() & 0xffff != 0) {
        return None;
    }
    let least = values.map(f32::abs).fold(f32::INFINITY, f32::min);
    // The fraction taken off leaves the power of two.
    let power = f32::from_bits(least.to_bits() & 0x7f80_0000);
    least.is_finite().then(|| f64::from(power) / 512.0)
}

/// Enough of a hash to tell two tensors apart.
fn hash(bytes: &[u8]) -> String {
    sha256_hex(bytes)[..16].into()
}

/// The numbers that the bytes of a tensor are.
fn values(bytes: &[u8]) -> impl Iterator<Item = f32> + Clone {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    let sum: f64 = values.map(|v| f64::from(v) * f64::from(v)).sum();
    if sum.is_finite() { sum.sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::tensor::TensorView;

    use super::*;

    fn write(path: &Path, tensors: &[(&str, &[f32])]) {
        let bytes: Vec<(&str, Vec<u8>)> =
            tensors.iter().map(|(n, v)| (*n, v.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
        let views =
            bytes.iter().map(|(n, b)| (*n, TensorView::new(Dtype::F32, vec![b.len() / 4], b).unwrap()));
        std::fs::write(path, safetensors::serialize(views, None::<HashMap<String, String>>).unwrap())
            .unwrap();
    }

    #[test]
    fn tells_changed_kept_lost_and_new() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write(&at("model"), &[("moved", &[1.0, 2.0]), ("kept", &[5.0]), ("lost", &[3.0, 4.0])]);
        write(&at("adapter"), &[("lora", &[0.0])]);
        write(
            &at("after"),
            &[("moved", &[1.0, 5.0]), ("kept", &[5.0]), ("new", &[f32::NAN]), ("lora", &[1.0])],
        );
        let changes = compare(&[&at("model"), &at("adapter")], &at("after")).unwrap();
        let of = |name: &str| changes.iter().find(|t| t.name == name).unwrap();
        assert_eq!((of("moved").delta_norm, of("moved").changed), (3.0, 1));
        assert_eq!((of("kept").delta_norm, of("kept").changed), (0.0, 0));
        assert_eq!((of("lost").present, of("lost").norm), (Presence::Before, 5.0));
        assert_eq!((of("new").present, of("new").finite), (Presence::After, false));
        assert_eq!((of("lora").present, of("lora").changed), (Presence::Both, 1));
    }

    #[test]
    fn a_cut_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut");
        write(&path, &[("t", &[1.0, 2.0])]);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        assert!(compare(&[&path], &path).unwrap_err().what.contains("ends early"));
    }
}
