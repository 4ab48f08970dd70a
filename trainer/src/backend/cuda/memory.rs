//! The backend's buffers.

use chronibench_protocol::spec::States;
use chronicals_kernels::{
    gpu::{Elem, GpuError, Machine, Product, Ptr, le_bytes},
    lora::cuda as lora,
};

use super::{
    CudaBackend, Own,
    extents::{Extras, adapters},
    failure,
    feed::Feed,
    gradients::Written,
    offload::places,
    plan::{BATCH, KEPT, MASTERS, SCRATCH},
    update::names,
};
use crate::{
    backend::{Allocator, Component, View, check_stored, no_values},
    error::Error,
    model::Model,
};

/// One buffer of the model.
pub(super) struct Buffer<M> {
    /// None where there was no room, which is the backend's first failure.
    pub memory: Option<M>,
    pub elem: Elem,
    component: Component,
    bytes: usize,
    /// Its bytes are codes and scales.
    coded: bool,
}

/// What holds nothing before the first step.
const OF_STEPS: [Component; 4] =
    [Component::Gradients, Component::Activations, Component::Statistics, Component::Logits];

/// f32 masters of one buffer, which is their copy in the element type.
pub(super) struct Masters<M> {
    pub buffer: usize,
    pub memory: M,
}

impl<D: Machine> CudaBackend<D> {
    /// Memory that is in the plan under `name`.
    pub(super) fn take(&mut self, name: &'static str, bytes: usize) -> Result<D::Memory, GpuError> {
        *self.planned.entry(name).or_default() += bytes as u64;
        self.device.alloc(bytes)
    }

    /// Takes what the model's steps need besides its buffers.
    pub(super) fn take_own(&mut self, model: &Model) -> Result<(), GpuError> {
        let extras = Extras::of(model, &self.extents)?;
        if extras.masters > 0 {
            let memory = self.take(MASTERS, extras.masters)?;
            self.masters = Some(Masters { buffer: model.groups[0].value.buffer, memory });
        }
        let numbers = extras.batch + extras.scalars;
        let staging = self.take(BATCH, numbers)?;
        let feed = Feed::new(&*self.device, numbers, staging)?;
        let [cos, sin] = [self.tables.cos(), self.tables.sin()].map(|t| le_bytes(t, f32::to_le_bytes));
        let mut own = Own {
            scratch: self.take(SCRATCH, extras.scratch)?,
            kept: self.take(KEPT, extras.pieces.bytes)?,
            pieces: extras.pieces,
            batch: self.take(BATCH, numbers)?,
            cos: self.filled(&cos)?,
            sin: self.filled(&sin)?,
            segments: Vec::new(),
            trains_table: model.embed.grad.is_some(),
            groups: names(&model.groups),
            written: Written::of(model),
            places: self.take_places(places(model), extras.entry)?,
            feed,
        };
        for (_, adapter) in adapters(model) {
            if !own.segments.iter().any(|(list, _)| *list == adapter.segments) {
                let table = le_bytes(&lora::table(&adapter.segments), i32::to_le_bytes);
                own.segments.push((adapter.segments.clone(), self.filled(&table)?));
            }
        }
        self.own = Some(own);
        Ok(())
    }

    /// Tunes products, before the first step. Their operands lie where gradients and activations will: what is not needed at the same
    /// time is not taken twice, and the plan stays what is taken.
    ///
    /// # Errors
    /// There is no room, even so, or a product has no algorithm.
    pub(super) fn tune(&mut self, products: &[Product]) -> Result<(), GpuError> {
        let device = self.device.clone();
        let tune = || products.iter().try_for_each(|p| device.tune(p));
        if products.iter().all(|p| device.is_tuned(p)) {
            return tune();
        }
        let lent = |b: &Buffer<_>| b.memory.is_some() && OF_STEPS.contains(&b.component);
        let lent: Vec<usize> = (0..self.buffers.len()).filter(|i| lent(&self.buffers[*i])).collect();
        lent.iter().for_each(|i| self.buffers[*i].memory = None);
        let tuned = tune();
        for i in lent {
            self.buffers[i].memory = Some(device.alloc(self.buffers[i].bytes)?);
        }
        tuned
    }

    fn filled(&mut self, bytes: &[u8]) -> Result<D::Memory, GpuError> {
        let memory = self.take(BATCH, bytes.len())?;
        self.device.write(&memory, 0, bytes)?;
        Ok(memory)
    }

    /// What `prepare` took.
    pub(super) fn own(&self) -> &Own<D> {
        self.own.as_ref().expect("the backend is prepared before it is used")
    }

    pub(super) fn memory(&self, buffer: usize) -> Option<&D::Memory> {
        self.buffers[buffer].memory.as_ref()
    }

    /// Where a view begins; nowhere, if there was no room, as nothing is launched then.
    pub(super) fn at(&self, view: View) -> Ptr {
        let buffer = &self.buffers[view.buffer];
        let begin = |memory| self.device.ptr(memory).offset(buffer.elem.bytes() * view.offset);
        buffer.memory.as_ref().map_or(Ptr::NULL, begin)
    }

    /// Memory of a view's values, their type, and the byte at which they begin: masters where there are any.
    fn values(&self, view: View) -> Result<(&D::Memory, Elem, usize), Error> {
        self.check()?;
        let buffer = &self.buffers[view.buffer];
        if buffer.coded {
            return Err(no_values());
        }
        let (memory, elem) = match &self.masters {
            Some(masters) if masters.buffer == view.buffer => (&masters.memory, Elem::F32),
            _ => (buffer.memory.as_ref().expect("no failure, no lack of memory"), buffer.elem),
        };
        Ok((memory, elem, elem.bytes() * view.offset))
    }

    pub(super) fn read_values(&self, view: View) -> Result<Vec<f32>, Error> {
        let (memory, elem, at) = self.values(view)?;
        let bytes = self.device.read(memory, at, elem.bytes() * view.len).map_err(failure)?;
        Ok(elem.decode(&bytes))
    }

    pub(super) fn write_values(&mut self, view: View, values: &[f32]) -> Result<(), Error> {
        assert_eq!(view.len, values.len(), "a value for each element");
        let (memory, elem, at) = self.values(view)?;
        self.device.write(memory, at, &elem.encode(values)).map_err(failure)?;
        if self.masters.as_ref().is_some_and(|m| m.buffer == view.buffer) {
            let Buffer { memory, elem, .. } = &self.buffers[view.buffer];
            let copy = memory.as_ref().expect("no failure, no lack of memory");
            self.device.write(copy, elem.bytes() * view.offset, &elem.encode(values)).map_err(failure)?;
        }
        Ok(())
    }

    /// Memory of a whole buffer, and its bytes.
    fn whole(&self, view: View) -> Result<(&D::Memory, usize), Error> {
        self.check()?;
        let Buffer { memory, bytes, .. } = &self.buffers[view.buffer];
        Ok((memory.as_ref().expect("no failure, no lack of memory"), *bytes))
    }

    pub(super) fn read_stored(&self, view: View) -> Result<Vec<u8>, Error> {
        let (memory, bytes) = self.whole(view)?;
        self.device.read(memory, 0, bytes).map_err(failure)
    }

    pub(super) fn write_stored(&mut self, view: View, bytes: &[u8]) -> Result<(), Error> {
        let (memory, expected) = self.whole(view)?;
        check_stored(bytes.len(), expected)?;
        self.device.write(memory, 0, bytes).map_err(failure)
    }
}

impl<D: Machine> Allocator for CudaBackend<D> {
    fn alloc(&mut self, component: Component, len: usize) -> View {
        let bytes = self.formats.bytes(component, len);
        let taken =
            if self.failed.is_none() { self.take(component.name(), bytes).map(Some) } else { Ok(None) };
        let memory = taken.unwrap_or_else(|e| {
            self.failed = Some(e);
            None
        });
        let coded = component == Component::OptimizerStates && self.formats.states == States::Eight;
        self.buffers.push(Buffer { memory, elem: self.formats.elem(component), component, bytes, coded });
        View { buffer: self.buffers.len() - 1, offset: 0, len }
    }

    fn keeps_probabilities(&self) -> bool {
        false
    }
}
