//! Compiled units: g++ makes a library of each, kept on disk and loaded once.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use chronicals_kernels::gpu::{Arg, Elem, Grid, Unit};
use sha2::{Digest, Sha256};

use super::source;

/// What [`launch.h`](../launch.h) exports.
type Emulate =
    unsafe extern "C" fn(*const c_char, *const c_char, u32, u32, u32, u32, *mut *mut c_void) -> c_int;
type EmulateError = unsafe extern "C" fn() -> *const c_char;

/// A unit for an element type, in machine code of the CPU.
pub struct Module {
    emulate: Emulate,
    emulate_error: EmulateError,
    /// The library keeps the state of its one launch in statics.
    running: Mutex<()>,
}

type Slot = Arc<OnceLock<Result<Module, String>>>;

/// Each unit for each element type once a process; those who come while it compiles wait for it. Units are told apart by
/// address, as statics of one name may differ.
static MODULES: OnceLock<Mutex<HashMap<(usize, Elem), Slot>>> = OnceLock::new();

/// Whether kernels run under AddressSanitizer and UndefinedBehaviorSanitizer.
pub fn sanitized() -> bool {
    std::env::var("CHRONICALS_SANITIZE").is_ok_and(|v| v == "1")
}

/// The C++ compiler; it must not itself run under a preloaded sanitizer.
pub fn compiler() -> Command {
    let mut command = Command::new("g++");
    command.env_remove("LD_PRELOAD");
    command
}

/// What a command wrote to its standard output.
///
/// # Errors
/// It is missing, or it failed: its messages.
pub fn output(command: &mut Command) -> Result<String, String> {
    let hint = "the emulator needs a C++ compiler: apt-get install g++";
    let out = command.output().map_err(|e| format!("{command:?}: {e}; {hint}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(format!("{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr)))
}

/// Runs a launch of a unit to its end.
///
/// # Safety
/// As [`Launcher::launch`](chronicals_kernels::gpu::Launcher::launch).
///
/// # Errors
/// The unit does not compile, arguments are not of the parameters' types, or threads wait for each other for ever.
pub unsafe fn launch(
    unit: &'static Unit,
    elem: Elem,
    name: &str,
    grid: Grid,
    args: &[Arg],
) -> Result<(), String> {
    let modules = MODULES.get_or_init(Mutex::default);
    let key = (std::ptr::from_ref(unit).addr(), elem);
    let slot = modules.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
    let module = slot.get_or_init(|| load(&library(unit, elem)?)).as_ref().map_err(Clone::clone)?;
    // SAFETY: the caller's promise is the same.
    unsafe { module.launch(name, grid, args) }
}

impl Module {
    /// # Safety
    /// As [`launch`].
    unsafe fn launch(&self, name: &str, grid: Grid, args: &[Arg]) -> Result<(), String> {
        let (kinds, mut values): (Vec<u8>, Vec<u64>) = args.iter().map(|arg| parameter(*arg)).unzip();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let name = CString::new(name).map_err(|e| e.to_string())?;
        let kinds = CString::new(kinds).map_err(|e| e.to_string())?;
        let ((x, y), pointers) = (grid.blocks, pointers.as_mut_ptr());
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: strings and values outlive the call, which checks the arguments' number and types before it reads them;
        // what pointers lead to is the caller's promise.
        let failed = unsafe {
            (self.emulate)(name.as_ptr(), kinds.as_ptr(), x, y, grid.threads, grid.shared, pointers)
        };
        if failed == 0 {
            return Ok(());
        }
        // SAFETY: the text stands until the next launch, which waits for the lock.
        Err(unsafe { CStr::from_ptr((self.emulate_error)()) }.to_string_lossy().into_owned())
    }
}

/// Letter of a type, and the bytes of a value at the start of eight.
fn parameter(arg: Arg) -> (u8, u64) {
    let narrow = |bytes: [u8; 4]| {
        let mut wide = [0; 8];
        wide[..4].copy_from_slice(&bytes);
        u64::from_ne_bytes(wide)
    };
    match arg {
        Arg::Ptr(p) => (b'p', p.0),
        Arg::I32(v) => (b'i', narrow(v.to_ne_bytes())),
        Arg::I64(v) => (b'l', v.cast_unsigned()),
        Arg::U32(v) => (b'u', narrow(v.to_ne_bytes())),
        Arg::F32(v) => (b'f', narrow(v.to_ne_bytes())),
        Arg::Matrix { .. } => panic!("the copy engine is not emulated"),
    }
}

fn options(elem: Elem) -> Vec<&'static str> {
    // Kernels look at memory as packs and as elements, which C++'s aliasing rules would not allow. Hidden and not unique:
    // the statics of templates are a library's own.
    let mut options =
        vec!["-std=c++17", "-O2", "-g1", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"];
    options.extend(["-fno-strict-aliasing", "-ffp-contract=off", "-w"]);
    if elem == Elem::F32 {
        options.push("-DELEM_F32");
    }
    if sanitized() {
        options.extend([
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-fno-omit-frame-pointer",
        ]);
    }
    options
}

/// The unit's library: from the build's temporary folder, whose entries are named by a hash of all that goes into them, or
/// compiled into it.
fn library(unit: &Unit, elem: Elem) -> Result<PathBuf, String> {
    static VERSION: OnceLock<Result<String, String>> = OnceLock::new();
    let version = VERSION.get_or_init(|| output(compiler().args(["-dumpfullversion", "-dumpmachine"])));
    let (text, options) = (source::of(unit).map_err(|e| format!("{}: {e}", unit.name))?, options(elem));
    let mut hash = Sha256::new();
    for part in [version.as_ref().map_err(Clone::clone)?, &options.join(" "), &text] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let key: String = hash.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect();
    let dir = &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/emulated");
    let file = dir.join(format!("{}-{}-{key}.so", unit.name, elem.name()));
    if !file.exists() {
        build(&text, &options, dir, &file).map_err(|e| format!("{}, {}: {e}", unit.name, elem.name()))?;
    }
    Ok(file)
}

/// Compiles to a file of another name first: who finds `file` finds all of it.
fn build(text: &str, options: &[&str], dir: &Path, file: &Path) -> Result<(), String> {
    let io = |e: std::io::Error| format!("{}: {e}", dir.display());
    std::fs::create_dir_all(dir).map_err(io)?;
    let temporary = tempfile::tempdir_in(dir).map_err(io)?;
    let [source, made] = ["unit.cpp", "unit.so"].map(|name| temporary.path().join(name));
    std::fs::write(&source, text).map_err(io)?;
    output(compiler().args(options).arg("-o").arg(&made).arg(&source))?;
    std::fs::rename(&made, file).map_err(io)
}

fn load(file: &Path) -> Result<Module, String> {
    let failed = |e: libloading::Error| format!("{}: {e}", file.display());
    // SAFETY: the library is made from this crate's text; its initialisers touch nothing but its own statics.
    let library = unsafe { libloading::Library::new(file) }.map_err(failed)?;
    // SAFETY: launch.h defines both with these types.
    let (emulate, emulate_error) = unsafe {
        (
            *library.get::<Emulate>(c"emulate").map_err(failed)?,
            *library.get::<EmulateError>(c"emulate_error").map_err(failed)?,
        )
    };
    // Fibers of the library live as long as the process.
    std::mem::forget(library);
    Ok(Module { emulate, emulate_error, running: Mutex::new(()) })
}
