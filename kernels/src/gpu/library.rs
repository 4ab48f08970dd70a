//! Where NVIDIA's libraries are: on the loader's path, under `/usr/local/cuda*`, or in a Python environment's `nvidia/*`.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::GpuError;

/// A library that a GPU needs.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    /// Without version, e.g. `libnvrtc`.
    pub name: &'static str,
    /// File names to try, newest first.
    files: &'static [&'static str],
    /// Opened before it where it lies beside it: loaded by name from inside, which a search by folder does not help.
    companions: &'static [&'static str],
    /// What it is for.
    pub purpose: &'static str,
    /// How to get it.
    pub hint: &'static str,
}

/// In the order in which they are opened.
pub const LIBRARIES: [Library; 3] = [
    Library {
        name: "libcuda",
        files: &["libcuda.so.1", "libcuda.so"],
        companions: &[],
        purpose: "the driver",
        hint: "install NVIDIA's driver",
    },
    Library {
        name: "libnvrtc",
        files: &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
        companions: &["libnvrtc-builtins.so.13.0", "libnvrtc-builtins.so.12.9", "libnvrtc-builtins.so.12.8"],
        purpose: "compiling kernels",
        hint: "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc`",
    },
    Library {
        name: "libcublasLt",
        files: &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
        companions: &[],
        purpose: "matrix products",
        hint: "install the CUDA toolkit, or `pip install nvidia-cublas`",
    },
];

/// What tells when kernels ran; nothing needs it but a trace.
pub const CUPTI: Library = Library {
    name: "libcupti",
    files: &["libcupti.so.13", "libcupti.so.12", "libcupti.so"],
    companions: &[],
    purpose: "tracing kernels",
    hint: "install the CUDA toolkit, or `pip install nvidia-cuda-cupti`; or take --profile-by events",
};

/// A library, and the file it was opened from.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which.
    pub library: Library,
    /// A bare name where the loader found it.
    pub file: Option<PathBuf>,
}

/// Looks for every library, once a process; what is found stays open.
pub fn probe() -> &'static [Found] {
    static FOUND: OnceLock<Vec<Found>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let folders = folders("lib64", "lib");
        LIBRARIES.map(|library| Found { file: open(&library, &folders), library }).into()
    })
}

/// Looks for [`CUPTI`], once a process; what is found stays open.
pub fn cupti() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let search = || {
        // A toolkit has it in a folder of its own too.
        let of_toolkit = entries(Path::new("/usr/local"), "cuda").into_iter();
        let own = of_toolkit.map(|cuda| cuda.join("extras/CUPTI/lib64"));
        open(&CUPTI, &own.chain(folders("lib64", "lib")).collect::<Vec<_>>())
    };
    FOUND.get_or_init(search).as_deref()
}

/// An error that names the first of `names` that is missing.
pub fn require(names: &[&str]) -> Result<(), GpuError> {
    match probe().iter().find(|f| names.contains(&f.library.name) && f.file.is_none()) {
        None => Ok(()),
        Some(f) => Err(GpuError::new(
            format!("{} ({}) is missing", f.library.name, f.library.purpose),
            "CUDA libraries",
            f.library.hint,
        )),
    }
}

fn open(library: &Library, folders: &[PathBuf]) -> Option<PathBuf> {
    if let Some(name) = library.files.iter().find(|name| load(Path::new(name))) {
        return Some(PathBuf::from(name));
    }
    let candidates = folders.iter().flat_map(|dir| library.files.iter().map(move |f| dir.join(f)));
    let file = candidates.into_iter().find(|f| f.is_file())?;
    for companion in library.companions {
        let beside = file.with_file_name(companion);
        if beside.is_file() {
            load(&beside);
        }
    }
    load(&file).then_some(file)
}

/// Opens a library for the rest of the process; later searches by its bare name find it.
fn load(file: &Path) -> bool {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: loading runs the library's initialisers; these are NVIDIA's own libraries under their official names, whose
    // initialisers set up their own state only. Nothing is called here.
    match unsafe { Library::open(Some(file), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library);
            true
        }
        Err(_) => false,
    }
}

/// A disassembler of machine code, on the path or where libraries are found.
///
/// # Errors
/// It is nowhere.
pub fn nvdisasm() -> Result<PathBuf, GpuError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(folders("bin", "bin"));
    folders.map(|dir| dir.join("nvdisasm")).find(|file| file.is_file()).ok_or_else(|| {
        let hint = "install the CUDA toolkit, or `pip install nvidia-cuda-nvdisasm`";
        GpuError::new("nvdisasm (disassembling kernels) is missing", "CUDA programs", hint)
    })
}

/// Folders that may hold libraries or programs off the usual paths: those so named in toolkits and in Python packages.
fn folders(of_toolkit: &str, of_package: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for cuda in entries(Path::new("/usr/local"), "cuda") {
        all.push(cuda.join(of_toolkit));
    }
    for site in site_packages() {
        for package in entries(&site.join("nvidia"), "") {
            all.push(package.join(of_package));
        }
    }
    all
}

/// `site-packages` of the active environment, of every `python3` on the path, and of the system.
fn site_packages() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let pythons = std::env::split_paths(&path).map(|dir| dir.join("python3")).filter(|p| p.exists());
    for python in pythons {
        // The link itself for a virtual environment, what it leads to for an installation.
        let homes = [Some(python.clone()), python.canonicalize().ok()];
        prefixes
            .extend(homes.into_iter().flatten().filter_map(|p| Some(p.parent()?.parent()?.to_path_buf())));
    }
    prefixes.extend(variable("HOME").map(|home| home.join(".local")));
    let paths = std::env::var_os("PYTHONPATH").unwrap_or_default();
    let mut sites: Vec<PathBuf> = std::env::split_paths(&paths).collect();
    for prefix in prefixes {
        for python in entries(&prefix.join("lib"), "python3") {
            sites.extend(["site-packages", "dist-packages"].map(|s| python.join(s)));
        }
    }
    sites
}

/// Entries of a folder whose names begin with `prefix`, last names first: newer versions before older ones.
fn entries(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
    let named = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
    let mut found: Vec<PathBuf> = all.filter(named).collect();
    found.sort();
    found.reverse();
    found
}
