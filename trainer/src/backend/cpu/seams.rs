//! The seams on the CPU: each method looks its views up and calls one kernel.

use std::collections::BTreeMap;

use chronicals_data::batch::{Batch, Geometry};
use chronicals_kernels::{
    Seam, Target, attention, embedding, gemm, gpu::Cost, linear_ce, qk_rope, rmsnorm, swiglu,
};

use super::{CpuBackend, adapters::split};
use crate::{
    backend::{
        About, Attention, Backend, Component, Group, HostPlace, Linear, Norm, Param, QkRope, Stager,
        StepStats, Update, View, Work,
    },
    error::Error,
    memory::{self, Plan},
    model::{Model, Setup, step::Purpose},
    profile::{self, Profile},
};

/// Batches are read as they were laid out.
pub struct AsItIs;

impl Stager for AsItIs {
    type Staged = Batch;

    fn stage(&self, batch: Batch) -> Result<Batch, Error> {
        Ok(batch)
    }
}

impl Backend for CpuBackend {
    const APART: bool = false;
    const OFFLOADS: bool = false;

    type Staged = Batch;
    type Stager = AsItIs;
    type Ended = StepStats;

    fn plan(&self, setup: &Setup<'_>) -> Result<Plan, Error> {
        let elements = memory::elements(setup, self.loss_options)?;
        Ok(Plan { bytes: memory::cpu_bytes(&elements, self.formats), host_bytes: 0 })
    }

    /// A tenth is left to temporaries, batches and other programs.
    fn room(&self, _: &Setup<'_>) -> Result<u64, Error> {
        let free = memory::available_bytes().ok_or_else(|| {
            Error::new("the system does not tell how much memory is free", "memory")
                .hint("set memory_limit_gb, or recompute to other than auto")
        })?;
        Ok(free / 10 * 9)
    }

    fn prepare(&mut self, _: &Model) -> Result<(), Error> {
        Ok(())
    }

    fn rehearse(&mut self, _: &Model, _: Geometry, _: Purpose) -> Result<(), Error> {
        Ok(())
    }

    fn about(&self) -> About {
        About {
            device: "cpu".into(),
            precision: self.formats.record(),
            kernel_plan: self.plan.names(Target::Cpu),
            settings: BTreeMap::from([("products".to_string(), gemm::unit().into())]),
        }
    }

    fn planned_bytes(&self) -> BTreeMap<String, u64> {
        let shape = self.dims.loss(self.capacity.tokens);
        let logits = linear_ce::workspace_bytes(self.plan.get(Seam::Loss), shape, self.loss_options);
        let allocated = self.planned.iter().map(|(c, b)| (c.name().to_string(), *b));
        allocated.chain([(Component::Logits.name().to_string(), logits)]).collect()
    }

    fn profile(&mut self, options: &profile::Options) -> Result<(), Error> {
        self.start_laps(options)
    }

    fn profiled(&mut self) -> Result<Option<Profile>, Error> {
        self.take_laps()
    }

    fn planned_host_bytes(&self) -> u64 {
        0
    }

    fn launches(&self) -> BTreeMap<String, u64> {
        self.launches.clone()
    }

    fn read(&self, view: View) -> Result<Vec<f32>, Error> {
        self.buffers[view.buffer].check_values()?;
        Ok(self.get(view).to_vec())
    }

    fn write(&mut self, view: View, values: &[f32]) -> Result<(), Error> {
        self.buffers[view.buffer].check_values()?;
        self.get_mut(view).copy_from_slice(values);
        Ok(())
    }

    fn stored(&self, view: View) -> Result<Vec<u8>, Error> {
        Ok(self.buffers[view.buffer].stored())
    }

    fn restore(&mut self, view: View, bytes: &[u8]) -> Result<(), Error> {
        self.buffers[view.buffer].restore(bytes)
    }

    fn stager(&self) -> AsItIs {
        AsItIs
    }

    fn begin(&mut self, loss_scale: f32) {
        self.loss_scale = loss_scale;
    }

    fn schedule(&mut self, _: &[Group], update: &Update) {
        self.begin_laps(update.step - 1);
        self.update = Some(*update);
    }

    /// Inside rayon's pool, so that a parallel kernel starts without waking a sleeping thread.
    fn submit(&mut self, _: Work, f: impl FnOnce(&mut Self) + Send) {
        rayon::scope(|_| f(self));
        self.end_lap();
    }

    fn feed(&mut self, batch: Batch) {
        let fits = batch.ids.len() <= self.capacity.tokens && batch.row_slots <= self.capacity.row_slots;
        assert!(fits, "the batch is within the capacity that the model was laid out for");
        self.batch = batch;
    }

    fn embed(&mut self, table: View, x: View) {
        self.lap("embedding", "fused", "forward", self.embedding_cost(false));
        embedding::forward(&self.batch.ids, &self.get(table), &mut self.act_mut(x), self.dims.hidden);
    }

    fn embed_backward(&mut self, dx: View, dtable: View) {
        self.lap("embedding", "fused", "backward", self.embedding_cost(true));
        embedding::backward(&self.batch.ids, &self.act(dx), &mut self.get_mut(dtable), self.dims.hidden);
    }

    fn norm(&mut self, n: &Norm, x: View, y: View) {
        let variant = self.launch(Seam::Norm, "forward", |b| b.norm_cost("rmsnorm_forward"));
        rmsnorm::forward(
            variant,
            &self.act(x),
            &self.get(n.weight.value),
            self.dims.eps,
            &mut self.act_mut(y),
            &mut self.act_mut(n.rstd),
            self.norm_shape(),
        );
    }

    fn add_norm(&mut self, n: &Norm, residual: View, delta: View, sum: View, y: View) {
        let variant = self.launch(Seam::Norm, "add_forward", |b| b.norm_cost("rmsnorm_add_forward"));
        rmsnorm::add_forward(
            variant,
            &self.act(residual),
            &self.act(delta),
            &mut self.act_mut(sum),
            &self.get(n.weight.value),
            self.dims.eps,
            &mut self.act_mut(y),
            &mut self.act_mut(n.rstd),
            self.norm_shape(),
        );
    }

    fn norm_backward(&mut self, n: &Norm, dy: View, x: View, dx: View, accumulate: bool) {
        let variant = self.launch(Seam::Norm, "backward", |b| {
            b.norm_cost(if accumulate { "rmsnorm_add_backward" } else { "rmsnorm_backward" })
        });
        let mut dweight = n.weight.grad.map(|g| self.get_mut(g));
        rmsnorm::backward(
            variant,
            &self.act(dy),
            &self.act(x),
            &self.act(n.rstd),
            &self.get(n.weight.value),
            &mut self.act_mut(dx),
            accumulate,
            dweight.as_deref_mut(),
            self.norm_shape(),
        );
    }

    fn linear(&mut self, l: &Linear, x: View, y: View) {
        self.product(l, x, y);
        if let Some(dora) = &l.dora {
            self.magnitudes_forward(l, dora, y);
        }
    }

    fn linear_backward(&mut self, l: &Linear, dy: View, x: View, dx: Option<View>) {
        let (t, n, k) = (self.tokens(), l.outputs, l.inputs);
        let dy = match &l.dora {
            Some(dora) => {
                self.magnitudes_backward(l, dora, dy, x);
                dora.scaled
            }
            None => dy,
        };
        if let Some(dx) = dx {
            self.lap("gemm", "library", "dgrad", self.product_cost(l, false, 0));
            gemm::linear_dgrad(&mut self.act_mut(dx), &self.act(dy), &self.get(l.weight.value), t, n, k, 0.0);
        }
        if let Some(dw) = l.weight.grad {
            self.lap("gemm", "library", "wgrad", self.product_cost(l, true, n * k));
            gemm::linear_wgrad(&mut self.get_mut(dw), &self.act(dy), &self.act(x), t, n, k, 1.0);
        }
        for adapter in &l.adapters {
            self.adapter_backward(l, adapter, dy, x, dx);
        }
    }

    fn qk_rope(&mut self, r: &QkRope, qkv: View) {
        let variant = self.launch(Seam::QkRope, "forward", |b| {
            b.rope_cost(if r.bias.is_some() { "qk_rope_bias_forward" } else { "qk_rope_forward" })
        });
        let bias = r.bias.map(|b| self.get(b.value));
        let mut norm = r.norm.map(|n| {
            let weights = (self.get(n.q_weight.value), self.get(n.k_weight.value));
            (weights, self.act_mut(n.pre), self.act_mut(n.rstd))
        });
        let norm = norm.as_mut().map(|((q, k), pre_norm, rstd)| qk_rope::NormForward {
            q_weight_K: q,
            k_weight_K: k,
            eps: self.dims.eps,
            pre_norm,
            rstd,
        });
        let mut qkv = self.act_mut(qkv);
        qk_rope::forward(variant, &mut qkv, bias.as_deref(), norm, self.rotation(), self.rope_shape());
    }

    fn qk_rope_backward(&mut self, r: &QkRope, dqkv: View) {
        let variant = self.launch(Seam::QkRope, "backward", |b| {
            b.rope_cost(if r.bias.is_some() { "qk_rope_bias_backward" } else { "qk_rope_backward" })
        });
        let mut dbias = r.bias.and_then(|b| b.grad).map(|g| self.get_mut(g));
        let norm = r.norm.map(|n| {
            let weights = (self.get(n.q_weight.value), self.get(n.k_weight.value));
            (weights, self.act(n.pre), self.act(n.rstd))
        });
        let mut grads = r.norm.and_then(|n| Some(self.grads([n.q_weight.grad?, n.k_weight.grad?])));
        let (dq, dk) =
            grads.as_mut().map(|(buffer, ranges)| split(buffer, ranges)).map(|[q, k]| (q, k)).unzip();
        let norm = norm.as_ref().map(|((q, k), pre_norm, rstd)| qk_rope::NormBackward {
            q_weight_K: q,
            k_weight_K: k,
            pre_norm,
            rstd,
            dq_weight_K: dq,
            dk_weight_K: dk,
        });
        let mut dqkv = self.act_mut(dqkv);
        qk_rope::backward(variant, &mut dqkv, dbias.as_deref_mut(), norm, self.rotation(), self.rope_shape());
    }

    fn attention(&mut self, a: &Attention) {
        if self.cache.is_some() {
            return self.cached_attention(a);
        }
        let variant = self.launch(Seam::Attention, "forward", |b| b.attention_cost(false));
        let (layout, shape) = self.attention_shape();
        let mut probs = a.probs.map(|p| self.get_mut(self.probs_in_use(p)));
        attention::forward(
            variant,
            &self.act(a.qkv),
            layout,
            shape,
            &mut self.act_mut(a.out),
            &mut self.act_mut(a.lse),
            probs.as_deref_mut(),
        );
    }

    fn attention_backward(&mut self, a: &Attention, dout: View, dqkv: View) {
        let variant = self.launch(Seam::Attention, "backward", |b| b.attention_cost(true));
        let (layout, shape) = self.attention_shape();
        let probs = a.probs.map(|p| self.get(self.probs_in_use(p)));
        let (qkv, out, lse) = (self.act(a.qkv), self.act(a.out), self.act(a.lse));
        let saved = attention::Saved { qkv_TQ: &qkv, out_T: &out, lse_HT: &lse, probs: probs.as_deref() };
        attention::backward(variant, &self.act(dout), saved, layout, shape, &mut self.act_mut(dqkv));
    }

    fn swiglu(&mut self, _: &Linear, gate_up: View, act: View) {
        let variant = self.launch(Seam::Mlp, "forward", |b| b.swiglu_cost("swiglu_forward"));
        swiglu::forward(variant, &self.act(gate_up), &mut self.act_mut(act), self.tokens(), self.dims.ffn);
    }

    fn swiglu_backward(&mut self, _: &Linear, _: &Linear, gate_up: View, dact: View) {
        let variant = self.launch(Seam::Mlp, "backward", |b| b.swiglu_cost("swiglu_backward"));
        swiglu::backward(variant, &mut self.act_mut(gate_up), &self.act(dact), self.tokens(), self.dims.ffn);
    }

    fn loss(&mut self, head: &Param, x: View, dx: View) {
        let variant = self.launch(Seam::Loss, "forward_backward", |b| b.loss_cost(true, head.grad.is_some()));
        let mut dw = head.grad.map(|g| self.get_mut(g));
        let sums = linear_ce::forward_backward(
            variant,
            &self.act(x),
            &self.get(head.value),
            &self.batch.labels,
            self.loss_scale,
            &mut self.act_mut(dx),
            dw.as_deref_mut(),
            self.loss_shape(),
            self.loss_options,
        );
        drop(dw);
        self.add_loss(sums);
    }

    fn loss_forward(&mut self, head: &Param, x: View) {
        let variant = self.launch(Seam::Loss, "forward", |b| b.loss_cost(false, false));
        let sums = linear_ce::forward(
            variant,
            &self.act(x),
            &self.get(head.value),
            &self.batch.labels,
            self.loss_shape(),
            self.loss_options.plain(),
        );
        self.add_loss(sums);
    }

    fn put_aside(&mut self, _: View, _: HostPlace) {
        unreachable!("no model on a processor has places on the host");
    }

    fn bring_back(&mut self, _: HostPlace, _: View) {
        unreachable!("as above");
    }

    fn await_copy(&mut self, _: HostPlace) {
        unreachable!("as above");
    }

    fn zero(&mut self, view: View) {
        self.lap("memory", "device", "fill", Cost::bytes(4 * view.len as u64));
        self.get_mut(view).fill(0.0);
    }

    fn update(&mut self, groups: &[Group], grads: View) {
        self.update_all(groups, grads);
    }

    fn end(&mut self) -> StepStats {
        std::mem::take(&mut self.stats)
    }

    fn stats(&mut self, ended: StepStats) -> Result<StepStats, Error> {
        Ok(ended)
    }
}
