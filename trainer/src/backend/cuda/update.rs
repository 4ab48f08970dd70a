//! Gradient norm, clipping and AdamW, all parameters in one launch.

use chronibench_protocol::spec::States;
use chronicals_kernels::{
    Seam,
    adamw::{
        cuda::{self, Codes, Grads, State},
        cuda_eager,
    },
    gpu::{Machine, Ptr},
};

use super::{CudaBackend, Masters, extents::scalars, formats::scales_at};
use crate::{
    backend::{Group, Update, View},
    error::Error,
    model::Model,
};

/// Checks that the groups are what one launch takes: end to end from the beginning, in packs of 8.
pub(super) fn check_groups(model: &Model) -> Result<(), Error> {
    let mut begin = 0;
    for g in &model.groups {
        let views = [g.value, g.grad, g.m, g.v];
        assert!(views.iter().all(|v| v.offset == begin && v.len == g.grad.len), "groups lie end to end");
        begin += g.grad.len;
        if !begin.is_multiple_of(8) {
            return Err(Error::new(format!("group {} ends at parameter {begin}", g.name), "optimizer").hint(
                "every width of the model must be a multiple of 8 to train on a GPU; or use device: cpu",
            ));
        }
    }
    Ok(())
}

/// Names of groups and where they end: those of one name, which differ in decay alone, lie together and have one norm.
pub(super) fn names(groups: &[Group]) -> Vec<(&'static str, usize)> {
    let runs = groups.chunk_by(|a, b| a.name == b.name);
    runs.filter_map(|run| run.last()).map(|g| (g.name, g.grad.offset + g.grad.len)).collect()
}

/// The hyper-parameters of a step as the kernels read them.
pub(super) fn hyper_bytes(groups: &[Group], u: &Update, seed: u32) -> Vec<u8> {
    let group = |g: &Group| cuda::Group { end: g.grad.offset + g.grad.len, hyper: u.hyper(g) };
    cuda::hyper_bytes(&groups.iter().map(group).collect::<Vec<_>>(), seed)
}

impl<D: Machine> CudaBackend<D> {
    /// Parameters and moments of the whole arena, whose first group is `g`.
    fn state(&self, g: &Group, n: usize) -> State {
        let all = |view: View| self.at(View { offset: 0, ..view });
        let (working, m, v) = (all(g.value), all(g.m), all(g.v));
        let (p, copy) = match &self.masters {
            Some(Masters { memory, .. }) => (self.ptr(memory, 0), working),
            None => (working, Ptr::NULL),
        };
        let codes = |at: Ptr| Codes { codes: at, scales: at.offset(scales_at(n)) };
        match self.formats.states {
            States::F32 => State::Master { p, copy, m, v },
            States::Bf16 => State::Rounded { p, m, v },
            States::Eight => State::MasterQuantised { p, copy, m: codes(m), v: codes(v) },
        }
    }

    pub(super) fn update_all(&mut self, groups: &[Group], grads: View) {
        let Some(first) = groups.first() else { return };
        self.run(|b, on| {
            let (own, elem, n) = (b.own(), b.elem(), grads.len);
            let ends: Vec<usize> = own.groups.iter().map(|(_, end)| *end).collect();
            let (clip, norms) = (b.scalar(scalars::CLIP), b.scalar(scalars::NORMS));
            let gradients = Grads::F32(b.at(grads));
            let (state, scratch) = (b.state(first, n), b.ptr(&own.scratch, 0));
            // SAFETY: the arena has n parameters in the formats of its state; the hyper-parameters are those of `schedule`,
            // for the same groups; the scratch is large enough for every kernel.
            unsafe {
                cuda::norm(on, elem, gradients, &ends, b.max_norm, scratch, clip, norms)?;
                let hyper = b.scalar(scalars::HYPER);
                if b.is_eager(Seam::Optimizer) {
                    return cuda_eager::update(
                        on,
                        elem,
                        state,
                        gradients,
                        n,
                        hyper,
                        groups.len(),
                        clip,
                        scratch,
                    );
                }
                cuda::update(on, elem, state, gradients, n, hyper, groups.len(), clip)
            }
        });
    }
}
