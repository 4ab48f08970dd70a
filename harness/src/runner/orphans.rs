//! Processes that a worker leaves behind outside of its group: a daemon of its own session outlives the group's end.
//!
//! The harness asks to be their parent once theirs is gone, and ends them with the worker. It knows them by a mark that a worker
//! finds in its environment and hands on: other children, such as the worker of another thread, are spared.

use std::sync::atomic::{AtomicU64, Ordering};

/// Name of the variable.
const VARIABLE: &str = "CHRONIBENCH_WORKER";

/// What a worker and all that come from it carry in their environment.
#[derive(Debug)]
pub struct Mark(String);

impl Mark {
    /// Another than any other of this process, and of other processes that live.
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self(format!("{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The variable that a worker is started with.
    pub fn variable(&self) -> (&'static str, &str) {
        (VARIABLE, &self.0)
    }
}

/// The process that spawned this one as its worker; `None` where none did.
#[cfg(target_os = "linux")]
pub fn spawned_by() -> Option<u32> {
    std::env::var(VARIABLE).ok()?.split('.').next()?.parse().ok()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        collections::BTreeSet,
        time::{Duration, Instant},
    };

    use nix::{
        sys::{
            prctl,
            signal::{Signal, kill},
            wait::{WaitPidFlag, WaitStatus, waitpid},
        },
        unistd::Pid,
    };

    use super::Mark;

    /// A killed process that the kernel cannot end at once (it waits for a device) is not waited for any longer.
    const PATIENCE: Duration = Duration::from_secs(2);

    pub fn adopt() {
        // Without it orphans go to the system's first process, as they always did.
        let _ = prctl::set_child_subreaper(true);
    }

    pub fn end(mark: &Mark) {
        let begun = Instant::now();
        // Kept until it is reaped: a process that has ended shows no environment any more.
        let mut ending = BTreeSet::new();
        // The children of a killed orphan arrive after its end.
        loop {
            ending.extend(children(mark));
            if ending.is_empty() || begun.elapsed() > PATIENCE {
                return;
            }
            ending.retain(|pid| {
                let _ = kill(*pid, Signal::SIGKILL);
                matches!(waitpid(*pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
            });
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn children(mark: &Mark) -> Vec<Pid> {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
        let words: Vec<String> = tasks.filter_map(of).collect();
        words
            .iter()
            .flat_map(|w| w.split_whitespace())
            .filter_map(|w| w.parse().ok())
            .map(Pid::from_raw)
            .filter(|pid| carries(*pid, mark))
            .collect()
    }

    fn carries(pid: Pid, mark: &Mark) -> bool {
        let (name, value) = mark.variable();
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == format!("{name}={value}").as_bytes())
    }
}

#[cfg(target_os = "linux")]
pub use linux::{adopt, end};

/// Elsewhere a worker's group is all that is ended.
#[cfg(not(target_os = "linux"))]
pub fn adopt() {}

/// Elsewhere a worker's group is all that is ended.
#[cfg(not(target_os = "linux"))]
pub fn end(_: &Mark) {}
