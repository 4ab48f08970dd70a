//! What a training needs of a device, without one. Captured work is kept launch by launch and run again with the arguments
//! of its capture, so that what a replay would miss on a GPU is missed here too.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashSet},
};

use chronicals_kernels::gpu::{Arg, Entry, GpuError, Grid, Launcher, Machine, Needs, Product, Products, Ptr};

use crate::{Block, Emulator};

/// The emulator with memory and captures. Once a product was tuned, others that were not are errors.
#[derive(Default)]
pub struct Training {
    /// What is being captured.
    capture: RefCell<Option<Vec<Step>>>,
    taken: Cell<usize>,
    tuned: RefCell<HashSet<Product>>,
}

#[derive(Clone)]
enum Step {
    Launch(Entry, Grid, Vec<Arg>),
    Product(Product, [Ptr; 4]),
    Zero(Ptr, usize),
}

/// Captured work.
pub struct Replay {
    steps: Vec<Step>,
    kernels: BTreeMap<String, u64>,
}

impl Training {
    /// A machine that captures nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes allocated so far.
    pub fn taken(&self) -> usize {
        self.taken.get()
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
        if let Some(steps) = self.capture.borrow_mut().as_mut() {
            steps.push(step);
            return Ok(());
        }
        // SAFETY: the caller's promise is the same.
        unsafe { run(&step) }
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

/// # Safety
/// As [`Launcher::launch`].
unsafe fn run(step: &Step) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe {
        match step {
            Step::Launch(entry, grid, args) => Emulator.launch(*entry, *grid, args),
            Step::Product(product, [a, b, bias, c]) => Emulator.product(product, *a, *b, *bias, *c),
            Step::Zero(at, len) => {
                std::ptr::with_exposed_provenance_mut::<u8>(at.0 as usize).write_bytes(0, *len);
                Ok(())
            }
        }
    }
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
    type Memory = Block;
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
        self.tuned.borrow_mut().insert(*product);
        Ok(())
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

    fn alloc(&self, bytes: usize) -> Result<Block, GpuError> {
        self.idle("an allocation")?;
        self.taken.set(self.taken.get() + bytes);
        Ok(Block::new(&vec![0; bytes]))
    }

    fn ptr(&self, memory: &Block) -> Ptr {
        memory.ptr()
    }

    fn write(&self, memory: &Block, at: usize, bytes: &[u8]) -> Result<(), GpuError> {
        self.idle("a write")?;
        memory.write(at, bytes);
        Ok(())
    }

    fn read(&self, memory: &Block, at: usize, len: usize) -> Result<Vec<u8>, GpuError> {
        self.idle("a read")?;
        Ok(memory.bytes()[at..at + len].to_vec())
    }

    fn zero(&self, memory: &Block, at: usize, len: usize) -> Result<(), GpuError> {
        assert!(at + len <= memory.len(), "{len} bytes from byte {at} of {}", memory.len());
        // SAFETY: that many bytes are there.
        unsafe { self.put(Step::Zero(memory.ptr().offset(at), len)) }
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Replay, GpuError> {
        self.idle("a capture")?;
        *self.capture.borrow_mut() = Some(Vec::new());
        let worked = work();
        let steps = self.capture.borrow_mut().take().expect("a capture is under way");
        worked?;
        let mut kernels = BTreeMap::new();
        for step in &steps {
            let name = match step {
                Step::Launch(entry, ..) => entry.name,
                Step::Product(..) => "product",
                Step::Zero(..) => continue,
            };
            *kernels.entry(name.to_string()).or_default() += 1;
        }
        Ok(Replay { steps, kernels })
    }

    unsafe fn replay(&self, graph: &Replay) -> Result<(), GpuError> {
        self.idle("a replay")?;
        // SAFETY: the caller's promise: the operands are alive.
        graph.steps.iter().try_for_each(|step| unsafe { run(step) })
    }

    fn kernels<'g>(&self, graph: &'g Replay) -> &'g BTreeMap<String, u64> {
        &graph.kernels
    }
}
