//! Processes that a worker leaves behind outside of its group: a daemon of its own session outlives the group's end.
//!
//! The harness asks to be their parent once theirs is gone, and ends them with the worker. It runs one worker at a time, so that
//! whatever is its child after a worker's end is of that worker.

#[cfg(target_os = "linux")]
mod linux {
    use std::time::{Duration, Instant};

    use nix::{
        sys::{
            prctl,
            signal::{Signal, kill},
            wait::{WaitPidFlag, waitpid},
        },
        unistd::Pid,
    };

    /// A killed process that the kernel cannot end at once (it waits for a device) is not waited for any longer.
    const PATIENCE: Duration = Duration::from_secs(2);

    pub fn adopt() {
        // Without it orphans go to the system's first process, as they always did.
        let _ = prctl::set_child_subreaper(true);
    }

    pub fn end() {
        let begun = Instant::now();
        // The children of a killed orphan arrive after its end.
        loop {
            let children = children();
            if children.is_empty() || begun.elapsed() > PATIENCE {
                return;
            }
            for pid in children {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn children() -> Vec<Pid> {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
        let words: Vec<String> = tasks.filter_map(of).collect();
        words
            .iter()
            .flat_map(|w| w.split_whitespace())
            .filter_map(|w| w.parse().ok())
            .map(Pid::from_raw)
            .collect()
    }
}

#[cfg(target_os = "linux")]
pub use linux::{adopt, end};

/// Elsewhere a worker's group is all that is ended.
#[cfg(not(target_os = "linux"))]
pub fn adopt() {}

/// Elsewhere a worker's group is all that is ended.
#[cfg(not(target_os = "linux"))]
pub fn end() {}
