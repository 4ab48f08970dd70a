//! What a step is fed with and what it leaves: batches on their way to the device, and its few numbers on their way back.
//!
//! ```text
//! preparer     encodes batch n+1 into a block of host memory
//! copies                  block n ─→ staging
//! launches     …n−1]                        staging ─→ batch  [step n …
//! ```
//!
//! Captured kernels read the batch where the capture had it. So the host's copy goes to a second place, beside the launches, and
//! from there, on the device, to where kernels read it, in order with them: at a megabyte or less, some microseconds. That second
//! copy is no part of the graph: the staging is then free as soon as a step begins, and the next batch arrives during the step.
//! The numbers that a step begins with travel behind its first batch, in the same copies.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use chronicals_data::batch::Batch;
use chronicals_kernels::gpu::{GpuError, Machine, Wait};

use super::{
    CudaBackend,
    batch::{self, Shape},
    extents::{BatchLayout, Extents, scalars},
    failure,
};
use crate::{
    backend::{self, StepStats},
    error::Error,
};

/// Blocks of host memory: one that is written, one that waits, one that is copied, and one to spare.
const BLOCKS: usize = 4;

/// Host memory of a machine, and the mark behind which it is free.
type Block<D> = (<D as Machine>::Host, Option<<D as Machine>::Mark>);

/// Blocks that batches are written to; they come back when they were sent.
struct Pool<D: Machine> {
    free: Mutex<VecDeque<Block<D>>>,
    back: Condvar,
}

impl<D: Machine> Pool<D> {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Block<D>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block that nobody reads any more; waits for one.
    fn take(&self) -> Result<D::Host, GpuError> {
        let mut free = self.lock();
        let (host, mark) = loop {
            match free.pop_front() {
                Some(block) => break block,
                None => free = self.back.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(free);
        let passed = mark.map_or(Ok(()), |mark| mark.wait());
        if let Err(e) = passed {
            self.put((host, None));
            return Err(e);
        }
        Ok(host)
    }

    fn put(&self, block: Block<D>) {
        self.lock().push_back(block);
        self.back.notify_one();
    }
}

impl<D: Machine> Drop for Pool<D> {
    fn drop(&mut self) {
        // Freed behind the copies from it. A failure was told when it was waited for.
        self.lock().iter().for_each(|(_, mark)| drop(mark.as_ref().map(Wait::wait)));
    }
}

/// Encodes batches, on any thread.
pub struct Stager<D: Machine> {
    pool: Arc<Pool<D>>,
    extents: Extents,
    layout: BatchLayout,
    trains_table: bool,
}

impl<D: Machine> backend::Stager for Stager<D> {
    type Staged = Staged<D>;

    fn stage(&self, batch: Batch) -> Result<Staged<D>, Error> {
        let capacity = self.extents.capacity;
        let fits = batch.ids.len() <= capacity.tokens && batch.row_slots <= capacity.row_slots;
        assert!(fits, "the batch is within the capacity that the model was laid out for");
        let shape = batch::shape(&batch, &self.extents);
        let mut host = self.pool.take().map_err(failure)?;
        batch::encode(&batch, shape, &self.extents, &self.layout, self.trains_table, &mut host);
        Ok(Staged { shape, host: Some(host), home: self.pool.clone() })
    }
}

/// A batch in host memory.
pub struct Staged<D: Machine> {
    shape: Shape,
    /// None when it was sent.
    host: Option<D::Host>,
    home: Arc<Pool<D>>,
}

impl<D: Machine> Drop for Staged<D> {
    fn drop(&mut self) {
        // Nobody waits for a block for ever because a batch was not used.
        if let Some(host) = self.host.take() {
            self.home.put((host, None));
        }
    }
}

/// The numbers of a step on their way back.
pub struct Reading<D: Machine> {
    /// The first failure before it; or none of it, when it was read.
    read: Result<Option<Block<D>>, GpuError>,
    loss_tokens: u64,
}

impl<D: Machine> Drop for Reading<D> {
    fn drop(&mut self) {
        // Host memory is freed behind the copy to it. A failure is kept by the device.
        if let Ok(Some((_, Some(mark)))) = &self.read {
            let _ = mark.wait();
        }
    }
}

/// Both ways of a backend.
pub(super) struct Feed<D: Machine> {
    /// Of batches.
    pool: Arc<Pool<D>>,
    /// Of readings; as many as steps are under way.
    readings: Vec<D::Host>,
    staging: D::Memory,
    /// Behind the last copy from the staging.
    taken: Option<D::Mark>,
    /// Numbers that a step begins with, until its first batch takes them along.
    header: Option<Vec<u8>>,
}

impl<D: Machine> Feed<D> {
    /// For blocks of a size; `staging` has it too.
    pub(super) fn new(device: &D, bytes: usize, staging: D::Memory) -> Result<Self, GpuError> {
        let blocks = (0..BLOCKS).map(|_| Ok((device.host(bytes)?, None)));
        let free = Mutex::new(blocks.collect::<Result<_, GpuError>>()?);
        let readings = (0..2).map(|_| device.host(scalars::HYPER)).collect::<Result<_, _>>()?;
        let pool = Arc::new(Pool { free, back: Condvar::new() });
        Ok(Self { pool, readings, staging, taken: None, header: None })
    }
}

impl<D: Machine> CudaBackend<D> {
    pub(super) fn make_stager(&self) -> Stager<D> {
        let own = self.own();
        Stager {
            pool: own.feed.pool.clone(),
            extents: self.extents,
            layout: self.layout,
            trains_table: own.trains_table,
        }
    }

    fn feed_mut(&mut self) -> &mut Feed<D> {
        &mut self.own.as_mut().expect("the backend is prepared before it is used").feed
    }

    /// The numbers of a step from byte `at` on.
    pub(super) fn put_numbers(&mut self, at: usize, bytes: &[u8]) {
        let header = self.feed_mut().header.get_or_insert_default();
        assert!(header.len() >= at, "a step begins before it is scheduled, and both before its first batch");
        header.truncate(at);
        header.extend_from_slice(bytes);
    }

    /// Sends a batch and makes it the current one.
    pub(super) fn feed_batch(&mut self, mut staged: Staged<D>) {
        self.shape = staged.shape;
        self.loss_tokens += staged.shape.loss_tokens as u64;
        if self.failed.is_none() {
            self.failed = self.send(&mut staged).err();
        }
    }

    fn send(&mut self, staged: &mut Staged<D>) -> Result<(), GpuError> {
        let (device, at) = (self.device.clone(), self.layout.bytes);
        let own = self.own.as_mut().expect("the backend is prepared before it is used");
        let feed = &mut own.feed;
        let mut host = staged.host.take().expect("a batch is sent once");
        let header = feed.header.take().unwrap_or_default();
        host[at..at + header.len()].copy_from_slice(&header);
        let bytes = at + header.len();
        // SAFETY: the block is back in the pool with the mark that whoever takes it waits for; the staging is read by the
        // copy below alone, which `taken` is behind.
        let arrived = unsafe { device.send(&host, &feed.staging, bytes, feed.taken.as_ref())? };
        let copied = device.follow(&arrived).and_then(|()| device.copy(&feed.staging, &own.batch, bytes));
        staged.home.put((host, Some(arrived)));
        copied?;
        feed.taken = Some(device.mark()?);
        Ok(())
    }

    /// Asks for the numbers of a step, in order with its launches.
    pub(super) fn ask(&mut self) -> Reading<D> {
        let loss_tokens = std::mem::take(&mut self.loss_tokens);
        let read = match self.failed.clone() {
            Some(e) => Err(e),
            None => self.receive().map(Some).inspect_err(|e| self.failed = Some(e.clone())),
        };
        Reading { read, loss_tokens }
    }

    fn receive(&mut self) -> Result<Block<D>, GpuError> {
        let (device, at) = (self.device.clone(), self.layout.bytes);
        let own = self.own.as_mut().expect("the backend is prepared before it is used");
        if let Some(header) = own.feed.header.take() {
            // A step without a batch.
            device.write(&own.batch, at, &header)?;
        }
        let mut host = own.feed.readings.pop().map_or_else(|| device.host(scalars::HYPER), Ok)?;
        // SAFETY: the host memory is kept, and looked at behind the mark alone; see `Reading`.
        unsafe { device.receive(&own.batch, at, &mut host)? };
        let mark = device.mark()?;
        Ok((host, Some(mark)))
    }

    /// Waits for the numbers of a step.
    pub(super) fn answer(&mut self, mut reading: Reading<D>) -> Result<StepStats, Error> {
        let read = std::mem::replace(&mut reading.read, Ok(None)).map_err(failure)?;
        let (host, mark) = read.expect("a step is read once");
        if let Err(e) = mark.map_or(Ok(()), |mark| mark.wait()) {
            self.failed.get_or_insert(e);
        }
        let loss = host[scalars::LOSS..][..8].try_into().expect("eight bytes");
        let number =
            |at: usize| f64::from(f32::from_le_bytes(host[at..][..4].try_into().expect("four bytes")));
        let mut stats = StepStats {
            loss_sum: f64::from_le_bytes(loss),
            loss_tokens: reading.loss_tokens,
            grad_norm: number(scalars::CLIP),
            ..StepStats::default()
        };
        for (i, (name, _)) in self.own().groups.iter().enumerate() {
            stats.add_group(name, number(scalars::NORMS + 4 * i).powi(2));
        }
        self.feed_mut().readings.push(host);
        self.check().map(|()| stats)
    }
}
