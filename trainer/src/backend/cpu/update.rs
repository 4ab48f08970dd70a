//! Gradient norm, clipping and AdamW.

use chronicals_kernels::{
    Seam, Variant,
    adamw::{self, eight_bit},
};

use super::CpuBackend;
use crate::backend::{Group, Update, View};

impl CpuBackend {
    pub(super) fn update_all(&mut self, groups: &[Group], grads: View) {
        let u = self.update.expect("an update is scheduled");
        let variant = self.launch(Seam::Optimizer, "update", |b| b.update_cost(grads.len));
        let norm = self.norms(variant, groups, grads);
        // PyTorch's clip_grad_norm_: the same epsilon, never scaling up.
        let clip = if u.max_grad_norm > 0.0 { (u.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        match self.formats.eight_bit {
            true => self.update_coded(groups, &u, clip as f32),
            false => self.update_values(variant, groups, &u, clip as f32),
        }
    }

    /// The norm of all gradients; it and those of groups are kept for the step's record.
    fn norms(&mut self, variant: Variant, groups: &[Group], grads: View) -> f64 {
        let norm = adamw::norm_squared(variant, &self.get(grads)).sqrt();
        self.stats.grad_norm = norm;
        // One name is all there is; several are looked at apart, and of those there are few parameters.
        if groups.iter().any(|g| g.name != groups[0].name) {
            for g in groups {
                let square = adamw::norm_squared(variant, &self.get(g.grad));
                self.stats.add_group(g.name, square);
            }
        }
        norm
    }

    fn update_values(&mut self, variant: Variant, groups: &[Group], u: &Update, clip: f32) {
        for g in groups {
            adamw::update(
                variant,
                &mut self.get_mut(g.value),
                &mut self.get_mut(g.grad),
                &mut self.get_mut(g.m),
                &mut self.get_mut(g.v),
                u.hyper(g),
                clip,
            );
        }
    }

    /// All groups at once, as blocks of moments that share a scale lie across their ends.
    fn update_coded(&mut self, groups: &[Group], u: &Update, clip: f32) {
        let Some(first) = groups.first() else { return };
        let end = |g: &Group| g.grad.offset + g.grad.len;
        let ends: Vec<_> = groups.iter().map(|g| adamw::Group { end: end(g), hyper: u.hyper(g) }).collect();
        let whole = |view: View| View { offset: 0, len: groups.last().map_or(0, end), ..view };
        let [mut m, mut v] = [first.m, first.v].map(|view| self.buffers[view.buffer].coded_mut());
        eight_bit::update(
            &mut self.get_mut(whole(first.value)),
            &self.get(whole(first.grad)),
            m.moments(),
            v.moments(),
            &ends,
            self.seed,
            clip,
        );
    }
}
