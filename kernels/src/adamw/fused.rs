//! One pass over the parameter, its gradient and its moments.

use rayon::prelude::*;

use super::{Factors, TASK_ELEMENTS};
use crate::passes::vectorised;

pub(super) fn update(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: Factors, grad_scale: f32) {
    let n = TASK_ELEMENTS;
    let tasks = p.par_chunks_mut(n).zip(g.par_chunks(n)).zip(m.par_chunks_mut(n)).zip(v.par_chunks_mut(n));
    tasks.for_each(|(((p, g), m), v)| {
        vectorised(
            #[inline(always)]
            || {
                for (((p, &g), m), v) in p.iter_mut().zip(g).zip(&mut *m).zip(&mut *v) {
                    f.element(p, g * grad_scale, m, v);
                }
            },
        );
    });
}
