//! The GPU's backend: bf16 (or f32) on the CUDA kernels of `chronicals-kernels` and cuBLASLt.
//!
//! | module | what |
//! |---|---|
//! | `formats` | number formats, and bytes of a buffer |
//! | `memory` | buffers; masters; reading and writing |
//! | `extents` | sizes of whatever else a step needs; [`Buckets`] |
//! | `batch` | a micro-batch as the kernels read it |
//! | `feed` | batches on their way to the device, a step's numbers on their way back |
//! | `gradients` | what a step's first micro-batch clears |
//! | `linear` | projections and adapters |
//! | `adapted` | SwiGLU between projections with adapters |
//! | `seams` | one call of a kernel for each seam |
//! | `operands` | what the seams' calls have in common |
//! | `offload` | activations that wait on the host |
//! | `eager` | the same for the eager variants, and what they keep |
//! | `update` | gradient norm and AdamW |
//! | `submit` | graphs, and the log of launches |
//! | `record` | the calls of some steps, and when they ran |
//! | `plan` | bytes by component without a device |
//!
//! All memory is taken before the first step. Kernels that run one after another share their scratch. Products of a shape are
//! tuned once on a kind of GPU, which takes operands and frees them again: in a rehearsal of the batches to come, where they lie in
//! memory that the steps need later, or else when the first such batch is there.

#![allow(non_snake_case)] // x_TD is tokens × hidden; see the crate's legend

mod adapted;
mod batch;
mod eager;
mod extents;
mod feed;
mod formats;
mod gradients;
mod linear;
mod memory;
mod offload;
mod operands;
pub mod plan;
mod record;
mod seams;
mod submit;
mod update;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use chronibench_protocol::spec::{PrecisionArgs, States};
use chronicals_kernels::{
    KernelPlan, Seam, Variant,
    attention::cuda::Path,
    gpu::{Elem, GpuError, Machine, Product, Ptr, machine::Cuda},
    linear_ce, qk_rope,
};

pub use self::{
    extents::Buckets,
    feed::{Reading, Staged, Stager},
    formats::Formats,
};
use self::{
    extents::{BatchLayout, Extents},
    memory::{Buffer, Masters},
    record::Record,
    submit::{Kept, Key, Log},
};
use super::dims;
use crate::{
    backend::check_optimizer,
    config::ModelConfig,
    device::lacking,
    error::Error,
    model::{Capacity, step::Purpose},
};

/// Widest rows that the norm has kernels for.
const MAX_HIDDEN: usize = 8192;

/// Widest heads that the rotation has kernels for.
const MAX_HEAD: usize = 512;

/// What a backend is made for.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Architecture.
    pub config: &'a ModelConfig,
    /// Largest micro-batch.
    pub capacity: Capacity,
    /// Which kernels run.
    pub plan: KernelPlan,
    /// Terms of the loss.
    pub loss: linear_ce::Options,
    /// Number formats.
    pub precision: PrecisionArgs,
    /// Of stochastic rounding.
    pub seed: u32,
}

/// Trains on one device.
pub struct CudaBackend<D: Machine> {
    formats: Formats,
    plan: KernelPlan,
    path: Path,
    loss: linear_ce::Options,
    seed: u32,
    extents: Extents,
    layout: BatchLayout,
    tables: qk_rope::Tables,
    // Graphs go before the memory that they use.
    graphs: BTreeMap<Key, Kept<D::Graph>>,
    /// Shapes that were rehearsed, and for what.
    rehearsed: BTreeSet<(Purpose, batch::Shape)>,
    /// Products of the rehearsal that goes on.
    rehearsal: Option<RefCell<Vec<Product>>>,
    buffers: Vec<Buffer<D::Memory>>,
    masters: Option<Masters<D::Memory>>,
    own: Option<Own<D>>,
    planned: BTreeMap<&'static str, u64>,
    planned_host: u64,
    log: Log,
    record: Record,
    shape: batch::Shape,
    /// Gradients hold nothing yet that the work at hand adds to.
    first: bool,
    /// Loss tokens of the step that is handed over.
    loss_tokens: u64,
    max_norm: f32,
    failed: Option<GpuError>,
    /// Captures run calls of this backend while they borrow the device. Dropped last.
    device: Rc<D>,
}

/// Memory besides the model's.
struct Own<D: Machine> {
    scratch: D::Memory,
    /// What eager kernels keep, piece by piece.
    kept: D::Memory,
    pieces: eager::Pieces,
    /// The batch, and behind it the step's numbers.
    batch: D::Memory,
    cos: D::Memory,
    sin: D::Memory,
    /// Segments of adapters as the kernels read them, once for each list that occurs.
    segments: Vec<(Vec<chronicals_kernels::lora::Segment>, D::Memory)>,
    trains_table: bool,
    /// Names of groups, and where they end.
    groups: Vec<(&'static str, usize)>,
    written: gradients::Written,
    /// Of activations, on the host. Memory of the device goes before: it waits for what is on its way.
    places: Vec<offload::Place<D>>,
    feed: feed::Feed<D>,
}

/// A failure of the device as this crate tells it.
fn failure(e: GpuError) -> Error {
    Error::new(e.what, e.at).hint(e.hint)
}

impl CudaBackend<Cuda> {
    /// A backend without buffers on a GPU.
    ///
    /// # Errors
    /// There is no such GPU, a library is missing, or there are no kernels for the model or the plan.
    pub fn open(ordinal: usize, options: &Options<'_>) -> Result<Self, Error> {
        Self::new(Cuda::open(ordinal).map_err(lacking)?, options)
    }
}

impl<D: Machine> CudaBackend<D> {
    /// A backend without buffers.
    ///
    /// # Errors
    /// There are no kernels for the model or the plan on this device.
    pub fn new(device: D, o: &Options<'_>) -> Result<Self, Error> {
        let formats = Formats::from(o.precision);
        check_optimizer(o.plan, formats.states == States::Eight)?;
        let path = choose_path(&device, formats.elem, o.plan)?;
        check_model(o.config, o.plan, path)?;
        let processors = device.launcher().processors();
        let buckets = Buckets::of(o.capacity);
        let extents = Extents {
            dims: o.config.into(),
            capacity: o.capacity,
            formats,
            plan: o.plan,
            loss: o.loss,
            processors,
            buckets,
        };
        let planned = BTreeMap::from([(plan::WORKSPACE, device.workspace_bytes() as u64)]);
        Ok(Self {
            device: Rc::new(device),
            formats,
            plan: o.plan,
            path,
            loss: o.loss,
            seed: o.seed,
            extents,
            layout: BatchLayout::of(o.capacity),
            tables: qk_rope::Tables::new(&o.config.inv_freq, o.capacity.row_slots),
            graphs: BTreeMap::new(),
            rehearsed: BTreeSet::new(),
            rehearsal: None,
            buffers: Vec::new(),
            masters: None,
            own: None,
            planned,
            planned_host: 0,
            log: Log::default(),
            record: Record::default(),
            shape: batch::Shape::default(),
            first: false,
            loss_tokens: 0,
            max_norm: 0.0,
            failed: None,
        })
    }

    /// With other buckets; before anything is prepared.
    pub fn with_buckets(mut self, buckets: Buckets) -> Self {
        assert!(self.own.is_none(), "buckets decide what is prepared");
        self.extents.buckets = buckets;
        self
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The kernels that fused attention runs on.
    pub fn path(&self) -> Path {
        self.path
    }

    fn elem(&self) -> Elem {
        self.formats.elem
    }

    fn ptr(&self, memory: &D::Memory, at: usize) -> Ptr {
        self.device.ptr(memory).offset(at)
    }

    /// One of the [step's numbers](extents::scalars).
    fn scalar(&self, at: usize) -> Ptr {
        self.ptr(&self.own().batch, self.layout.bytes + at)
    }

    /// The first failure.
    fn check(&self) -> Result<(), Error> {
        self.failed.clone().map_or(Ok(()), |e| Err(failure(e)))
    }
}

/// The path that was asked for, or else the fastest that the device has for the element type.
fn choose_path(device: &impl Machine, elem: Elem, plan: KernelPlan) -> Result<Path, Error> {
    let usable = |path: Path| path.elem() == elem && device.meets(path.needs());
    if let Some(path) = plan.path() {
        if usable(path) {
            return Ok(path);
        }
        let what = format!(
            "attention's path '{}' runs in {}{}; this is {} on {}",
            path.name(),
            path.elem().name(),
            if path == Path::Hopper { " on sm_90a" } else { "" },
            elem.name(),
            device.name()
        );
        return Err(
            Error::new(what, "kernels.attention").hint("choose another path, or fused for the best one")
        );
    }
    let fastest = [Path::Hopper, Path::Mma, Path::Plain].into_iter().find(|path| usable(*path));
    Ok(fastest.expect("every element type has a path on every GPU"))
}

/// What kernels would refuse at their first launch.
fn check_model(c: &ModelConfig, plan: KernelPlan, path: Path) -> Result<(), Error> {
    let wide = |n: usize| n.is_multiple_of(8);
    let eager = |seam| plan.get(seam) == Variant::Eager;
    let heads: &[usize] = match path {
        Path::Plain => &[16, 32, 48, 64, 80, 96, 112, 128],
        Path::Mma | Path::Hopper => &[64, 128],
    };
    let (has_heads, of_heads) = if eager(Seam::Attention) {
        (
            c.head_dim.is_multiple_of(16) && c.head_dim <= MAX_HEAD,
            format!("a multiple of 16, at most {MAX_HEAD}"),
        )
    } else {
        (heads.contains(&c.head_dim), format!("one of {heads:?} for attention's path '{}'", path.name()))
    };
    let narrow = c.hidden_size <= MAX_HIDDEN || eager(Seam::Norm);
    let rules = [
        ("hidden_size", c.hidden_size, wide(c.hidden_size), "a multiple of 8".to_string()),
        ("hidden_size", c.hidden_size, narrow, format!("at most {MAX_HIDDEN}")),
        ("intermediate_size", c.intermediate_size, wide(c.intermediate_size), "a multiple of 8".to_string()),
        ("head_dim", c.head_dim, has_heads, of_heads),
    ];
    match rules.into_iter().find(|(_, _, ok, _)| !ok) {
        Some((name, value, _, rule)) => Err(Error::new(
            format!("{name} {value} has no kernels on a GPU"),
            format!("model config, {name}"),
        )
        .hint(format!("it must be {rule}; or use device: cpu"))),
        None => Ok(()),
    }
}
