//! Ends that are not the arm's doing, or that have a name: memory that ran out, and faults of the machine.

use chronibench_protocol::event::Phase;

use crate::trial::TrialLog;

/// The most memory that the samples of a trial saw, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peak {
    /// Resident set.
    pub rss: u64,
    /// Of its processes on the GPU.
    pub gpu: u64,
}

/// What programs say when memory runs out, in lower case: PyTorch, CUDA and its libraries, Rust, Python, C++, and C.
const OUT_OF_MEMORY: [&str; 8] = [
    "out of memory",
    "outofmemoryerror",
    "cuda_error_out_of_memory",
    "cublas_status_alloc_failed",
    "memory allocation of",
    "memoryerror",
    "std::bad_alloc",
    "cannot allocate memory",
];

/// What is said when the machine is to blame, in lower case, and what it means. A trial that ends so before its first timed step is
/// begun again, as often as the scenario allows; nothing else ever is.
pub const ENVIRONMENT_FAULTS: [(&str, &str); 9] = [
    ("devices are busy or unavailable", "another program holds the GPU"),
    ("device(s) is/are busy or unavailable", "another program holds the GPU"),
    ("cuda_error_device_unavailable", "another program holds the GPU"),
    ("uncorrectable ecc error", "a memory error of the GPU"),
    ("cuda_error_ecc_uncorrectable", "a memory error of the GPU"),
    ("fallen off the bus", "the GPU was lost"),
    ("cuda_error_system_not_ready", "the GPU's fabric was not ready"),
    ("text file busy", "a program was being replaced"),
    ("stale file handle", "a network file system was lost"),
];

/// How it is known that memory ran out; `None` when it did not, or nothing says so.
pub fn out_of_memory(log: &TrialLog) -> Option<String> {
    let exit = log.exit.as_ref().filter(|e| e.code != Some(0))?;
    if let Some(line) = said(log, |line| OUT_OF_MEMORY.iter().any(|words| line.contains(words))) {
        return Some(line);
    }
    // The harness has not sent it: it would have said so, and been answered before.
    (exit.signal == Some(KILL)).then(|| match exit.oom_kills {
        Some(n) if n > 0 => "the kernel killed it for want of memory".to_string(),
        _ => "signal 9 that the harness did not send, which is the kernel's when memory runs out".to_string(),
    })
}

const KILL: i32 = 9;

/// The fault of the machine that ended a trial before it was timed, if one did. The words are the arm's own: one that has seen how fast
/// its timed steps are could say them to be given another try.
pub fn environment_fault(log: &TrialLog) -> Option<&'static str> {
    if log.steps.iter().any(|s| s.event.phase == Phase::Timed) || !log.windows.is_empty() {
        return None;
    }
    log.exit.as_ref().filter(|e| e.code != Some(0) && e.timed_out_after_s.is_none())?;
    let of = |line: &str| ENVIRONMENT_FAULTS.iter().find(|(words, _)| line.contains(words));
    let line = said(log, |line| of(line).is_some())?;
    of(&line.to_lowercase()).map(|(_, what)| *what)
}

/// The most memory that was seen.
pub fn peak(log: &TrialLog) -> Option<Peak> {
    let rss = log.samples.iter().map(|s| s.rss_bytes).max()?;
    let gpu = log.samples.iter().filter_map(|s| s.gpu.as_ref()).map(|g| g.process_bytes).max();
    Some(Peak { rss, gpu: gpu.unwrap_or(0) })
}

/// The arm's own error, or the last line of its standard error, whose lower-case form passes.
fn said(log: &TrialLog, passes: impl Fn(&str) -> bool) -> Option<String> {
    let error = log.error.iter().map(|e| e.event.what.as_str());
    let tail = log.exit.iter().flat_map(|e| e.stderr_tail.lines().rev());
    let line = error.chain(tail).find(|line| passes(&line.to_lowercase()))?;
    Some(line.trim().chars().take(300).collect())
}
