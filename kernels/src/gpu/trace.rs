//! What ran on a machine and when, what it cost, and what the machine can do at best.

use std::collections::HashMap;

use super::GpuError;

/// What a launch moves and computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes that it reads and writes, each operand once.
    pub bytes: u64,
    /// Floating-point operations of its products; 0 where memory alone counts.
    pub flops: u64,
    /// The same of each pair of a query and a key that attention's mask leaves: a launch that is run again has other documents.
    pub flops_a_pair: u64,
}

impl Cost {
    /// Of a launch that moves memory.
    pub fn bytes(bytes: u64) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// On a batch with so many pairs.
    pub fn on(self, pairs: u64) -> Self {
        Self { flops: self.flops + self.flops_a_pair * pairs, flops_a_pair: 0, ..self }
    }
}

/// What a machine did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A kernel.
    Kernel,
    /// A fill of memory.
    Fill,
    /// A copy.
    Copy,
}

/// Something that a machine did, by its own clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// What it was.
    pub kind: Kind,
    /// The kernel's name; which way the copy went.
    pub name: String,
    /// When it began, ns.
    pub start_ns: u64,
    /// When it ended, ns.
    pub end_ns: u64,
    /// Number of its stream.
    pub stream: u32,
    /// Where it stands in a graph, if it was part of one.
    pub node: Option<Node>,
    /// Bytes filled or copied; 0 for a kernel, which does not say.
    pub bytes: u64,
}

/// A place in a graph that was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Number of the launch of the graph.
    pub launch: u32,
    /// Number of the node: nodes are numbered in the order of the capture.
    pub number: u64,
}

/// Sorts activities by the order in which they were asked for: by their starts; but those of one launch of a graph, which may run beside
/// each other, by their nodes, from the start of the first on.
pub fn in_order(activities: &mut [Activity]) {
    let mut began: HashMap<u32, u64> = HashMap::new();
    for a in activities.iter() {
        if let Some(node) = a.node {
            let first = began.entry(node.launch).or_insert(a.start_ns);
            *first = a.start_ns.min(*first);
        }
    }
    activities.sort_by_key(|a| a.node.map_or((a.start_ns, 0), |node| (began[&node.launch], node.number)));
}

/// Rates that nothing exceeds by much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes a second of a large copy, read and written ones together.
    pub bytes_a_second: f64,
    /// Floating-point operations a second of a large product.
    pub flops_a_second: f64,
    /// What the product was, e.g. `bf16 product of 8192³`.
    pub product: &'static str,
}

impl Limits {
    /// Seconds below which a cost cannot be: the longer of moving its bytes and of computing.
    pub fn seconds(&self, cost: Cost) -> f64 {
        (cost.bytes as f64 / self.bytes_a_second).max(cost.flops as f64 / self.flops_a_second)
    }
}

/// The clocks of a machine.
pub trait Tracer {
    /// Measures what it can do at best; takes memory for a while.
    ///
    /// # Errors
    /// There is no room, or something fails.
    fn limits(&self) -> Result<Limits, GpuError>;

    /// What would [watch](Self::watch), e.g. `CUPTI 13.0`.
    ///
    /// # Errors
    /// It is missing, or unknown.
    fn watcher(&self) -> Result<String, GpuError>;

    /// Watches whatever runs from now on, graphs that are captured from now on among it.
    ///
    /// # Errors
    /// As [`watcher`](Self::watcher), or it refuses.
    fn watch(&self) -> Result<(), GpuError>;

    /// Waits for the machine, and forgets what was seen.
    ///
    /// # Errors
    /// Something before failed.
    fn forget(&self) -> Result<(), GpuError>;

    /// Waits for the machine, ends the watch, and gives what was seen in the order in which it was asked for: [`in_order`].
    ///
    /// # Errors
    /// Something before failed, or something was not seen for lack of room.
    fn seen(&self) -> Result<Vec<Activity>, GpuError>;

    /// Puts a point behind the launches so far, whose time is [read](Self::stamps) later.
    ///
    /// # Errors
    /// The machine refuses.
    fn stamp(&self) -> Result<(), GpuError>;

    /// Waits for the machine; times of the stamps since the last call, ns since the first of them.
    ///
    /// # Errors
    /// Something before failed.
    fn stamps(&self) -> Result<Vec<u64>, GpuError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_memory_and_products_is_the_limit() {
        let limits = Limits { bytes_a_second: 100.0, flops_a_second: 1000.0, product: "a product" };
        let cost = |bytes, flops| Cost { bytes, flops, flops_a_pair: 0 };
        assert_eq!(limits.seconds(cost(200, 1000)), 2.0);
        assert_eq!(limits.seconds(cost(200, 3000)), 3.0);
        let attention = Cost { bytes: 1, flops: 2, flops_a_pair: 3 };
        assert_eq!(attention.on(10), cost(1, 32));
    }
}
