//! A clock that goes on with what runs and by nothing else: the same work takes the same time.

use chronicals_kernels::gpu::{
    Activity, Limits,
    trace::{Cost, Kind, Node},
};

use crate::streams::{Line, Step};

/// What the machine can do at best, as its clock has it.
pub(super) const LIMITS: Limits =
    Limits { bytes_a_second: 1e12, flops_a_second: 1e14, product: "emulated product" };

/// ns between one piece of work and the next.
const GAP_NS: u64 = 50;

/// How a step came to run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    Launched,
    /// Of a graph. What was captured while nobody watched is not seen.
    Graph {
        watched: bool,
    },
}

/// Now, and what was seen.
#[derive(Default)]
pub(super) struct Clock {
    now_ns: u64,
    watches: bool,
    seen: Vec<Activity>,
    stamps: Vec<u64>,
}

impl Clock {
    pub(super) fn watch(&mut self) {
        self.watches = true;
        self.seen.clear();
    }

    pub(super) fn end(&mut self) {
        self.watches = false;
    }

    pub(super) fn seen(&mut self) -> Vec<Activity> {
        std::mem::take(&mut self.seen)
    }

    /// ns since the first.
    pub(super) fn stamps(&mut self) -> Vec<u64> {
        let all = std::mem::take(&mut self.stamps);
        all.iter().map(|at| at - all[0]).collect()
    }

    /// A step ran.
    pub(super) fn ran(&mut self, step: &Step, line: Line, origin: Origin) {
        // Twice as long as a machine of these limits takes at best, and a little more.
        let takes = |bytes: u64, flops| {
            let cost = Cost { bytes, flops, flops_a_pair: 0 };
            1_000 + (2e9 * LIMITS.seconds(cost)) as u64
        };
        let (kind, name, bytes, ns) = match step {
            Step::Launch(entry, grid, _) => {
                let threads = u64::from(grid.blocks.0) * u64::from(grid.blocks.1) * u64::from(grid.threads);
                (Kind::Kernel, entry.name, 0, takes(16 * threads, 0))
            }
            Step::Product(p, _) => (Kind::Kernel, "emulated_gemm", 0, takes(p.bytes(), p.flops())),
            Step::Zero(_, len) => (Kind::Fill, "fill", *len as u64, takes(*len as u64, 0)),
            Step::Copy(_, _, len) => {
                (Kind::Copy, "copy on the device", *len as u64, takes(2 * *len as u64, 0))
            }
            Step::Stamp => return self.stamps.push(self.now_ns),
        };
        let start_ns = self.now_ns + GAP_NS;
        self.now_ns = start_ns + ns;
        let in_graph = matches!(origin, Origin::Graph { .. });
        let node = in_graph.then_some(Node { launch: 0, number: start_ns });
        if self.watches && !matches!(origin, Origin::Graph { watched: false }) {
            let stream = match line {
                Line::Launches => 1,
                Line::Copies => 2,
            };
            let name = name.to_string();
            self.seen.push(Activity { kind, name, start_ns, end_ns: self.now_ns, stream, node, bytes });
        }
    }
}
