//! Memory of the machine and of the host, and marks that say when either may be touched.

use std::{
    cell::Cell,
    ops::{Deref, DerefMut, Range},
    rc::Rc,
};

use chronicals_kernels::gpu::{GpuError, Ptr, Wait};

use crate::{
    Block,
    streams::{Place, Shared, address},
};

/// Where a mark is.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    Place(Place),
    /// Behind a copy of a capture, whose place is another in each replay.
    Captured(usize),
}

/// A point in the order of a stream.
pub struct Mark {
    pub(super) at: At,
    pub(super) streams: Shared,
}

impl Mark {
    pub(super) fn of_capture(&self) -> Option<usize> {
        if let At::Captured(copy) = self.at { Some(copy) } else { None }
    }

    pub(super) fn place(&self) -> Place {
        match self.at {
            At::Place(place) => place,
            At::Captured(_) => panic!("a mark of a capture is waited for there alone"),
        }
    }
}

impl Wait for Mark {
    fn wait(&self) -> Result<(), GpuError> {
        let mut streams = self.streams.lock();
        streams.reach(self.place());
        streams.failed.clone().map_or(Ok(()), Err)
    }
}

/// Memory of the host that copies read and write. It is an error to touch or to free it before those have passed.
pub struct Host {
    pub(super) block: Block,
    pub(super) streams: Shared,
}

// SAFETY: it is memory and nothing else, which its owner alone reaches.
unsafe impl Send for Host {}

impl Host {
    pub(super) fn bytes(&self) -> usize {
        self.block.len()
    }

    pub(super) fn ptr(&self) -> Ptr {
        self.block.ptr()
    }

    pub(super) fn range(&self) -> Range<usize> {
        let begin = self.block.ptr().0 as usize;
        begin..begin + self.block.len()
    }

    fn check(&self, what: &str) {
        let busy = self.streams.lock().touches(&self.range());
        assert!(!busy, "host memory is {what} while a copy of it waits");
    }
}

impl Deref for Host {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.check("read");
        // SAFETY: as many bytes were allocated and written; no copy has them.
        unsafe { std::slice::from_raw_parts(address(self.block.ptr()), self.block.len()) }
    }
}

impl DerefMut for Host {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.check("written");
        self.streams.lock().writers.insert(std::thread::current().id());
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(address(self.block.ptr()), self.block.len()) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check("freed");
        }
    }
}

/// Memory of the machine. Who frees it waits for what may use it, as on a GPU.
pub struct Memory {
    pub(super) block: Block,
    pub(super) streams: Shared,
    /// Bytes of the machine that are taken.
    pub(super) taken: Rc<Cell<usize>>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.taken.set(self.taken.get() - self.block.len());
        // A failure is told to whoever waits next.
        let _ = self.streams.finish();
    }
}
