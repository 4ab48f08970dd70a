//! CUDA C++ to machine code by NVRTC, cached on disk.

use std::{ffi::CString, io::Write, path::PathBuf};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::{Elem, GpuError, Unit, library};

const PRELUDE: &str = include_str!("prelude.cuh");

/// Machine code for one architecture.
#[derive(Clone, Debug)]
pub struct Cubin {
    /// An ELF image, as the driver loads it.
    pub image: Vec<u8>,
    /// What the compiler said: registers, spills and shared memory of every entry; empty if it came from the cache.
    pub log: String,
}

/// The whole text that is compiled.
pub fn text(unit: &Unit) -> String {
    format!("#line 1 \"prelude.cuh\"\n{PRELUDE}\n#line 1 \"{}/kernel.cu\"\n{}", unit.name, unit.source)
}

/// Compiler options for an element type and an architecture, e.g. `sm_90a`.
fn options(elem: Elem, arch: &str) -> Vec<String> {
    let mut options: Vec<String> =
        [&format!("--gpu-architecture={arch}"), "--std=c++17", "--ptxas-options=-v"]
            .map(|s: &str| s.to_string())
            .into();
    if elem == Elem::F32 {
        options.push("--define-macro=ELEM_F32".into());
    }
    options
}

/// Compiles a unit.
///
/// # Errors
/// NVRTC is missing, or the source has an error: its log is in the message.
pub fn compile(unit: &Unit, elem: Elem, arch: &str) -> Result<Cubin, GpuError> {
    library::require(&["libnvrtc"])?;
    let at = || format!("{}/kernel.cu for {arch}, {}", unit.name, elem.name());
    let failed = |what: String| {
        GpuError::new(what, at(), "the compiler's log says where; a newer NVRTC may be needed")
    };
    let source = CString::new(text(unit)).expect("no NUL in a source");
    let name = CString::new(format!("{}.cu", unit.name)).expect("no NUL in a name");
    let program =
        Program(result::create_program(&source, Some(&name)).map_err(|e| failed(format!("{e:?}")))?);
    // SAFETY: the program is alive until the end of this function.
    let compiled = unsafe { result::compile_program(program.0, &options(elem, arch)) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
    // NVRTC ends its log with a NUL; an empty one has none.
    let log: Vec<u8> = log.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    let log = String::from_utf8_lossy(&log).into_owned();
    compiled.map_err(|e| failed(format!("{e:?}\n{log}")))?;
    let mut size = 0;
    // SAFETY: the program is compiled; `size` and the buffer outlive the calls, and the buffer has the size asked for.
    let image = unsafe {
        sys::nvrtcGetCUBINSize(program.0, &mut size).result().map_err(|e| failed(format!("{e:?}")))?;
        let mut image = vec![0u8; size];
        sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast())
            .result()
            .map_err(|e| failed(format!("{e:?}")))?;
        image
    };
    Ok(Cubin { image, log })
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created in `compile` and destroyed here only. A failure would leak a little memory.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Compiled units on disk: `<key>.cubin` holds the SHA-256 of the image, then the image. The key is a hash of text, options
/// and NVRTC's version, so an entry is never stale; a damaged one is made anew.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: Option<PathBuf>,
}

impl Cache {
    /// The user's cache, where there is one: see [`folder`](Self::folder).
    pub fn of_user() -> Self {
        Self { dir: Self::folder("cubin") }
    }

    /// A folder of the user's cache, which is `$CHRONICALS_CACHE`, else `$XDG_CACHE_HOME/chronicals`, else
    /// `~/.cache/chronicals`. Without any of these nothing is kept.
    pub fn folder(name: &str) -> Option<PathBuf> {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let dir = variable("CHRONICALS_CACHE")
            .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("chronicals")))
            .or_else(|| Some(variable("HOME")?.join(".cache/chronicals")));
        dir.map(|d| d.join(name))
    }

    /// A cache in a folder of its own.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir: Some(dir) }
    }

    /// A unit's image, from the cache if it is there and whole.
    ///
    /// # Errors
    /// As [`compile`]. A cache that cannot be read or written only costs time.
    pub fn get(&self, unit: &Unit, elem: Elem, arch: &str) -> Result<Cubin, GpuError> {
        library::require(&["libnvrtc"])?;
        let Some(dir) = &self.dir else { return compile(unit, elem, arch) };
        let file = dir.join(format!("{}-{}-{arch}-{}.cubin", unit.name, elem.name(), key(unit, elem, arch)));
        if let Some(image) = std::fs::read(&file).ok().and_then(|bytes| whole(&bytes)) {
            return Ok(Cubin { image, log: String::new() });
        }
        let cubin = compile(unit, elem, arch)?;
        let _ = store(&file, &cubin.image);
        Ok(cubin)
    }
}

fn key(unit: &Unit, elem: Elem, arch: &str) -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both integers outlive the call.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    let mut hash = Sha256::new();
    for part in [text(unit), options(elem, arch).join(" "), format!("{major}.{minor}")] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
}

/// The image of a cache entry whose checksum is right.
fn whole(bytes: &[u8]) -> Option<Vec<u8>> {
    let (sum, image) = bytes.split_at_checked(32)?;
    (Sha256::digest(image).as_slice() == sum).then(|| image.to_vec())
}

fn store(file: &std::path::Path, image: &[u8]) -> std::io::Result<()> {
    let dir = file.parent().expect("a file in the cache");
    std::fs::create_dir_all(dir)?;
    let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
    temporary.write_all(&Sha256::digest(image))?;
    temporary.write_all(image)?;
    temporary.persist(file)?;
    Ok(())
}
