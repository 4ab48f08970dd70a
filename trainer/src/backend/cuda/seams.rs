//! The seams on a GPU: each method looks its views up and calls one kernel.
//!
//! What every call relies on: a view has the extents that the layout gave it, for as many tokens as a batch can have, in the
//! format of its component, 16-byte aligned since widths are multiples of 8; buffers live as long as the backend; the
//! launcher and the products are of the device that has them; the batch was checked when it was uploaded.

use std::{cell::RefCell, collections::BTreeMap};

use chronicals_data::batch::Geometry;
use chronicals_kernels::{
    Seam, Target,
    attention::cuda as attention,
    embedding::cuda as embedding,
    gpu::Machine,
    linear_ce::{cuda as linear_ce, cuda_eager as linear_ce_eager},
    qk_rope::cuda as qk_rope,
    rmsnorm::cuda as rmsnorm,
    swiglu::cuda as swiglu,
};

use super::{
    CudaBackend, batch,
    extents::scalars,
    feed::{Reading, Staged, Stager},
    plan, update,
};
use crate::{
    backend::{
        About, Attention, Backend, Group, HostPlace, Linear, Norm, Param, QkRope, StepStats, Update, View,
        Work,
    },
    device::lacking,
    error::Error,
    memory::Plan,
    model::{
        Model, Setup,
        step::{self, Purpose},
    },
    profile::{self, Profile},
};

impl<D: Machine> Backend for CudaBackend<D> {
    const APART: bool = true;
    const OFFLOADS: bool = true;

    type Staged = Staged<D>;
    type Stager = Stager<D>;
    type Ended = Reading<D>;

    fn plan(&self, setup: &Setup<'_>) -> Result<Plan, Error> {
        plan::count(setup, &self.extents, self.device.workspace_bytes())
    }

    fn room(&self, setup: &Setup<'_>) -> Result<u64, Error> {
        let own = self.device.workspace_bytes();
        let free = (self.device.free_bytes().map_err(lacking)? + own) as u64;
        Ok(free.saturating_sub(plan::outside(setup, &self.extents)))
    }

    fn prepare(&mut self, model: &Model) -> Result<(), Error> {
        update::check_groups(model)?;
        if let Some(e) = self.failed.take() {
            return Err(lacking(e));
        }
        self.take_own(model).map_err(lacking)
    }

    fn rehearse(&mut self, model: &Model, geometry: Geometry, purpose: Purpose) -> Result<(), Error> {
        let shape = batch::extents(geometry, &self.extents);
        if !self.rehearsed.insert((purpose, batch::Shape { loss_tokens: 0, ..shape })) {
            return Ok(());
        }
        (self.shape, self.rehearsal) = (shape, Some(RefCell::default()));
        step::forward(self, model, purpose);
        if purpose == Purpose::Evaluation {
            self.loss_forward(&model.head, model.y);
        } else {
            // Products of the first micro-batch, then of the others.
            for first in [true, false] {
                self.first = first;
                step::backward(self, model);
            }
            self.update(&model.groups, model.grads);
        }
        let products = self.rehearsal.take().expect("begun above").into_inner();
        if self.failed.is_none() {
            self.failed = self.tune(&products).err();
        }
        // Nothing has run: what fails is what the machine does not give, room above all.
        self.failed.clone().map_or(Ok(()), |e| Err(lacking(e)))
    }

    fn choices(&self) -> Option<String> {
        Some(self.device.choices())
    }

    fn adopt(&mut self, choices: &str) -> bool {
        self.device.adopt(choices)
    }

    fn about(&self) -> About {
        // Eager attention has no path.
        let path = (!self.is_eager(Seam::Attention)).then(|| self.path.name());
        About {
            device: self.device.name(),
            precision: self.formats.record(),
            kernel_plan: self.plan.names(Target::Cuda),
            settings: path.map(|path| ("attention_path".to_string(), path.into())).into_iter().collect(),
        }
    }

    fn planned_bytes(&self) -> BTreeMap<String, u64> {
        let some = self.planned.iter().filter(|(_, b)| **b > 0);
        some.map(|(name, b)| (name.to_string(), *b)).collect()
    }

    fn profile(&mut self, options: &profile::Options) -> Result<(), Error> {
        self.start_record(options)
    }

    fn profiled(&mut self) -> Result<Option<Profile>, Error> {
        self.end_record()
    }

    fn planned_host_bytes(&self) -> u64 {
        self.planned_host
    }

    fn launches(&self) -> BTreeMap<String, u64> {
        self.log.counts()
    }

    fn read(&self, view: View) -> Result<Vec<f32>, Error> {
        self.read_values(view)
    }

    fn write(&mut self, view: View, values: &[f32]) -> Result<(), Error> {
        self.write_values(view, values)
    }

    fn stored(&self, view: View) -> Result<Vec<u8>, Error> {
        self.read_stored(view)
    }

    fn restore(&mut self, view: View, bytes: &[u8]) -> Result<(), Error> {
        self.write_stored(view, bytes)
    }

    fn stager(&self) -> Stager<D> {
        self.make_stager()
    }

    fn begin(&mut self, loss_scale: f32) {
        let mut bytes = [0; scalars::HYPER];
        bytes[scalars::SCALE..][..4].copy_from_slice(&loss_scale.to_le_bytes());
        self.loss_tokens = 0;
        self.put_numbers(0, &bytes);
    }

    fn schedule(&mut self, groups: &[Group], update: &Update) {
        self.begin_recording(update.step - 1);
        self.max_norm = update.max_grad_norm as f32;
        self.put_numbers(scalars::HYPER, &update::hyper_bytes(groups, update, self.seed));
    }

    fn feed(&mut self, batch: Staged<D>) {
        self.feed_batch(batch);
    }

    fn submit(&mut self, work: Work, f: impl FnOnce(&mut Self) + Send) {
        self.first = matches!(work, Work::Step | Work::First);
        self.submit_work(work, f);
        self.first = false;
    }

    fn embed(&mut self, table: View, x: View) {
        self.run(|b, on| {
            if b.is_eager(Seam::Attention) {
                b.eager_mask(on)?;
            }
            let ids = b.of_batch(b.layout.ids);
            // SAFETY: see the module.
            unsafe { embedding::forward(on, b.elem(), ids, b.at(table), b.at(x), b.embedding_shape()) }
        });
    }

    fn embed_backward(&mut self, dx: View, dtable: View) {
        self.run(|b, on| {
            let (order, shape) = (b.of_batch(b.layout.order), b.embedding_shape());
            let (elem, dx, dtable) = (b.elem(), b.at(dx), b.at(dtable));
            // SAFETY: see the module.
            unsafe { embedding::backward(on, elem, order, dx, dtable, b.scratch(), shape) }
        });
    }

    fn norm(&mut self, n: &Norm, x: View, y: View) {
        self.run(|b, on| {
            if b.is_eager(Seam::Norm) {
                return b.eager_norm(on, n, None, x, y);
            }
            let (dims, shape) = (b.extents.dims, b.extents.dims.norm(b.shape.tokens));
            let [x, weight, y, rstd] = [x, n.weight.value, y, n.rstd].map(|v| b.at(v));
            // SAFETY: see the module.
            unsafe { rmsnorm::forward(on, b.elem(), x, weight, dims.eps, y, rstd, shape) }
        });
    }

    fn add_norm(&mut self, n: &Norm, residual: View, delta: View, sum: View, y: View) {
        self.run(|b, on| {
            if b.is_eager(Seam::Norm) {
                return b.eager_norm(on, n, Some([residual, delta]), sum, y);
            }
            let (eps, shape) = (b.extents.dims.eps, b.extents.dims.norm(b.shape.tokens));
            let [residual, delta, sum] = [residual, delta, sum].map(|v| b.at(v));
            let [weight, y, rstd] = [n.weight.value, y, n.rstd].map(|v| b.at(v));
            // SAFETY: see the module.
            unsafe { rmsnorm::add_forward(on, b.elem(), residual, delta, sum, weight, eps, y, rstd, shape) }
        });
    }

    fn norm_backward(&mut self, n: &Norm, dy: View, x: View, dx: View, accumulate: bool) {
        self.run(|b, on| {
            if b.is_eager(Seam::Norm) {
                return b.eager_norm_backward(on, n, [dy, x, dx], accumulate);
            }
            let shape = b.extents.dims.norm(b.shape.tokens);
            let [dy, x, rstd, weight, dx] = [dy, x, n.rstd, n.weight.value, dx].map(|v| b.at(v));
            let dweight = n.weight.grad.map(|g| (b.at(g), b.scratch()));
            // SAFETY: see the module.
            unsafe { rmsnorm::backward(on, b.elem(), dy, x, rstd, weight, dx, accumulate, dweight, shape) }
        });
    }

    fn linear(&mut self, l: &Linear, x: View, y: View) {
        self.run(|b, on| b.project(on, l, x, y));
    }

    fn linear_backward(&mut self, l: &Linear, dy: View, x: View, dx: Option<View>) {
        self.run(|b, on| b.project_back(on, l, dy, x, dx));
    }

    fn qk_rope(&mut self, r: &QkRope, qkv: View) {
        self.run(|b, on| {
            let (dims, shape) = (b.extents.dims, b.extents.dims.rope(b.shape.tokens));
            let norm = r.norm.map(|n| qk_rope::NormForward {
                q_weight_K: b.at(n.q_weight.value),
                k_weight_K: b.at(n.k_weight.value),
                eps: dims.eps,
                pre_norm: b.at(n.pre),
                rstd: b.at(n.rstd),
            });
            let bias = r.bias.map(|bias| b.at(bias.value));
            if b.is_eager(Seam::QkRope) {
                return b.eager_qk_rope(on, qkv, bias, r.norm.map(|n| n.rstd).zip(norm));
            }
            // SAFETY: see the module.
            unsafe { qk_rope::forward(on, b.elem(), b.at(qkv), bias, norm, b.rotation(), shape) }
        });
    }

    fn qk_rope_backward(&mut self, r: &QkRope, dqkv: View) {
        self.run(|b, on| {
            let shape = b.extents.dims.rope(b.shape.tokens);
            let norm = r.norm.map(|n| qk_rope::NormBackward {
                q_weight_K: b.at(n.q_weight.value),
                k_weight_K: b.at(n.k_weight.value),
                pre_norm: b.at(n.pre),
                rstd: b.at(n.rstd),
                dq_weight_K: n.q_weight.grad.map(|g| b.at(g)),
                dk_weight_K: n.k_weight.grad.map(|g| b.at(g)),
            });
            let dbias = r.bias.and_then(|bias| bias.grad).map(|g| b.at(g));
            if b.is_eager(Seam::QkRope) {
                return b.eager_qk_rope_backward(on, dqkv, dbias, r.norm.map(|n| n.rstd).zip(norm));
            }
            let (elem, dqkv, rotation) = (b.elem(), b.at(dqkv), b.rotation());
            // SAFETY: see the module.
            unsafe { qk_rope::backward(on, elem, dqkv, dbias, norm, rotation, b.scratch(), shape) }
        });
    }

    fn attention(&mut self, a: &Attention) {
        self.run(|b, on| {
            on.within(Seam::Attention);
            if b.is_eager(Seam::Attention) {
                return b.eager_attention(on, a);
            }
            let [qkv, out, lse] = [a.qkv, a.out, a.lse].map(|v| b.at(v));
            let shape = b.extents.dims.attention();
            // SAFETY: see the module.
            unsafe { attention::forward(on, b.path, qkv, &b.documents(), out, lse, shape) }
        });
    }

    fn attention_backward(&mut self, a: &Attention, dout: View, dqkv: View) {
        self.run(|b, on| {
            on.within(Seam::Attention);
            if b.is_eager(Seam::Attention) {
                return b.eager_attention_backward(on, a, dout, dqkv);
            }
            let [dout, qkv, out, lse, dqkv] = [dout, a.qkv, a.out, a.lse, dqkv].map(|v| b.at(v));
            let (documents, shape) = (b.documents(), b.extents.dims.attention());
            // SAFETY: see the module.
            unsafe {
                attention::backward(on, b.path, dout, qkv, out, lse, &documents, b.scratch(), dqkv, shape)
            }
        });
    }

    fn swiglu(&mut self, before: &Linear, gate_up: View, act: View) {
        self.run(|b, on| {
            let (t, ffn) = (b.shape.tokens, b.extents.dims.ffn);
            if b.is_eager(Seam::Mlp) {
                return b.eager_swiglu(on, gate_up, act, false);
            }
            if b.leaves_output(before) {
                return b.adapted_swiglu(on, before, gate_up, act);
            }
            // SAFETY: see the module.
            unsafe { swiglu::forward(on, b.elem(), b.at(gate_up), b.at(act), t, ffn) }
        });
    }

    fn swiglu_backward(&mut self, before: &Linear, behind: &Linear, gate_up: View, dact: View) {
        self.run(|b, on| {
            let (t, ffn) = (b.shape.tokens, b.extents.dims.ffn);
            if b.is_eager(Seam::Mlp) {
                return b.eager_swiglu(on, gate_up, dact, true);
            }
            if b.leaves_output(before) || b.leaves_gradient(behind) {
                return b.adapted_swiglu_backward(on, before, behind, gate_up, dact);
            }
            // SAFETY: see the module.
            unsafe { swiglu::backward(on, b.elem(), b.at(gate_up), b.at(dact), t, ffn) }
        });
    }

    fn loss(&mut self, head: &Param, x: View, dx: View) {
        self.run(|b, on| {
            let gradients = linear_ce::Gradients {
                scale: b.scalar(scalars::SCALE),
                dx_TD: b.at(dx),
                dw_VD: head.grad.map(|g| b.at(g)),
                dw_is_new: b.first,
            };
            let (operands, plan) = (b.loss_operands(head, x), b.loss_plan());
            on.within(Seam::Loss);
            // SAFETY: see the module.
            unsafe {
                if b.is_eager(Seam::Loss) {
                    return linear_ce_eager::forward_backward(on, on, &operands, &gradients, &plan, b.loss);
                }
                linear_ce::forward_backward(on, on, &operands, &gradients, &plan, b.loss)
            }
        });
    }

    fn loss_forward(&mut self, head: &Param, x: View) {
        self.run(|b, on| {
            let (operands, plan) = (b.loss_operands(head, x), b.loss_plan());
            on.within(Seam::Loss);
            // SAFETY: see the module.
            unsafe {
                if b.is_eager(Seam::Loss) {
                    return linear_ce_eager::forward(on, on, &operands, &plan, b.loss.plain());
                }
                linear_ce::forward(on, on, &operands, &plan, b.loss.plain())
            }
        });
    }

    fn put_aside(&mut self, x: View, place: HostPlace) {
        self.beside(x, place, true);
    }

    fn bring_back(&mut self, place: HostPlace, x: View) {
        self.beside(x, place, false);
    }

    fn await_copy(&mut self, place: HostPlace) {
        self.follow_copy(place);
    }

    fn zero(&mut self, view: View) {
        self.run(|b, on| b.cleared(view).into_iter().try_for_each(|v| b.clear(on, v)));
    }

    fn update(&mut self, groups: &[Group], grads: View) {
        self.update_all(groups, grads);
    }

    fn end(&mut self) -> Reading<D> {
        self.ask()
    }

    fn stats(&mut self, ended: Reading<D>) -> Result<StepStats, Error> {
        self.answer(ended)
    }
}
