//! Activations on their way to page-locked memory and back, beside the launches.
//!
//! What follows waits for a copy by its mark, which a capture keeps as an edge of the graph. A pass waits for each of its copies
//! itself, so that none is left open when it ends: marks of one capture mean nothing to another.

use chronicals_kernels::gpu::{GpuError, Machine};

use super::CudaBackend;
use crate::{
    backend::{HostPlace, View},
    model::Model,
};

/// A place on the host, and the copy to or from it that nobody waited for.
pub(super) struct Place<D: Machine> {
    memory: D::Host,
    open: Option<D::Mark>,
}

/// How many places a model's blocks have on the host.
pub(super) fn places(model: &Model) -> usize {
    model.blocks.iter().filter(|k| k.at_host.is_some()).count()
}

impl<D: Machine> CudaBackend<D> {
    pub(super) fn take_places(&mut self, count: usize, bytes: usize) -> Result<Vec<Place<D>>, GpuError> {
        self.planned_host += (count * bytes) as u64;
        (0..count).map(|_| Ok(Place { memory: self.device.host(bytes)?, open: None })).collect()
    }

    /// Copies the rows in use, there or back.
    pub(super) fn beside(&mut self, view: View, place: HostPlace, to_host: bool) {
        if self.failed.is_some() || self.rehearsal.is_some() {
            return;
        }
        let elem = self.buffers[view.buffer].elem.bytes();
        let (at, bytes) = (elem * view.offset, elem * self.shape.tokens * self.extents.dims.hidden);
        let memory = self.buffers[view.buffer].memory.as_ref().expect("no failure, no lack of memory");
        let own = self.own.as_mut().expect("the backend is prepared before it is used");
        let Place { memory: host, open } = &mut own.places[place.0];
        // SAFETY: nobody looks at the host memory, which lives as long as the backend. Launches that write or read the rows follow
        // the mark: `await_copy` comes before them.
        let copied = unsafe {
            if to_host {
                self.device.put_aside(memory, at, host, bytes)
            } else {
                self.device.bring_back(host, memory, at, bytes)
            }
        };
        match copied {
            Ok(mark) => *open = Some(mark),
            Err(e) => self.failed = Some(e),
        }
    }

    /// Launches from here on follow the last copy of a place.
    pub(super) fn follow_copy(&mut self, place: HostPlace) {
        let own = self.own.as_mut().expect("the backend is prepared before it is used");
        if let Some(mark) = own.places[place.0].open.take()
            && self.failed.is_none()
        {
            self.failed = self.device.follow(&mark).err();
        }
    }
}
