//! Files that models come in and go out as.
//!
//! | module | what |
//! |---|---|
//! | `safetensors` | one file, or the shards of an index, mapped into memory |
//! | `gguf` | llama.cpp's files: config, tokenizer and dequantised tensors under Hugging Face names |
//! | `write` | safetensors files and folders, rounded once and put in place whole |
//! | `folder` | a whole model, and its way into a Hugging Face folder; adapters merged |
//! | `beside` | the tokenizer's files and what generation goes by, as a training used them |
//! | `hub` | repositories of Hugging Face's hub, fetched into its cache |
//! | `peft` | the settings beside an adapter |
//!
//! Tensors are read and written one at a time, so that a model is never in memory twice.

pub mod beside;
pub mod folder;
pub mod gguf;
pub mod hub;
pub mod peft;
pub mod safetensors;
pub mod write;

use std::path::{Path, PathBuf};

use chronibench_protocol::digest::{sha256_hex, sha256_of_file};

use crate::error::Error;

/// Named tensors in a file, or in several.
pub trait Tensors {
    /// All names, in the order of the file.
    fn names(&self) -> Vec<&str>;

    /// Extents of a tensor, outermost first; `None` where there is none of that name.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// Values of a tensor.
    ///
    /// # Errors
    /// There is no such tensor, its type is not supported, or the file cannot be read.
    fn read(&self, name: &str) -> Result<Vec<f32>, Error>;

    /// Whether two tensors are equal to the bit.
    ///
    /// # Errors
    /// One of them cannot be read.
    fn equal(&self, a: &str, b: &str) -> Result<bool, Error> {
        if self.shape(a) != self.shape(b) {
            return Ok(false);
        }
        let (a, b) = (self.read(a)?, self.read(b)?);
        Ok(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()))
    }

    /// Where they are, for messages.
    fn place(&self) -> String;
}

/// Opens weights: a safetensors file, an index of shards, a GGUF file, or a folder with any of these under its usual name.
///
/// # Errors
/// There is nothing of the kind, or it is damaged.
pub fn open(path: &Path) -> Result<Box<dyn Tensors>, Error> {
    let file = weights_file(path)?;
    Ok(match file.extension().and_then(|e| e.to_str()) {
        Some("gguf") => Box::new(gguf::Model::open(&file)?),
        Some("json") => Box::new(safetensors::Shards::open(&file)?),
        _ => Box::new(safetensors::Shards::of_one(&file)?),
    })
}

/// Names of weights in a folder, the first that is there.
const USUAL: [&str; 3] = [INDEX, "model.safetensors", "adapter_model.safetensors"];

/// The index of a model in several files.
const INDEX: &str = "model.safetensors.index.json";

/// The file of weights that a path means: itself, or the one in a folder.
///
/// # Errors
/// A folder without weights.
pub fn weights_file(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let found = USUAL.map(|name| path.join(name)).into_iter().find(|p| p.exists());
    found.ok_or_else(|| {
        Error::new("no weights in this folder", path.display().to_string())
            .hint(format!("it should have one of {}", USUAL.join(", ")))
    })
}

/// SHA-256 of weights, whatever their number of files.
///
/// # Errors
/// A file cannot be read.
pub fn sha256(path: &Path) -> Result<String, Error> {
    let file = weights_file(path)?;
    let of = |p: &Path| sha256_of_file(p).map_err(|e| Error::io(p, &e));
    if file.extension().is_none_or(|e| e != "json") {
        return of(&file);
    }
    let parts = safetensors::Shards::open(&file)?;
    let all = parts.files().map(of).collect::<Result<Vec<_>, _>>()?;
    Ok(sha256_hex(all.concat().as_bytes()))
}
