//! A backend that computes something else than it is asked for, in one place.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use chronibench_protocol::spec::Method;
use chronicals::{
    Error,
    backend::{
        About, Allocator, Attention, Backend, Component, Group, HostPlace, Linear, Norm, Param, QkRope,
        Stager, StepStats, Update, View, Work, cpu::CpuBackend,
    },
    config::ModelConfig,
    data::batch::{Batch, Geometry, IGNORE_INDEX},
    init,
    memory::Plan,
    model::{Model, Setup, step::Purpose},
    params::{Layout, Tensor},
    profile::{self, Profile},
};

use crate::scenario::cheat::Cheat;

/// The processor's backend with a lie in it.
pub struct Mutant {
    inner: CpuBackend,
    cheat: Cheat,
    /// What trains, in the order of its gradients.
    trainable: Layout,
    /// Weight of the projection that is skipped: the first block's way back to the residual stream.
    skipped: Option<View>,
    update: u32,
    seed: u32,
}

impl Mutant {
    /// `cheat` on a backend for a model of this config.
    pub fn new(inner: CpuBackend, cheat: Cheat, config: &ModelConfig, method: &Method) -> Self {
        let trainable = init::trainable(config, method).unwrap_or_default();
        Self { inner, cheat, trainable, skipped: None, update: 0, seed: 1 }
    }

    /// Elements of the gradient that are not to reach the optimizer, by tensor.
    fn hides(&self, t: &Tensor, element: usize) -> bool {
        let columns = *t.shape.last().unwrap_or(&1);
        match self.cheat {
            Cheat::ZeroGradient | Cheat::FoundAnswers => true,
            Cheat::FrozenTensor => t.name.contains("layers.1.mlp.down_proj"),
            Cheat::FrozenEmbedding => t.name.contains("embed_tokens"),
            Cheat::LowerRank if t.name.contains(".lora_A.") => element / columns >= t.shape[0] / 2,
            Cheat::LowerRank if t.name.contains(".lora_B.") => element % columns >= columns / 2,
            _ => false,
        }
    }

    /// Changes the gradient just before the optimizer reads it.
    fn tamper(&mut self, grads: View) -> Result<(), Error> {
        let mut values = self.inner.read(grads)?;
        for t in &self.trainable.tensors {
            for (i, g) in values[t.offset..t.offset + t.len()].iter_mut().enumerate() {
                if self.hides(t, i) {
                    *g = 0.0;
                }
                if self.cheat == Cheat::Noise {
                    self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *g = if self.seed >> 31 == 0 { 1e-3 } else { -1e-3 };
                }
            }
        }
        self.inner.write(grads, &values)
    }

    fn skips(&self, l: &Linear) -> bool {
        self.cheat == Cheat::SkippedLayer && self.skipped == Some(l.weight.value)
    }
}

/// Batches on their way to the device.
pub struct Swapper {
    inner: <CpuBackend as Backend>::Stager,
    cheat: Cheat,
    first: Arc<Mutex<Option<Batch>>>,
}

impl Stager for Swapper {
    type Staged = Batch;

    fn stage(&self, mut batch: Batch) -> Result<Batch, Error> {
        match self.cheat {
            Cheat::StaleBatch => {
                let mut first = self.first.lock().expect("nobody panics with it");
                batch = first.get_or_insert(batch).clone();
            }
            Cheat::LabelsUnshifted => {
                let own = batch.ids.iter().zip(&mut batch.labels);
                own.filter(|(_, l)| **l != IGNORE_INDEX).for_each(|(id, l)| *l = *id as i32);
            }
            Cheat::CrossDocument => {
                batch.cu_seqlens = (0..=batch.rows).map(|r| (r * batch.row_slots) as u32).collect();
            }
            Cheat::LossOnPadding => {
                let next: Vec<u32> = batch.ids.iter().skip(1).chain([&batch.ids[0]]).copied().collect();
                let ignored = batch.labels.iter_mut().zip(next).filter(|(l, _)| **l == IGNORE_INDEX);
                ignored.for_each(|(l, id)| *l = id as i32);
            }
            _ => {}
        }
        self.inner.stage(batch)
    }
}

impl Allocator for Mutant {
    fn alloc(&mut self, component: Component, len: usize) -> View {
        self.inner.alloc(component, len)
    }
}

/// Methods that are the inner backend's.
macro_rules! honest {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {
        $(fn $name(&mut self, $($arg: $type),*) {
            self.inner.$name($($arg),*);
        })*
    };
}

impl Backend for Mutant {
    const APART: bool = CpuBackend::APART;
    const OFFLOADS: bool = CpuBackend::OFFLOADS;

    type Staged = Batch;
    type Stager = Swapper;
    type Ended = <CpuBackend as Backend>::Ended;

    fn plan(&self, setup: &Setup<'_>) -> Result<Plan, Error> {
        self.inner.plan(setup)
    }

    fn room(&self, setup: &Setup<'_>) -> Result<u64, Error> {
        self.inner.room(setup)
    }

    fn prepare(&mut self, model: &Model) -> Result<(), Error> {
        self.skipped = model.blocks.first().map(|b| b.down.weight.value);
        self.inner.prepare(model)
    }

    fn rehearse(&mut self, model: &Model, geometry: Geometry, purpose: Purpose) -> Result<(), Error> {
        self.inner.rehearse(model, geometry, purpose)
    }

    fn about(&self) -> About {
        self.inner.about()
    }

    fn planned_bytes(&self) -> BTreeMap<String, u64> {
        self.inner.planned_bytes()
    }

    fn planned_host_bytes(&self) -> u64 {
        self.inner.planned_host_bytes()
    }

    fn launches(&self) -> BTreeMap<String, u64> {
        self.inner.launches()
    }

    fn profile(&mut self, options: &profile::Options) -> Result<(), Error> {
        self.inner.profile(options)
    }

    fn profiled(&mut self) -> Result<Option<Profile>, Error> {
        self.inner.profiled()
    }

    fn read(&self, view: View) -> Result<Vec<f32>, Error> {
        self.inner.read(view)
    }

    fn write(&mut self, view: View, values: &[f32]) -> Result<(), Error> {
        self.inner.write(view, values)
    }

    fn stored(&self, view: View) -> Result<Vec<u8>, Error> {
        self.inner.stored(view)
    }

    fn restore(&mut self, view: View, bytes: &[u8]) -> Result<(), Error> {
        self.inner.restore(view, bytes)
    }

    fn stager(&self) -> Swapper {
        Swapper { inner: self.inner.stager(), cheat: self.cheat, first: Arc::default() }
    }

    fn submit(&mut self, _: Work, f: impl FnOnce(&mut Self) + Send) {
        f(self);
    }

    fn linear(&mut self, linear: &Linear, x: View, y: View) {
        self.inner.linear(linear, x, y);
        if self.skips(linear) {
            self.inner.zero(y);
        }
    }

    fn linear_backward(&mut self, linear: &Linear, dy: View, x: View, dx: Option<View>) {
        match dx.filter(|_| self.skips(linear)) {
            Some(dx) => self.inner.zero(dx),
            None => self.inner.linear_backward(linear, dy, x, dx),
        }
    }

    fn loss(&mut self, head: &Param, x: View, dx: View) {
        let alone = Param { grad: None, ..*head };
        self.inner.loss(if self.cheat == Cheat::UntiedHead { &alone } else { head }, x, dx);
    }

    fn update(&mut self, groups: &[Group], grads: View) {
        self.update += 1;
        if self.cheat == Cheat::SkippedStep && self.update.is_multiple_of(2) {
            return;
        }
        // A device that fails here fails at the next read, too.
        let _ = self.tamper(grads);
        self.inner.update(groups, grads);
    }

    fn end(&mut self) -> Self::Ended {
        self.inner.end()
    }

    fn stats(&mut self, ended: Self::Ended) -> Result<StepStats, Error> {
        self.inner.stats(ended)
    }

    honest! {
        begin(loss_scale: f32);
        schedule(groups: &[Group], update: &Update);
        feed(batch: Batch);
        embed(table: View, x: View);
        embed_backward(dx: View, dtable: View);
        norm(norm: &Norm, x: View, y: View);
        add_norm(norm: &Norm, residual: View, delta: View, sum: View, y: View);
        norm_backward(norm: &Norm, dy: View, x: View, dx: View, accumulate: bool);
        qk_rope(rope: &QkRope, qkv: View);
        qk_rope_backward(rope: &QkRope, dqkv: View);
        attention(attention: &Attention);
        attention_backward(attention: &Attention, dout: View, dqkv: View);
        swiglu(before: &Linear, gate_up: View, act: View);
        swiglu_backward(before: &Linear, behind: &Linear, gate_up: View, dact: View);
        loss_forward(head: &Param, x: View);
        put_aside(x: View, place: HostPlace);
        bring_back(place: HostPlace, x: View);
        await_copy(place: HostPlace);
        zero(view: View);
    }
}
