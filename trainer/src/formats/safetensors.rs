//! safetensors files, and the shards of an index.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::{Dtype, tensor::Metadata};
use serde::Deserialize;

use super::Tensors;
use crate::error::Error;

/// No honest header is larger; a damaged length would otherwise ask for that much memory.
const MAX_HEADER: u64 = 100 << 20;

/// Bytes that are compared at once.
const PIECE: usize = 1 << 20;

/// One file.
struct Part {
    path: PathBuf,
    file: File,
    /// First byte behind the header.
    start: u64,
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
        let mut file = File::open(path).map_err(|e| Error::io(path, &e))?;
        let (start, meta) = read_header(&mut file, path)?;
        Ok(Self { path: path.to_path_buf(), file, start, meta })
    }

    /// Compares bytes a piece at a time: the tensors that are compared are a model's largest.
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
        let length = a.data_offsets.1 - a.data_offsets.0;
        let (mut left, mut right) = (vec![0; length.min(PIECE)], vec![0; length.min(PIECE)]);
        for at in (0..length).step_by(PIECE) {
            let n = PIECE.min(length - at);
            for (part, info, bytes) in [(self, a, &mut left), (other, b, &mut right)] {
                let from = part.start + (info.data_offsets.0 + at) as u64;
                part.file.read_exact_at(&mut bytes[..n], from).map_err(|e| Error::io(&part.path, &e))?;
            }
            if left[..n] != right[..n] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, Error> {
        let info = self.meta.info(name).expect("the index was checked against the shard");
        let (begin, end) = info.data_offsets;
        let mut bytes = vec![0; end - begin];
        let failed = |e| Error::io(&self.path, &e);
        self.file.read_exact_at(&mut bytes, self.start + begin as u64).map_err(failed)?;
        match info.dtype {
            Dtype::F32 => Ok(bytes.as_chunks::<4>().0.par_iter().map(|&b| f32::from_le_bytes(b)).collect()),
            Dtype::BF16 => {
                Ok(bytes.as_chunks::<2>().0.par_iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect())
            }
            Dtype::F16 => {
                Ok(bytes.as_chunks::<2>().0.par_iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect())
            }
            other => Err(Error::new(
                format!("dtype {other:?} is not supported"),
                format!("{name} in {}", self.path.display()),
            )
            .hint("convert the weights to F32, BF16 or F16")),
        }
    }
}

fn read_header(file: &mut File, path: &Path) -> Result<(u64, Metadata), Error> {
    let damaged = |what: String| {
        Error::new(format!("not a whole safetensors file: {what}"), path.display().to_string())
            .hint("fetch or write the file again")
    };
    let size = file.metadata().map_err(|e| Error::io(path, &e))?.len();
    let mut head = [0u8; 8];
    file.read_exact(&mut head).map_err(|_| damaged("shorter than 8 bytes".into()))?;
    let n = u64::from_le_bytes(head);
    if n > MAX_HEADER || n + 8 > size {
        return Err(damaged(format!("it claims a header of {n} bytes in a file of {size}")));
    }
    let mut header = vec![0; n as usize];
    file.read_exact(&mut header).map_err(|e| Error::io(path, &e))?;
    let meta: Metadata = serde_json::from_slice(&header).map_err(|e| damaged(e.to_string()))?;
    let data = size - 8 - n;
    for (name, info) in meta.tensors() {
        let (begin, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &n| bits.checked_mul(n));
        if begin > end || end as u64 > data || bits != (end - begin).checked_mul(8) {
            return Err(damaged(format!("'{name}' is said to lie at bytes {begin}..{end} of {data}")));
        }
    }
    Ok((8 + n, meta))
}
