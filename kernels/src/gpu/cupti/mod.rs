//! When kernels, copies and fills ran, by NVIDIA's CUPTI: its activity API, bound by hand, and looked for when it is asked for.
//!
//! CUPTI hands records over on threads of its own, to two functions without any context. What it hands over is therefore kept
//! once a process.

pub mod record;

use std::{
    alloc::Layout,
    ffi::{CStr, c_char, c_void},
    path::Path,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{Activity, GpuError, library, trace};

/// `CUptiResult`; 0 is success.
type Status = u32;

/// `CUPTI_ERROR_MAX_LIMIT_REACHED`: there are no more records in a buffer.
const NO_MORE: Status = 12;

/// `CUPTI_ACTIVITY_FLAG_FLUSH_FORCED`: buffers that are not full, too.
const FORCED: u32 = 1;

/// Bytes of a buffer of records: some 16,000 kernels.
const BUFFER: Layout = match Layout::from_size_align(4 << 20, 8) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};

type Requested = unsafe extern "C" fn(*mut *mut u8, *mut usize, *mut usize);
type Completed = unsafe extern "C" fn(*mut c_void, u32, *mut u8, usize, usize);

/// The functions that are called.
struct Api {
    version: u32,
    enable: unsafe extern "C" fn(u32) -> Status,
    disable: unsafe extern "C" fn(u32) -> Status,
    register: unsafe extern "C" fn(Requested, Completed) -> Status,
    flush_all: unsafe extern "C" fn(u32) -> Status,
    next_record: unsafe extern "C" fn(*mut u8, usize, *mut *mut u8) -> Status,
    dropped: unsafe extern "C" fn(*mut c_void, u32, *mut usize) -> Status,
    words: unsafe extern "C" fn(Status, *mut *const c_char) -> Status,
}

/// What was handed over.
#[derive(Default)]
struct Seen {
    activities: Vec<Activity>,
    /// Records for which there was no room.
    dropped: usize,
    /// The first failure on CUPTI's threads.
    failed: Option<GpuError>,
}

fn seen() -> MutexGuard<'static, Seen> {
    static SEEN: Mutex<Seen> = Mutex::new(Seen { activities: Vec::new(), dropped: 0, failed: None });
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn api() -> Result<&'static Api, GpuError> {
    static API: OnceLock<Result<Api, GpuError>> = OnceLock::new();
    API.get_or_init(|| {
        let hint = library::CUPTI.hint;
        let missing = || GpuError::new("libcupti (tracing kernels) is missing", "CUDA libraries", hint);
        Api::open(library::cupti().ok_or_else(missing)?)
    })
    .as_ref()
    .map_err(Clone::clone)
}

impl Api {
    fn open(file: &Path) -> Result<Self, GpuError> {
        use libloading::os::unix::{Library, RTLD_NOW};
        let hint = library::CUPTI.hint;
        let failed = |e: libloading::Error| GpuError::new(e.to_string(), file.display().to_string(), hint);
        // SAFETY: NVIDIA's library, which the search has opened already.
        let library = unsafe { Library::open(Some(file), RTLD_NOW) }.map_err(failed)?;
        // SAFETY: the functions have these types in the headers of every version that is known.
        let (mut api, version_of) = unsafe {
            macro_rules! symbol {
                ($name:literal) => {
                    *library.get(concat!($name, "\0").as_bytes()).map_err(failed)?
                };
            }
            let version_of: unsafe extern "C" fn(*mut u32) -> Status = symbol!("cuptiGetVersion");
            let api = Self {
                version: 0,
                enable: symbol!("cuptiActivityEnable"),
                disable: symbol!("cuptiActivityDisable"),
                register: symbol!("cuptiActivityRegisterCallbacks"),
                flush_all: symbol!("cuptiActivityFlushAll"),
                next_record: symbol!("cuptiActivityGetNextRecord"),
                dropped: symbol!("cuptiActivityGetNumDroppedRecords"),
                words: symbol!("cuptiGetResultString"),
            };
            (api, version_of)
        };
        std::mem::forget(library);
        // SAFETY: the place outlives the call. Without a driver it fails.
        let status = unsafe { version_of(&mut api.version) };
        api.check("cuptiGetVersion", status)?;
        if record::is_known(api.version) {
            return Ok(api);
        }
        let what = format!("records of {} are not known", record::version_name(api.version));
        Err(GpuError::new(
            what,
            file.display().to_string(),
            "take that of CUDA 12 or 13.0 to 13.5; or --profile-by events",
        ))
    }

    fn check(&self, call: &str, status: Status) -> Result<(), GpuError> {
        if status == 0 {
            return Ok(());
        }
        let mut words = std::ptr::null();
        // SAFETY: `words` outlives the call, which sets it to a string of CUPTI's own, or leaves it.
        let words = unsafe {
            (self.words)(status, &mut words);
            if words.is_null() { c"" } else { CStr::from_ptr(words) }
        };
        let words = if words.is_empty() { c"no reason given" } else { words };
        Err(GpuError::new(
            format!("{} ({status})", words.to_string_lossy()),
            call,
            "end other profilers, and allow users to profile (NVreg_RestrictProfilingToAdminUsers=0); or take --profile-by events",
        ))
    }

    /// Every record of a buffer.
    ///
    /// # Safety
    /// CUPTI filled as many bytes there.
    unsafe fn records(&self, buffer: *mut u8, len: usize) -> Result<Vec<Activity>, GpuError> {
        let (mut all, mut at) = (Vec::new(), std::ptr::null_mut());
        loop {
            // SAFETY: the buffer is whole; `at` is null, or the record before.
            match unsafe { (self.next_record)(buffer, len, &mut at) } {
                // SAFETY: a whole record lies there, of a version that was checked, and names live as long as their modules.
                0 => all.extend(unsafe { record::read(at) }),
                NO_MORE => return Ok(all),
                status => return self.check("cuptiActivityGetNextRecord", status).map(|()| all),
            }
        }
    }
}

/// Gives CUPTI a buffer, or none where there is no memory.
unsafe extern "C" fn requested(buffer: *mut *mut u8, size: *mut usize, most_records: *mut usize) {
    // SAFETY: the layout is not empty; the three places are CUPTI's own, to be written. 0 records are as many as fit.
    unsafe {
        let memory = std::alloc::alloc(BUFFER);
        *buffer = memory;
        *size = if memory.is_null() { 0 } else { BUFFER.size() };
        *most_records = 0;
    }
}

/// Takes a buffer back.
unsafe extern "C" fn completed(context: *mut c_void, stream: u32, buffer: *mut u8, _: usize, len: usize) {
    if buffer.is_null() {
        return;
    }
    let mut kept = seen();
    if let Ok(api) = api() {
        let mut dropped = 0;
        // SAFETY: CUPTI hands over a buffer that it filled so far, and its own names of context and stream.
        let read = unsafe {
            (api.dropped)(context, stream, &mut dropped);
            api.records(buffer, len)
        };
        kept.dropped += dropped;
        match read {
            Ok(records) => kept.activities.extend(records),
            Err(e) => drop(kept.failed.get_or_insert(e)),
        }
    }
    // SAFETY: allocated by `requested` with this layout, and handed over once.
    unsafe { std::alloc::dealloc(buffer, BUFFER) };
}

/// Its version, where it can be used.
///
/// # Errors
/// It is missing, or of a version whose records are not known.
pub fn version() -> Result<String, GpuError> {
    api().map(|api| record::version_name(api.version))
}

/// Begins to keep what runs on every GPU of the process.
///
/// # Errors
/// As [`version`]; and where CUPTI refuses, e.g. since another profiler is there.
pub fn start() -> Result<(), GpuError> {
    let api = api()?;
    static REGISTERED: OnceLock<Status> = OnceLock::new();
    // SAFETY: both functions stay as long as the process.
    let status = *REGISTERED.get_or_init(|| unsafe { (api.register)(requested, completed) });
    api.check("cuptiActivityRegisterCallbacks", status)?;
    for kind in record::KINDS {
        // SAFETY: a kind of every known version.
        let status = unsafe { (api.enable)(kind) };
        api.check("cuptiActivityEnable", status)?;
    }
    forget()
}

/// Drops what was kept; whoever calls has waited for the GPU.
///
/// # Errors
/// CUPTI refuses.
pub fn forget() -> Result<(), GpuError> {
    flush()?;
    *seen() = Seen::default();
    Ok(())
}

/// Ends, and gives what was kept since it was last [forgotten](forget), in the order in which it was asked for; whoever calls has
/// waited for the GPU.
///
/// # Errors
/// CUPTI refuses, or had no room for everything.
pub fn stop() -> Result<Vec<Activity>, GpuError> {
    flush()?;
    let api = api()?;
    for kind in record::KINDS {
        // SAFETY: as in `start`.
        let status = unsafe { (api.disable)(kind) };
        api.check("cuptiActivityDisable", status)?;
    }
    let Seen { mut activities, dropped, failed } = std::mem::take(&mut *seen());
    if let Some(e) = failed {
        return Err(e);
    }
    if dropped > 0 {
        return Err(GpuError::new(format!("{dropped} records were dropped"), "CUPTI", "profile fewer steps"));
    }
    trace::in_order(&mut activities);
    Ok(activities)
}

/// Has every record handed over.
fn flush() -> Result<(), GpuError> {
    let api = api()?;
    // SAFETY: a call without operands; no lock is held that `completed` takes.
    let status = unsafe { (api.flush_all)(FORCED) };
    api.check("cuptiActivityFlushAll", status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs a GPU and libcupti"]
    fn its_version_is_known_and_failures_have_words() {
        assert!(version().unwrap().starts_with("CUPTI"));
        let e = api().unwrap().check("a call", NO_MORE).unwrap_err();
        assert!(e.what.contains("CUPTI_ERROR_MAX_LIMIT_REACHED") && e.at == "a call", "{e}");
    }
}
