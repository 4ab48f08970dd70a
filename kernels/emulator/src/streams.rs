//! Two streams, as a GPU has them: launches, and copies beside them. Neither does anything before somebody waits for it, so that
//! what is in order is in order because of a mark, and not because it was asked for earlier.

use std::{
    collections::{HashSet, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::ThreadId,
};

use chronicals_kernels::gpu::{Arg, Entry, GpuError, Grid, Launcher, Product, Products, Ptr};

use crate::{
    Block, Emulator,
    capture::Piece,
    clock::{Clock, Origin},
    memory::{At, Host, Mark},
};

/// When what is sent arrives, of all times that the marks allow. What is right is so with either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrival {
    /// When somebody waits for it: whoever does not, reads what was there before.
    #[default]
    Late,
    /// As soon as it may, ahead of launches that were put before: whoever has them still to read what it overwrites, reads it.
    Early,
}

/// A piece of work.
#[derive(Clone)]
pub(super) enum Step {
    Launch(Entry, Grid, Vec<Arg>),
    Product(Product, [Ptr; 4]),
    Zero(Ptr, usize),
    Copy(Ptr, Ptr, usize),
    /// Reads the clock.
    Stamp,
}

impl Step {
    /// # Safety
    /// As [`Launcher::launch`].
    unsafe fn run(&self) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe {
            match self {
                Step::Launch(entry, grid, args) => Emulator.launch(*entry, *grid, args),
                Step::Product(product, [a, b, bias, c]) => Emulator.product(product, *a, *b, *bias, *c),
                Step::Zero(at, len) => {
                    address(*at).write_bytes(0, *len);
                    Ok(())
                }
                Step::Copy(from, to, len) => {
                    address(*to).copy_from(address(*from), *len);
                    Ok(())
                }
                Step::Stamp => Ok(()),
            }
        }
    }
}

pub(super) fn address(at: Ptr) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(at.0 as usize)
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Line {
    Launches,
    Copies,
}

/// So much of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    line: Line,
    count: usize,
}

/// What is on a stream.
enum Work {
    Steps(Arc<[Step]>, Origin),
    /// Steps that read or write host memory.
    OfHost(Step, Range<usize>),
    Follow(Place),
}

impl Work {
    /// What it waits for and nothing else.
    fn awaited(&self) -> Option<Place> {
        if let Work::Follow(place) = self { Some(*place) } else { None }
    }
}

#[derive(Default)]
struct Stream {
    waiting: VecDeque<Work>,
    done: usize,
}

/// Both streams.
#[derive(Default)]
pub(super) struct Streams {
    launches: Stream,
    copies: Stream,
    arrival: Arrival,
    pub(super) failed: Option<GpuError>,
    clock: Clock,
    sent: usize,
    pub(super) writers: HashSet<ThreadId>,
}

impl Streams {
    fn of(&mut self, line: Line) -> &mut Stream {
        match line {
            Line::Launches => &mut self.launches,
            Line::Copies => &mut self.copies,
        }
    }

    fn put(&mut self, line: Line, work: Work) {
        self.of(line).waiting.push_back(work);
        self.hurry();
    }

    fn beside(&mut self, step: Step, host: Range<usize>) -> Place {
        let behind = self.end(Line::Launches);
        self.put(Line::Copies, Work::Follow(behind));
        self.put(Line::Copies, Work::OfHost(step, host));
        self.end(Line::Copies)
    }

    /// The end of a stream as it is now.
    fn end(&mut self, line: Line) -> Place {
        let stream = self.of(line);
        Place { line, count: stream.done + stream.waiting.len() }
    }

    fn has_passed(&self, place: Place) -> bool {
        let stream = match place.line {
            Line::Launches => &self.launches,
            Line::Copies => &self.copies,
        };
        stream.done >= place.count
    }

    /// Runs the streams up to a place, and as much of the other one as that waits for. Behind a failure nothing runs.
    pub(super) fn reach(&mut self, place: Place) {
        while !self.has_passed(place) {
            let next = self.of(place.line).waiting.front().and_then(Work::awaited);
            match next.filter(|other| !self.has_passed(*other)) {
                // On the way there this stream may have gone on.
                Some(other) => self.reach(other),
                None => self.advance(place.line),
            }
        }
    }

    fn advance(&mut self, line: Line) {
        let work = self.of(line).waiting.pop_front().expect("a place is on its stream");
        let (steps, origin) = match &work {
            Work::Steps(steps, origin) => (&**steps, *origin),
            Work::OfHost(step, _) => (std::slice::from_ref(step), Origin::Launched),
            Work::Follow(_) => (&[][..], Origin::Launched),
        };
        for step in steps {
            if self.failed.is_none() {
                // SAFETY: who put it there promised that it may run until it is waited for.
                self.failed = unsafe { step.run() }.err();
                self.clock.ran(step, line, origin);
            }
        }
        self.of(line).done += 1;
        self.hurry();
    }

    /// Copies that may run, where they are early.
    fn hurry(&mut self) {
        while self.arrival == Arrival::Early {
            match self.copies.waiting.front().map(Work::awaited) {
                Some(other) if other.is_none_or(|other| self.has_passed(other)) => self.advance(Line::Copies),
                _ => return,
            }
        }
    }

    /// Whether work that waits has to do with host memory.
    pub(super) fn touches(&self, host: &Range<usize>) -> bool {
        let of_host =
            |work: &Work| matches!(work, Work::OfHost(_, r) if r.start < host.end && host.start < r.end);
        self.launches.waiting.iter().chain(&self.copies.waiting).any(of_host)
    }
}

/// The streams, for whoever has to do with them.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Streams>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_arrival(&self, arrival: Arrival) {
        self.lock().arrival = arrival;
    }

    /// Puts steps behind the launches.
    ///
    /// # Safety
    /// As [`Launcher::launch`], of each.
    pub(super) unsafe fn launch(&self, steps: impl Into<Arc<[Step]>>, origin: Origin) {
        self.lock().put(Line::Launches, Work::Steps(steps.into(), origin));
    }

    /// The clock, when everything has run.
    ///
    /// # Errors
    /// Something failed.
    pub(super) fn clock<T>(&self, f: impl FnOnce(&mut Clock) -> T) -> Result<T, GpuError> {
        self.finish()?;
        Ok(f(&mut self.lock().clock))
    }

    /// Waits for everything.
    pub(super) fn finish(&self) -> Result<(), GpuError> {
        let mut streams = self.lock();
        for line in [Line::Launches, Line::Copies] {
            let end = streams.end(line);
            streams.reach(end);
        }
        streams.failed.clone().map_or(Ok(()), Err)
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { at: At::Place(self.lock().end(Line::Launches)), streams: self.clone() }
    }

    pub(super) fn follow(&self, mark: &Mark) {
        self.lock().put(Line::Launches, Work::Follow(mark.place()));
    }

    /// A copy beside later launches, behind those so far.
    ///
    /// # Safety
    /// As `Machine::put_aside`.
    pub(super) unsafe fn beside(&self, step: Step, host: Range<usize>) -> Mark {
        let place = self.lock().beside(step, host);
        Mark { at: At::Place(place), streams: self.clone() }
    }

    /// The mark of a copy of a capture.
    pub(super) fn captured(&self, copy: usize) -> Mark {
        Mark { at: At::Captured(copy), streams: self.clone() }
    }

    /// Puts captured work behind the launches, and its copies beside them.
    ///
    /// # Safety
    /// As `Machine::replay`.
    pub(super) unsafe fn replay(&self, pieces: &[Piece], origin: Origin) {
        let mut streams = self.lock();
        let mut copies = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Launches(steps) => streams.put(Line::Launches, Work::Steps(steps.clone(), origin)),
                Piece::Beside(step, host) => copies.push(streams.beside(step.clone(), host.clone())),
                Piece::Follow(copy) => streams.put(Line::Launches, Work::Follow(copies[*copy])),
            }
        }
    }

    /// # Safety
    /// As `Machine::send`.
    pub(super) unsafe fn send(&self, from: &Host, to: Ptr, bytes: usize, after: Option<&Mark>) -> Mark {
        let mut streams = self.lock();
        streams.sent += 1;
        if let Some(after) = after {
            streams.put(Line::Copies, Work::Follow(after.place()));
        }
        let step = Step::Copy(from.block.ptr(), to, bytes);
        streams.put(Line::Copies, Work::OfHost(step, from.range()));
        Mark { at: At::Place(streams.end(Line::Copies)), streams: self.clone() }
    }

    /// # Safety
    /// As `Machine::receive`.
    pub(super) unsafe fn receive(&self, from: Ptr, to: &Host) {
        let step = Step::Copy(from, to.block.ptr(), to.block.len());
        self.lock().put(Line::Launches, Work::OfHost(step, to.range()));
    }

    pub(super) fn host(&self, bytes: usize) -> Host {
        Host { block: Block::new(&vec![0; bytes]), streams: self.clone() }
    }

    pub(super) fn sent(&self) -> usize {
        self.lock().sent
    }

    pub(super) fn writers(&self) -> HashSet<ThreadId> {
        self.lock().writers.clone()
    }
}

/// Counts what a machine sends.
pub struct Counter(Shared);

impl Counter {
    pub(super) fn of(streams: &Shared) -> Self {
        Self(streams.clone())
    }

    /// How often so far.
    pub fn sent(&self) -> usize {
        self.0.sent()
    }
}

#[cfg(test)]
mod tests;
