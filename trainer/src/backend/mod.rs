//! The seams of a training step, as a device offers them.
//!
//! A backend owns every buffer of a step; the step holds [`View`]s. Its methods take views, return nothing and never
//! read the device back; [`Backend::stats`] is the one exception, called once a step. What fails on the way is kept until
//! then, the first failure alone, and nothing runs behind it.
//!
//! What changes from step to step comes before the work that reads it ([`Backend::begin`], [`Backend::schedule`],
//! [`Backend::feed`]), so that a device may keep the work and run it again. None of it waits for the device, and the next step
//! may be handed over before the numbers of the last are read. Batches are made ready by a [`Stager`], on any thread.
//!
//! Unless a method says `+=`, it overwrites its outputs. Widths come from the views' layout at set-up, the number of
//! tokens `T` from the uploaded batch; the first `T` rows of an activation buffer are in use.

mod buffers;
pub mod cpu;
pub mod cuda;
mod dims;
mod operands;

use std::collections::BTreeMap;

use chronibench_protocol::{event::Precision, spec::TrainArgs};
use chronicals_data::batch::{Batch, Geometry};
use chronicals_kernels::{KernelPlan, Seam, Variant, adamw::Hyper, linear_ce};

pub use self::{
    buffers::{Allocator, Component, HostPlace, View},
    operands::*,
};
use crate::{
    error::Error,
    memory::Plan,
    model::{Model, Setup, step::Purpose},
    profile::{self, Profile},
};

/// A run of parameters that share hyper-parameters.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Name in records: `all`, `lora_A`, `lora_B`.
    pub name: &'static str,
    /// Values.
    pub value: View,
    /// Gradients.
    pub grad: View,
    /// First moments.
    pub m: View,
    /// Second moments.
    pub v: View,
    /// Learning rate over the step's base rate.
    pub lr_ratio: f64,
    /// Decoupled decay applies.
    pub decay: bool,
}

/// Hyper-parameters of one update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Base learning rate of this step.
    pub lr: f64,
    /// First-moment decay.
    pub beta1: f64,
    /// Second-moment decay.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Step count from 1, for bias correction.
    pub step: u32,
    /// Global norm above which gradients are scaled down; 0 for never.
    pub max_grad_norm: f64,
}

impl Update {
    /// Those of a group's parameters.
    fn hyper(&self, g: &Group) -> Hyper {
        Hyper {
            lr: (self.lr * g.lr_ratio) as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            eps: self.eps as f32,
            weight_decay: if g.decay { self.weight_decay as f32 } else { 0.0 },
            step: self.step,
        }
    }
}

/// The one thing that is read back from a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepStats {
    /// Sum of the loss over the loss tokens.
    pub loss_sum: f64,
    /// Loss tokens.
    pub loss_tokens: u64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Square of the norm by the name of a group, where the backend has it.
    pub group_squares: [Option<(&'static str, f64)>; GROUP_NAMES],
}

/// Most names that groups have: `all`, or `lora_A` and `lora_B`.
pub const GROUP_NAMES: usize = 3;

impl StepStats {
    /// Gradient norms of the groups `names`; of a single one it is the global norm, and of several what the backend has.
    pub fn by_group<'a>(
        &self,
        mut names: impl ExactSizeIterator<Item = &'a String>,
    ) -> BTreeMap<String, f64> {
        if names.len() == 1 {
            return names.next().map(|only| (only.clone(), self.grad_norm)).into_iter().collect();
        }
        self.group_squares.iter().flatten().map(|(name, square)| (name.to_string(), square.sqrt())).collect()
    }

    /// Adds the square of a part's norm to its group.
    pub fn add_group(&mut self, name: &'static str, square: f64) {
        let same = |g: &&mut Option<(&str, f64)>| g.is_none_or(|(known, _)| known == name);
        let place = self.group_squares.iter_mut().find(same).expect("groups have few names");
        *place = Some((name, place.map_or(0.0, |(_, sum)| sum) + square));
    }
}

/// A part of a step that is the same for every batch of one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// Gradients set to zero, forward, backward and update: a step of one micro-batch.
    Step,
    /// Gradients set to zero, forward and backward: the first micro-batch of several.
    First,
    /// Forward and backward of one of the others.
    More,
    /// Forward and loss of a micro-batch.
    Evaluate,
    /// Norm, clipping and update after the last.
    Update,
}

/// What a backend says of itself.
#[derive(Clone, Debug)]
pub struct About {
    /// `cpu`, or the GPU's name.
    pub device: String,
    /// Number formats of what persists between steps.
    pub precision: Precision,
    /// Seam → variant.
    pub kernel_plan: BTreeMap<String, String>,
    /// Settings of its own.
    pub settings: BTreeMap<String, serde_json::Value>,
}

/// The terms of the loss that settings ask for.
pub fn loss_options(args: &TrainArgs) -> linear_ce::Options {
    linear_ce::Options {
        label_smoothing: args.label_smoothing_factor as f32,
        z_loss: args.z_loss as f32,
        chunk_rows: args.loss_chunk_rows.map(|n| n as usize),
    }
}

/// Makes batches ready for a device, on any thread.
pub trait Stager: Send {
    /// A batch as [`Backend::feed`] takes it.
    type Staged: Send;

    /// Encodes a batch, and waits for room to do so.
    ///
    /// # Errors
    /// The device failed.
    fn stage(&self, batch: Batch) -> Result<Self::Staged, Error>;
}

/// Whether the plan's optimizer has what the formats ask for.
fn check_optimizer(plan: KernelPlan, eight_bit: bool) -> Result<(), Error> {
    if plan.get(Seam::Optimizer) == Variant::Eager && eight_bit {
        return Err(Error::new("the eager optimizer has no 8-bit moments", "kernels.optimizer")
            .hint("set it to fused, or take states: f32"));
    }
    Ok(())
}

/// Moments that are kept as codes have no values of their own.
fn no_values() -> Error {
    Error::new("8-bit moments are not read or written one by one", "optimizer states")
        .hint("use states: f32 to look at moments")
}

/// Of bytes that are to be put back.
fn check_stored(got: usize, expected: usize) -> Result<(), Error> {
    if got == expected {
        return Ok(());
    }
    Err(Error::new(format!("{got} bytes of optimizer states, not {expected}"), "optimizer states"))
}

/// A device that can train.
pub trait Backend: Allocator {
    /// Whether it is a device of its own: one that [`rehearse`](Self::rehearse) readies, and that works while its caller goes on.
    const APART: bool;

    /// Whether it can keep activations in the host's memory; where not, no model has them there.
    const OFFLOADS: bool;

    /// A batch that is ready.
    type Staged: Send;
    /// What readies them.
    type Stager: Stager<Staged = Self::Staged>;
    /// A step whose numbers are not read yet.
    type Ended;

    /// Bytes by component that it would take for a training, itself included; takes nothing.
    ///
    /// # Errors
    /// The method's settings make no sense, or it has no kernels.
    fn plan(&self, setup: &Setup<'_>) -> Result<Plan, Error>;

    /// Bytes that are free for the rest of a plan: without those that the plan has already, nor what is needed outside of plans.
    ///
    /// # Errors
    /// The device does not tell.
    fn room(&self, setup: &Setup<'_>) -> Result<u64, Error>;

    /// Takes whatever else the steps of `model` need; once, when it is laid out.
    ///
    /// # Errors
    /// The device has no room, or no kernels for the model.
    fn prepare(&mut self, model: &Model) -> Result<(), Error>;

    /// Readies what work on a batch of such a geometry needs, so that none waits for it; does none of it. Before the first step: what
    /// gradients and activations hold may be lost.
    ///
    /// # Errors
    /// The device fails, or has no room.
    fn rehearse(&mut self, model: &Model, geometry: Geometry, purpose: Purpose) -> Result<(), Error>;

    /// What it chose by timing for the products of its steps, for [`adopt`](Self::adopt); nothing where it chooses nothing.
    fn choices(&self) -> Option<String> {
        None
    }
    /// Chooses the same, before it is rehearsed: another choice rounds otherwise. Whether it does: choices of another device are left
    /// alone.
    fn adopt(&mut self, _choices: &str) -> bool {
        true
    }

    /// What it is.
    fn about(&self) -> About;
    /// Bytes by component that it took, and the most that a step takes for its temporaries.
    fn planned_bytes(&self) -> BTreeMap<String, u64>;
    /// Bytes of page-locked memory that it took for activations.
    fn planned_host_bytes(&self) -> u64;
    /// Kernel → launches so far; a name is `seam.variant.operation`.
    fn launches(&self) -> BTreeMap<String, u64>;

    /// Keeps when the calls of some steps ran, and what they cost; before anything is allocated.
    ///
    /// # Errors
    /// The device has no such clock, or its limits cannot be measured.
    fn profile(&mut self, options: &profile::Options) -> Result<(), Error>;
    /// What was kept, when the last of those steps was handed over; nothing where nobody asked for it.
    ///
    /// # Errors
    /// The device fails, or what ran is not what was asked for.
    fn profiled(&mut self) -> Result<Option<Profile>, Error>;

    /// Copies a view to the host; not for use inside a step.
    ///
    /// # Errors
    /// The device fails, or has failed before.
    fn read(&self, view: View) -> Result<Vec<f32>, Error>;
    /// Fills a view from the host; not for use inside a step.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn write(&mut self, view: View, values: &[f32]) -> Result<(), Error>;

    /// Bytes of a whole buffer as the device keeps them, for [`restore`](Self::restore).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn stored(&self, view: View) -> Result<Vec<u8>, Error>;
    /// Puts them back.
    ///
    /// # Errors
    /// As [`read`](Self::read); also when they are not of a buffer of this size and format.
    fn restore(&mut self, view: View, bytes: &[u8]) -> Result<(), Error>;

    /// What readies batches for it.
    fn stager(&self) -> Self::Stager;
    /// Begins a step; `loss_scale` is one over the loss tokens of all its micro-batches.
    fn begin(&mut self, loss_scale: f32);
    /// Hyper-parameters of the step's update, before its first batch.
    fn schedule(&mut self, groups: &[Group], update: &Update);
    /// Makes a batch the current one of what is handed over next.
    fn feed(&mut self, batch: Self::Staged);
    /// Runs `f`, the same calls for the same work and shape of batch; instead of calling it a device may run again what it
    /// put there before.
    fn submit(&mut self, work: Work, f: impl FnOnce(&mut Self) + Send);

    /// `x_TD = table_VD[ids]`.
    fn embed(&mut self, table: View, x: View);
    /// `dtable_VD += scatter(dx_TD)`.
    fn embed_backward(&mut self, dx: View, dtable: View);

    /// `y = norm(x)`.
    fn norm(&mut self, norm: &Norm, x: View, y: View);
    /// `sum = residual + delta; y = norm(sum)`.
    fn add_norm(&mut self, norm: &Norm, residual: View, delta: View, sum: View, y: View);
    /// `dx (+)= ∂norm(x)ᵀ·dy`, `+=` when `accumulate`; weight gradient `+=`.
    fn norm_backward(&mut self, norm: &Norm, dy: View, x: View, dx: View, accumulate: bool);

    /// `y = x·Wᵀ`, plus adapters.
    fn linear(&mut self, linear: &Linear, x: View, y: View);
    /// `dx = dy·W` plus adapters, unless nothing below trains; weight and adapter gradients `+=`.
    fn linear_backward(&mut self, linear: &Linear, dy: View, x: View, dx: Option<View>);

    /// Bias, QK-norm and rotation of the packed `[q k v]`, in place.
    fn qk_rope(&mut self, rope: &QkRope, qkv: View);
    /// The same backward, in place; parameter gradients `+=`.
    fn qk_rope_backward(&mut self, rope: &QkRope, dqkv: View);

    /// Causal attention within documents.
    fn attention(&mut self, attention: &Attention);
    /// `dqkv = ∂attentionᵀ·dout`.
    fn attention_backward(&mut self, attention: &Attention, dout: View, dqkv: View);

    /// `act_TF = silu(gate)·up`; `before` is the projection to gate and up.
    fn swiglu(&mut self, before: &Linear, gate_up: View, act: View);
    /// Replaces `gate_up` by its gradient; `behind` is the projection that reads the activation.
    fn swiglu_backward(&mut self, before: &Linear, behind: &Linear, gate_up: View, dact: View);

    /// Loss of the current batch and its gradients, scaled as the step began: `dx = …`, head gradient `+=`.
    fn loss(&mut self, head: &Param, x: View, dx: View);
    /// Loss of the current batch only.
    fn loss_forward(&mut self, head: &Param, x: View);

    /// Copies the rows of a residual stream that are in use to the host, beside what follows.
    fn put_aside(&mut self, x: View, place: HostPlace);
    /// Copies them back, beside what follows.
    fn bring_back(&mut self, place: HostPlace, x: View);
    /// What follows waits for the last copy to or from a place. Each copy is waited for in the work that it is of.
    fn await_copy(&mut self, place: HostPlace);

    /// Sets gradients to zero; or, in work that begins with it, those that are not written before anything is added to them.
    fn zero(&mut self, view: View);
    /// Global norm of `grads`, clipping, AdamW on every group, as scheduled.
    fn update(&mut self, groups: &[Group], grads: View);

    /// Ends a step: what it added up is read behind it.
    fn end(&mut self) -> Self::Ended;
    /// Waits for a step to have run, and for nothing behind it.
    ///
    /// # Errors
    /// The first failure so far.
    fn stats(&mut self, ended: Self::Ended) -> Result<StepStats, Error>;
}
