//! CUDA graphs: work that is put on the stream once and then run again and again by one call.

use std::{collections::BTreeMap, ffi::CStr};

use cudarc::driver::{DriverError, result, sys};

use super::{Gpu, GpuError};

/// Work as it was captured: kernels, their arguments and the order between them. Addresses stay those of the capture; what
/// changes from run to run is read from memory.
pub struct Graph<'a> {
    on: &'a Gpu,
    exec: sys::CUgraphExec,
    kernels: BTreeMap<String, u64>,
}

fn failed(e: DriverError) -> GpuError {
    GpuError::driver("graph", e)
}

impl Gpu {
    /// Captures what `work` puts on the stream; none of it runs. Everything that waits or allocates must have been done
    /// before: kernels loaded, products planned.
    ///
    /// # Errors
    /// `work` fails, or does something that cannot be captured.
    pub fn capture(&self, work: impl FnOnce() -> Result<(), GpuError>) -> Result<Graph<'_>, GpuError> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this GPU's own and captures nothing yet.
        unsafe { sys::cuStreamBeginCapture_v2(self.stream(), mode) }.result().map_err(failed)?;
        let worked = work();
        let mut graph = std::ptr::null_mut();
        // SAFETY: the capture began above; it ends whether or not the work failed.
        let ended = unsafe { sys::cuStreamEndCapture(self.stream(), &mut graph) }.result();
        let graph = Captured(graph);
        worked?;
        ended.map_err(failed)?;
        let kernels = graph.kernels().map_err(failed)?;
        // SAFETY: the graph is whole; what is made of it does not need it any more.
        let exec = unsafe { result::graph::instantiate(graph.0, sys::CUgraphInstantiate_flags(0)) };
        Ok(Graph { on: self, exec: exec.map_err(failed)?, kernels })
    }
}

impl Graph<'_> {
    /// Runs it, in order with the launches.
    ///
    /// # Safety
    /// Every operand of the captured work is alive, as its launches demand, until the graph has run.
    ///
    /// # Errors
    /// The driver refuses. Faults inside kernels show at the next synchronisation.
    pub unsafe fn launch(&self) -> Result<(), GpuError> {
        self.on.bind()?;
        // SAFETY: graph and stream are alive; the operands are the caller's promise.
        unsafe { result::graph::launch(self.exec, self.on.stream()) }.map_err(failed)
    }

    /// Its kernels by name, and how many of each, as the driver enumerates them.
    pub fn kernels(&self) -> &BTreeMap<String, u64> {
        &self.kernels
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        let _ = self.on.synchronise();
        // SAFETY: instantiated by `capture` and destroyed here only, when nothing of it runs.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}

struct Captured(sys::CUgraph);

impl Captured {
    fn kernels(&self) -> Result<BTreeMap<String, u64>, DriverError> {
        let mut count = 0;
        // SAFETY: without an array only the count is written.
        unsafe { sys::cuGraphGetNodes(self.0, std::ptr::null_mut(), &mut count) }.result()?;
        let mut nodes = vec![std::ptr::null_mut(); count];
        // SAFETY: the array has as many places as the graph has nodes.
        unsafe { sys::cuGraphGetNodes(self.0, nodes.as_mut_ptr(), &mut count) }.result()?;
        let mut kernels = BTreeMap::new();
        for node in nodes {
            if let Some(name) = kernel_name(node)? {
                *kernels.entry(name).or_default() += 1;
            }
        }
        Ok(kernels)
    }
}

/// Name of a node's kernel; None where the node is a copy or a fill.
fn kernel_name(node: sys::CUgraphNode) -> Result<Option<String>, DriverError> {
    let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
    // SAFETY: the node is of a graph that is alive, and `kind` outlives the call.
    unsafe { sys::cuGraphNodeGetType(node, &mut kind) }.result()?;
    if kind != sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL {
        return Ok(None);
    }
    // SAFETY: the driver's own plain struct; zeros are valid, and it is only written.
    let mut params: sys::CUDA_KERNEL_NODE_PARAMS = unsafe { std::mem::zeroed() };
    let mut name = std::ptr::null();
    // SAFETY: the node is a kernel's. A library's kernel has a handle in place of a function. Names live as long as their
    // modules, and are copied at once.
    unsafe {
        sys::cuGraphKernelNodeGetParams_v2(node, &mut params).result()?;
        if params.func.is_null() {
            sys::cuKernelGetName(&mut name, params.kern).result()?;
        } else {
            sys::cuFuncGetName(&mut name, params.func).result()?;
        }
        Ok(Some(CStr::from_ptr(name).to_string_lossy().into_owned()))
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by the end of a capture and destroyed here only.
            let _ = unsafe { result::graph::destroy(self.0) };
        }
    }
}
