//! safetensors files, and the shards of an index, mapped into memory: tensors are converted where they lie, without a copy of their bytes.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use rayon::prelude::*;
use safetensors::{Dtype, tensor::Metadata};
use serde::Deserialize;

use super::Tensors;
use crate::error::Error;

/// No honest header is larger; a damaged length would otherwise ask for that much memory.
const MAX_HEADER: u64 = 100 << 20;

/// One file.
struct Part {
    path: PathBuf,
    file: File,
    map: Mmap,
    /// First byte behind the header.
    start: usize,
    meta: Metadata,
}

/// One file, or several with an index.
pub struct Shards {
    place: PathBuf,
    parts: Vec<Part>,
    /// Name → place in `parts`.
    of: BTreeMap<String, usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// A single file.
    ///
    /// # Errors
    /// It cannot be read, or it is damaged.
    pub fn of_one(path: &Path) -> Result<Self, Error> {
        let part = Part::open(path)?;
        let of = part.meta.offset_keys().into_iter().map(|name| (name, 0)).collect();
        Ok(Self { place: path.to_path_buf(), parts: vec![part], of })
    }

    /// The shards of an index, which are beside it.
    ///
    /// # Errors
    /// The index or a shard cannot be read or is damaged, or a shard lacks what the index says.
    pub fn open(index: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, &e))?;
        let bad = |what: String| {
            Error::new(what, index.display().to_string()).hint("fetch the model's folder again")
        };
        let Index { weight_map } =
            serde_json::from_str(&text).map_err(|e| bad(format!("not an index of shards: {e}")))?;
        let dir = index.parent().unwrap_or(Path::new(""));
        let (mut parts, mut names): (Vec<Part>, Vec<&str>) = (Vec::new(), Vec::new());
        let mut of = BTreeMap::new();
        for (tensor, shard) in &weight_map {
            if Path::new(shard).components().count() != 1 || shard == ".." {
                return Err(bad(format!("shard '{shard}' is not a file beside the index")));
            }
            let at = match names.iter().position(|n| n == shard) {
                Some(at) => at,
                None => {
                    names.push(shard);
                    parts.push(Part::open(&dir.join(shard))?);
                    parts.len() - 1
                }
            };
            if parts[at].meta.info(tensor).is_none() {
                return Err(bad(format!("shard '{shard}' has no tensor '{tensor}'")));
            }
            of.insert(tensor.clone(), at);
        }
        Ok(Self { place: index.to_path_buf(), parts, of })
    }
}

impl Shards {
    /// Its files, in the order of the index.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|p| p.path.as_path())
    }
}

impl Tensors for Shards {
    fn names(&self) -> Vec<&str> {
        self.of.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let part = &self.parts[*self.of.get(name)?];
        Some(&part.meta.info(name)?.shape)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, Error> {
        let part = self.of.get(name).map(|at| &self.parts[*at]);
        part.ok_or_else(|| Error::new("a tensor is missing", format!("{name} in {}", self.place())))?
            .read(name)
    }

    fn equal(&self, a: &str, b: &str) -> Result<bool, Error> {
        let part = |name: &str| Some(&self.parts[*self.of.get(name)?]);
        match (part(a), part(b)) {
            (Some(of_a), Some(of_b)) => of_a.equal(a, of_b, b),
            _ => Ok(false),
        }
    }

    fn place(&self) -> String {
        self.place.display().to_string()
    }
}

impl Part {
    fn open(path: &Path) -> Result<Self, Error> {
        let failed = |e| Error::io(path, &e);
        let file = File::open(path).map_err(failed)?;
        // SAFETY: nobody here writes to a model's files in place: they are replaced. One that another program cut off is not read; while it
        // is being read, that would end this program by a signal.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let (start, meta) = read_header(&map, path)?;
        Ok(Self { path: path.to_path_buf(), file, map, start, meta })
    }

    /// Looks whether the file is as long as when it was mapped: what was cut off since reads as zeros, or not at all.
    fn check_length(&self) -> Result<(), Error> {
        let length = self.file.metadata().map_err(|e| Error::io(&self.path, &e))?.len();
        if length == self.map.len() as u64 {
            return Ok(());
        }
        Err(damaged(
            &self.path,
            format!("it had {} bytes when it was opened, and has {length}", self.map.len()),
        ))
    }

    /// Where a tensor lies in the file.
    fn range(&self, name: &str) -> Option<Range<usize>> {
        let (begin, end) = self.meta.info(name)?.data_offsets;
        Some(self.start + begin..self.start + end)
    }

    /// Lets go of pages that were read, which would count as this process's memory until it ends.
    fn release(&self, range: Range<usize>) {
        // SAFETY: the pages are those of a file and nobody writes to them: who reads them again gets the same from it. Without the advice they
        // stay, no more.
        let _ =
            unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
    }

    /// Compares bytes, or numbers where the types differ.
    fn equal(&self, name: &str, other: &Self, other_name: &str) -> Result<bool, Error> {
        let (Some(a), Some(b)) = (self.meta.info(name), other.meta.info(other_name)) else {
            return Ok(false);
        };
        if a.shape != b.shape {
            return Ok(false);
        }
        if a.dtype != b.dtype {
            let (a, b) = (self.read(name)?, other.read(other_name)?);
            return Ok(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
        let (Some(a), Some(b)) = (self.range(name), other.range(other_name)) else { return Ok(false) };
        let both = || self.check_length().and_then(|()| other.check_length());
        both()?;
        let equal = self.map[a.clone()] == other.map[b.clone()];
        both()?;
        self.release(a);
        other.release(b);
        Ok(equal)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, Error> {
        let info = self.meta.info(name).expect("the index was checked against the shard");
        let range = self.range(name).expect("as above");
        self.check_length()?;
        let bytes = &self.map[range.clone()];
        let values = match info.dtype {
            Dtype::F32 => bytes.as_chunks::<4>().0.par_iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::BF16 => {
                bytes.as_chunks::<2>().0.par_iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
            }
            Dtype::F16 => {
                bytes.as_chunks::<2>().0.par_iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
            }
            other => {
                return Err(Error::new(
                    format!("dtype {other:?} is not supported"),
                    format!("{name} in {}", self.path.display()),
                )
                .hint("convert the weights to F32, BF16 or F16"));
            }
        };
        self.check_length()?;
        self.release(range);
        Ok(values)
    }
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(format!("not a whole safetensors file: {what}"), path.display().to_string())
        .hint("fetch or write the file again")
}

/// Where the tensors begin, and the header, whose places all lie in the file.
fn read_header(bytes: &[u8], path: &Path) -> Result<(usize, Metadata), Error> {
    let Some((head, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(damaged(path, "shorter than 8 bytes"));
    };
    let n = u64::from_le_bytes(*head);
    if n > MAX_HEADER || n > rest.len() as u64 {
        let size = bytes.len();
        return Err(damaged(path, format!("it claims a header of {n} bytes in a file of {size}")));
    }
    let (header, data) = rest.split_at(n as usize);
    let meta: Metadata = serde_json::from_slice(header).map_err(|e| damaged(path, e))?;
    for (name, info) in meta.tensors() {
        let (begin, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &n| bits.checked_mul(n));
        if begin > end || end > data.len() || bits != (end - begin).checked_mul(8) {
            let what = format!("'{name}' is said to lie at bytes {begin}..{end} of {}", data.len());
            return Err(damaged(path, what));
        }
    }
    Ok((8 + header.len(), meta))
}
