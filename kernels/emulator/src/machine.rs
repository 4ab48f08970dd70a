//! What a training needs of a device, without one. Captured work is kept launch by launch and run again with the arguments
//! of its capture, so that what a replay would miss on a GPU is missed here too.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::Range,
    rc::Rc,
    thread::ThreadId,
};

use chronicals_kernels::gpu::{
    Activity, Arg, Entry, GpuError, Grid, Launcher, Limits, Machine, Needs, Product, Products, Ptr, Tracer,
};

use crate::{
    Block, Emulator, Replay,
    capture::Capture,
    clock::{Clock, LIMITS, Origin},
    memory::{Host, Mark, Memory},
    streams::{Arrival, Counter, Shared, Step},
};

/// The emulator with memory, streams and captures. Once a product was tuned, others that were not are errors. A kernel that fails
/// shows where somebody waits.
#[derive(Default)]
pub struct Training {
    pub(super) streams: Shared,
    /// What is being captured.
    capture: RefCell<Option<Capture>>,
    taken: Rc<Cell<usize>>,
    /// Bytes that others have.
    occupied: Cell<usize>,
    /// The most that tuning found taken, its operands included.
    peak_of_tuning: Cell<usize>,
    tuned: RefCell<HashSet<Product>>,
    /// Names of products that need no tuning.
    adopted: RefCell<HashSet<String>>,
    /// Whether it has nothing that watches.
    blind: bool,
    watched: Cell<bool>,
}

/// Whose choices of products these are.
const NAME: &str = "emulator";

/// What it says it has: as much as a card of 80 GB.
const MEMORY_BYTES: usize = 80_000_000_000;

impl Training {
    /// A machine that captures nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// One where what is sent arrives so.
    pub fn arriving(arrival: Arrival) -> Self {
        let machine = Self::default();
        machine.streams.set_arrival(arrival);
        machine
    }

    /// One that can be stamped, but not watched.
    pub fn blind() -> Self {
        Self { blind: true, ..Self::default() }
    }

    /// How often something was sent, for whoever looks on while the machine is lent.
    pub fn counter(&self) -> Counter {
        Counter::of(&self.streams)
    }

    /// Threads that wrote to host memory.
    pub fn writers(&self) -> HashSet<ThreadId> {
        self.streams.writers()
    }

    /// Has somebody else take so much that nothing but `bytes` is left in all.
    pub fn leave(&self, bytes: usize) {
        self.occupied.set(MEMORY_BYTES - bytes);
    }

    /// Bytes that are allocated.
    pub fn taken(&self) -> usize {
        self.taken.get()
    }

    /// The most bytes that were allocated while a product was tuned, with the operands that a GPU takes for it.
    pub fn peak_of_tuning(&self) -> usize {
        self.peak_of_tuning.get()
    }

    /// Where products are tuned ahead, none may be forgotten.
    fn check_tuned(&self, p: &Product) -> Result<(), GpuError> {
        if self.tuned.borrow().is_empty() || self.tuned.borrow().contains(p) {
            return Ok(());
        }
        Err(GpuError {
            what: "a product that was not tuned before".into(),
            at: format!("{p:?}"),
            hint: "tune all of them, or none".into(),
        })
    }

    /// Runs a step, or keeps it.
    ///
    /// # Safety
    /// As [`Launcher::launch`].
    unsafe fn put(&self, step: Step) -> Result<(), GpuError> {
        if let Some(capture) = self.capture.borrow_mut().as_mut() {
            capture.launch(step);
            return Ok(());
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.streams.launch([step], Origin::Launched) };
        Ok(())
    }

    /// Runs a copy beside the launches, or keeps it.
    ///
    /// # Safety
    /// As [`Machine::put_aside`].
    unsafe fn beside(&self, step: Step, host: Range<usize>) -> Mark {
        match self.capture.borrow_mut().as_mut() {
            Some(capture) => self.streams.captured(capture.beside(step, host)),
            // SAFETY: the caller's promise is the same.
            None => unsafe { self.streams.beside(step, host) },
        }
    }

    /// Waiting is an error while something is captured, as it is on a GPU.
    fn idle(&self, what: &str) -> Result<(), GpuError> {
        if self.capture.borrow().is_none() {
            return Ok(());
        }
        Err(GpuError {
            what: format!("{what} while work is captured"),
            at: "emulated capture".into(),
            hint: "do it before".into(),
        })
    }
}

fn check(memory: &Memory, at: usize, len: usize) {
    assert!(at + len <= memory.block.len(), "{len} bytes from byte {at} of {}", memory.block.len());
}

impl Launcher for Training {
    unsafe fn launch(&self, entry: Entry, grid: Grid, args: &[Arg]) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.put(Step::Launch(entry, grid, args.to_vec())) }
    }

    fn processors(&self) -> u32 {
        Emulator.processors()
    }

    fn shared_bytes(&self) -> usize {
        Emulator.shared_bytes()
    }
}

impl Products for Training {
    unsafe fn product(&self, p: &Product, a: Ptr, b: Ptr, bias: Ptr, c: Ptr) -> Result<(), GpuError> {
        self.check_tuned(p)?;
        // SAFETY: the caller's promise is the same.
        unsafe { self.put(Step::Product(*p, [a, b, bias, c])) }
    }
}

impl Machine for Training {
    type Memory = Memory;
    type Host = Host;
    type Mark = Mark;
    type Graph = Replay;

    fn name(&self) -> String {
        "emulator".into()
    }

    fn launcher(&self) -> &dyn Launcher {
        self
    }

    fn products(&self) -> &dyn Products {
        self
    }

    fn tune(&self, product: &Product) -> Result<(), GpuError> {
        self.idle("tuning")?;
        let known = self.is_tuned(product);
        if self.tuned.borrow_mut().insert(*product) && !known {
            let [a, b, c] = product.spans();
            let operands = (a + b) * product.elem.bytes() + (c + product.n) * product.out.bytes();
            let peak = self.taken.get() + operands;
            self.peak_of_tuning.set(self.peak_of_tuning.get().max(peak));
            if peak > MEMORY_BYTES.saturating_sub(self.occupied.get()) {
                let (what, hint) = ("out of memory".into(), "free some".into());
                return Err(GpuError { what, at: product.name(), hint });
            }
        }
        Ok(())
    }

    fn is_tuned(&self, product: &Product) -> bool {
        self.tuned.borrow().contains(product) || self.adopted.borrow().contains(&product.name())
    }

    fn choices(&self) -> String {
        let tuned = self.tuned.borrow();
        let names: BTreeSet<String> =
            self.adopted.borrow().iter().cloned().chain(tuned.iter().map(Product::name)).collect();
        names.into_iter().fold(format!("{NAME}\n"), |all, name| all + &name + "\n")
    }

    fn adopt(&self, choices: &str) -> bool {
        let mut lines = choices.lines();
        let same = lines.next() == Some(NAME);
        if same {
            self.adopted.borrow_mut().extend(lines.map(String::from));
        }
        same
    }

    fn load(&self, _: Entry) -> Result<(), GpuError> {
        self.idle("loading")
    }

    fn meets(&self, needs: Needs) -> bool {
        needs == Needs::Ampere
    }

    fn workspace_bytes(&self) -> usize {
        0
    }

    fn free_bytes(&self) -> Result<usize, GpuError> {
        Ok(MEMORY_BYTES.saturating_sub(self.taken.get()))
    }

    fn alloc(&self, bytes: usize) -> Result<Memory, GpuError> {
        self.idle("an allocation")?;
        self.taken.set(self.taken.get() + bytes);
        let (streams, taken) = (self.streams.clone(), self.taken.clone());
        Ok(Memory { block: Block::new(&vec![0; bytes]), streams, taken })
    }

    fn ptr(&self, memory: &Memory) -> Ptr {
        memory.block.ptr()
    }

    fn write(&self, memory: &Memory, at: usize, bytes: &[u8]) -> Result<(), GpuError> {
        self.idle("a write")?;
        self.streams.finish()?;
        memory.block.write(at, bytes);
        Ok(())
    }

    fn read(&self, memory: &Memory, at: usize, len: usize) -> Result<Vec<u8>, GpuError> {
        self.idle("a read")?;
        self.streams.finish()?;
        Ok(memory.block.bytes()[at..at + len].to_vec())
    }

    fn zero(&self, memory: &Memory, at: usize, len: usize) -> Result<(), GpuError> {
        check(memory, at, len);
        // SAFETY: that many bytes are there.
        unsafe { self.put(Step::Zero(memory.block.ptr().offset(at), len)) }
    }

    fn host(&self, bytes: usize) -> Result<Host, GpuError> {
        self.idle("an allocation")?;
        Ok(self.streams.host(bytes))
    }

    fn mark(&self) -> Result<Mark, GpuError> {
        self.idle("a mark")?;
        Ok(self.streams.mark())
    }

    unsafe fn send(
        &self,
        from: &Host,
        to: &Memory,
        bytes: usize,
        after: Option<&Mark>,
    ) -> Result<Mark, GpuError> {
        self.idle("sending")?;
        check(to, 0, bytes);
        assert!(bytes <= from.len(), "{bytes} bytes of {}", from.len());
        // SAFETY: that many bytes are there; the rest is the caller's promise.
        Ok(unsafe { self.streams.send(from, to.block.ptr(), bytes, after) })
    }

    unsafe fn put_aside(&self, from: &Memory, at: usize, to: &Host, bytes: usize) -> Result<Mark, GpuError> {
        check(from, at, bytes);
        assert!(bytes <= to.bytes(), "{bytes} bytes to {} of the host", to.bytes());
        let step = Step::Copy(from.block.ptr().offset(at), to.ptr(), bytes);
        // SAFETY: that many bytes are there; the rest is the caller's promise.
        Ok(unsafe { self.beside(step, to.range()) })
    }

    unsafe fn bring_back(&self, from: &Host, to: &Memory, at: usize, bytes: usize) -> Result<Mark, GpuError> {
        check(to, at, bytes);
        assert!(bytes <= from.bytes(), "{bytes} bytes of {} of the host", from.bytes());
        let step = Step::Copy(from.ptr(), to.block.ptr().offset(at), bytes);
        // SAFETY: as above.
        Ok(unsafe { self.beside(step, from.range()) })
    }

    fn follow(&self, mark: &Mark) -> Result<(), GpuError> {
        let mut capture = self.capture.borrow_mut();
        match (capture.as_mut(), mark.of_capture()) {
            (None, None) => self.streams.follow(mark),
            (Some(capture), Some(copy)) => capture.follow(copy),
            (inside, _) => {
                let (of, whom) =
                    if inside.is_some() { ("outside", "a capture") } else { ("a capture", "others") };
                return Err(GpuError {
                    what: format!("a mark of {of} means nothing to {whom}"),
                    at: "emulated capture".into(),
                    hint: "follow marks where they are made".into(),
                });
            }
        }
        Ok(())
    }

    fn copy(&self, from: &Memory, to: &Memory, bytes: usize) -> Result<(), GpuError> {
        check(from, 0, bytes);
        check(to, 0, bytes);
        // SAFETY: that many bytes are there.
        unsafe { self.put(Step::Copy(from.block.ptr(), to.block.ptr(), bytes)) }
    }

    unsafe fn receive(&self, from: &Memory, at: usize, to: &mut Host) -> Result<(), GpuError> {
        self.idle("receiving")?;
        check(from, at, to.len());
        // SAFETY: that many bytes are there; the rest is the caller's promise.
        unsafe { self.streams.receive(from.block.ptr().offset(at), to) };
        Ok(())
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Replay, GpuError> {
        self.idle("a capture")?;
        *self.capture.borrow_mut() = Some(Capture::default());
        let worked = work();
        let capture = self.capture.borrow_mut().take().expect("a capture is under way");
        worked?;
        capture.end(self.watched.get())
    }

    unsafe fn replay(&self, graph: &Replay) -> Result<(), GpuError> {
        self.idle("a replay")?;
        // SAFETY: the caller's promise: the operands are alive.
        unsafe { self.streams.replay(&graph.pieces, graph.origin) };
        Ok(())
    }

    fn tracer(&self) -> &dyn Tracer {
        self
    }

    fn kernels<'g>(&self, graph: &'g Replay) -> &'g BTreeMap<String, u64> {
        &graph.kernels
    }
}

impl Tracer for Training {
    fn limits(&self) -> Result<Limits, GpuError> {
        Ok(LIMITS)
    }

    fn watcher(&self) -> Result<String, GpuError> {
        if self.blind {
            let (what, hint) = ("nothing watches this machine", "stamp its launches");
            return Err(GpuError { what: what.into(), at: "emulated clock".into(), hint: hint.into() });
        }
        Ok("emulated clock".into())
    }

    fn watch(&self) -> Result<(), GpuError> {
        self.watcher()?;
        self.idle("a watch")?;
        self.watched.set(true);
        self.streams.clock(Clock::watch)
    }

    fn forget(&self) -> Result<(), GpuError> {
        self.idle("forgetting")?;
        self.streams.clock(|clock| drop(clock.seen()))
    }

    fn seen(&self) -> Result<Vec<Activity>, GpuError> {
        self.idle("ending a watch")?;
        self.watched.set(false);
        self.streams.clock(|clock| {
            clock.end();
            clock.seen()
        })
    }

    fn stamp(&self) -> Result<(), GpuError> {
        self.idle("a stamp")?;
        // SAFETY: it reads the clock alone.
        unsafe { self.put(Step::Stamp) }
    }

    fn stamps(&self) -> Result<Vec<u64>, GpuError> {
        self.idle("reading stamps")?;
        self.streams.clock(Clock::stamps)
    }
}
