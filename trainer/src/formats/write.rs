//! safetensors files and folders of them. Each file is put in place when it is whole; a failure leaves what was there before.

use std::{
    borrow::Cow,
    cell::OnceCell,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use half::bf16;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensorError};
use serde_json::json;

use crate::error::Error;

/// Number format of stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As they are.
    F32,
    /// Rounded once, to nearest even.
    Bf16,
}

impl Stored {
    fn dtype(self) -> Dtype {
        match self {
            Stored::F32 => Dtype::F32,
            Stored::Bf16 => Dtype::BF16,
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        self.dtype().bitsize() / 8
    }

    /// As Transformers calls it.
    pub fn name(self) -> &'static str {
        match self {
            Stored::F32 => "float32",
            Stored::Bf16 => "bfloat16",
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Stored::F32 => side_by_side(values, f32::to_le_bytes),
            Stored::Bf16 => side_by_side(values, |v| bf16::from_f32(v).to_le_bytes()),
        }
    }
}

/// The bytes of every value, by all threads: a tensor may have a billion.
fn side_by_side<const N: usize>(values: &[f32], bytes: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
    let mut all = vec![0; N * values.len()];
    all.as_chunks_mut().0.par_iter_mut().zip(values).for_each(|(to, v)| *to = bytes(*v));
    all
}

/// A tensor that is read when it is written.
pub struct Entry<'a> {
    name: String,
    shape: Vec<usize>,
    read: Box<dyn Fn() -> Result<Vec<f32>, Error> + 'a>,
}

impl<'a> Entry<'a> {
    /// A tensor of that name and shape.
    pub fn new(name: &str, shape: &[usize], read: impl Fn() -> Result<Vec<f32>, Error> + 'a) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), read: Box::new(read) }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// What the writer of the library sees of an entry. It has no errors: the first one waits in `failed`.
struct Lazy<'a> {
    entry: &'a Entry<'a>,
    stored: Stored,
    failed: &'a OnceCell<Error>,
}

impl safetensors::View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        self.stored.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.entry.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = (self.entry.read)().unwrap_or_else(|e| {
            let _ = self.failed.set(e);
            vec![f32::NAN; self.entry.len()]
        });
        assert_eq!(values.len(), self.entry.len(), "{}", self.entry.name);
        self.stored.encode(&values).into()
    }

    fn data_len(&self) -> usize {
        self.stored.bytes() * self.entry.len()
    }
}

/// A temporary file where `path` is to be, and open to everybody whom the umask lets in, as weights are.
fn temporary(path: &Path) -> Result<tempfile::NamedTempFile, Error> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let open = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().permissions(open).tempfile_in(dir).map_err(|e| Error::io(path, &e))
}

fn put(file: tempfile::NamedTempFile, path: &Path) -> Result<(), Error> {
    let failed = |e| Error::io(path, &e);
    // By name: the library of safetensors puts a file of its own there, which is private.
    let written = std::fs::File::open(file.path()).map_err(failed)?;
    let permissions = file.as_file().metadata().map_err(failed)?.permissions();
    written.set_permissions(permissions).map_err(failed)?;
    written.sync_all().map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Writes text, whole or not at all.
///
/// # Errors
/// The file cannot be written; what was there before is left as it was.
pub fn text(path: &Path, text: &str) -> Result<(), Error> {
    let mut file = temporary(path)?;
    file.write_all(text.as_bytes()).map_err(|e| Error::io(path, &e))?;
    put(file, path)
}

/// Writes one safetensors file.
///
/// # Errors
/// A tensor cannot be read, or the file cannot be written; a file that was there before is left as it was.
pub fn tensors(entries: &[Entry<'_>], stored: Stored, path: &Path) -> Result<(), Error> {
    let failed = &OnceCell::new();
    let file = temporary(path)?;
    let views = entries.iter().map(|entry| (entry.name.as_str(), Lazy { entry, stored, failed }));
    // Transformers refuses files that do not say whose tensors they hold.
    let format = Some([("format".to_string(), "pt".to_string())].into());
    safetensors::serialize_to_file(views, format, file.path()).map_err(|e| failure(path, e))?;
    if let Some(e) = failed.get() {
        return Err(e.clone());
    }
    put(file, path)
}

/// What the library of safetensors could not write.
pub fn failure(path: &Path, e: SafeTensorError) -> Error {
    match e {
        SafeTensorError::IoError(e) => Error::io(path, &e),
        e => Error::new(format!("cannot write tensors: {e}"), path.display().to_string()),
    }
}

/// Writes a model's weights into a folder: `model.safetensors`, or shards of at most `shard` bytes with their index.
///
/// # Errors
/// As [`tensors`].
pub fn model(entries: Vec<Entry<'_>>, stored: Stored, shard: u64, dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let total: u64 = entries.iter().map(|e| (stored.bytes() * e.len()) as u64).sum();
    if total <= shard {
        let path = dir.join("model.safetensors");
        tensors(&entries, stored, &path)?;
        return Ok(vec![path]);
    }
    let mut shards: Vec<(u64, Vec<Entry<'_>>)> = Vec::new();
    for e in entries {
        let bytes = (stored.bytes() * e.len()) as u64;
        match shards.last_mut() {
            Some((size, list)) if *size + bytes <= shard => {
                *size += bytes;
                list.push(e);
            }
            _ => shards.push((bytes, vec![e])),
        }
    }
    let (count, mut files, mut map) = (shards.len(), Vec::new(), serde_json::Map::new());
    for (i, (_, list)) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        tensors(list, stored, &dir.join(&name))?;
        map.extend(list.iter().map(|e| (e.name.clone(), name.clone().into())));
        files.push(dir.join(name));
    }
    let index = dir.join("model.safetensors.index.json");
    let value = json!({"metadata": {"total_size": total}, "weight_map": map});
    text(&index, &format!("{value:#}\n"))?;
    files.push(index);
    Ok(files)
}

/// A folder that is filled beside its place and put there whole.
pub struct Folder {
    filled: tempfile::TempDir,
    place: PathBuf,
}

impl Folder {
    /// A folder to fill.
    ///
    /// # Errors
    /// There is something at its place already, or nothing can be made there.
    pub fn new(place: &Path) -> Result<Self, Error> {
        let taken = place.read_dir().map_or(place.exists(), |mut d| d.next().is_some());
        if taken {
            return Err(Error::new("there is something here already", place.display().to_string())
                .hint("name another folder, or take it away first"));
        }
        let parent = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, &e))?;
        let open = std::fs::Permissions::from_mode(0o777);
        let filled = tempfile::Builder::new().prefix(".chronicals-").permissions(open).tempdir_in(parent);
        Ok(Self { filled: filled.map_err(|e| Error::io(place, &e))?, place: place.to_path_buf() })
    }

    /// Where to put files.
    pub fn path(&self) -> &Path {
        self.filled.path()
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// It cannot be moved there.
    pub fn finish(self) -> Result<(), Error> {
        // An empty folder at its place is replaced.
        std::fs::rename(self.filled.path(), &self.place).map_err(|e| Error::io(&self.place, &e))?;
        let _ = self.filled.keep();
        Ok(())
    }
}
