//! Memory and processor use of a trial's processes while it runs.
//!
//! A look costs a few reads under `/proc` (some 0.1 ms; the list of all processes is read once a second only, to find
//! new children), ten times a second: about a thousandth of one core.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use chronibench_protocol::record::Sample;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use super::gpu::Gpu;
use crate::{environment, error::Result};

/// Time between two looks.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// Time between two searches for new children.
const SEARCH: Duration = Duration::from_secs(1);
/// The machine's processor use needs this long between two readings to mean anything.
const MACHINE: Duration = Duration::from_millis(200);

/// Looks at one process tree.
pub struct Sampler<'a> {
    system: System,
    gpu: Option<&'a Gpu>,
    tree: BTreeSet<Pid>,
    searched: Option<Instant>,
    machine_read: Instant,
    /// Moment and processor time (ms) of the last look.
    last: Option<(Instant, u64)>,
}

impl<'a> Sampler<'a> {
    /// A sampler of the tree under `root`.
    pub fn new(root: u32, gpu: Option<&'a Gpu>) -> Result<Self> {
        let mut system = environment::system()?;
        system.refresh_cpu_usage();
        let tree = BTreeSet::from([Pid::from_u32(root)]);
        Ok(Self { system, gpu, tree, searched: None, machine_read: Instant::now(), last: None })
    }

    /// One look, `t` after the spawn.
    pub fn look(&mut self, t: Duration) -> Sample {
        let now = Instant::now();
        if self.searched.is_none_or(|s| now - s >= SEARCH) {
            self.find_children();
            self.searched = Some(now);
        }
        if now - self.machine_read >= MACHINE {
            self.system.refresh_cpu_usage();
            self.machine_read = now;
        }
        let pids: Vec<Pid> = self.tree.iter().copied().collect();
        let kind = ProcessRefreshKind::nothing().with_memory().with_cpu().without_tasks();
        self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, kind);
        let alive = || pids.iter().filter_map(|p| self.system.process(*p));
        let cpu_ms: u64 = alive().map(|p| p.accumulated_cpu_time()).sum();
        let rss_bytes = alive().map(|p| p.memory()).sum();
        let cpu_percent = match self.last.replace((now, cpu_ms)) {
            // A child that ended takes its time with it; that look shows less, never a negative number.
            Some((then, ms)) => cpu_ms.saturating_sub(ms) as f32 / (now - then).as_secs_f32() / 10.0,
            None => 0.0,
        };
        Sample {
            t_ns: t.as_nanos() as u64,
            rss_bytes,
            cpu_percent,
            machine_cpu_percent: self.system.global_cpu_usage(),
            gpu: self.gpu.and_then(|g| g.look(&pids.iter().map(|p| p.as_u32()).collect::<Vec<_>>())),
        }
    }

    /// Adds processes whose parent is in the tree, to any depth.
    fn find_children(&mut self) {
        let kind = ProcessRefreshKind::nothing().without_tasks();
        self.system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
        loop {
            let known = |p: &Option<Pid>| p.is_some_and(|p| self.tree.contains(&p));
            let new: Vec<Pid> = self
                .system
                .processes()
                .values()
                .filter(|p| known(&p.parent()) && !self.tree.contains(&p.pid()))
                .map(|p| p.pid())
                .collect();
            if new.is_empty() {
                return;
            }
            self.tree.extend(new);
        }
    }
}
