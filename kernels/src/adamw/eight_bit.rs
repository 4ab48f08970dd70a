//! AdamW with [8-bit moments](super::codes) and f32 parameters: one pass over the parameters, their gradients and codes.

use rayon::prelude::*;

use super::{
    Factors, Group, TASK_ELEMENTS,
    codes::{Array, BLOCK, decode_block, encode_block, random_block, scales},
};
use crate::passes::vectorised;

/// First or second moments of an arena.
#[derive(Debug)]
pub struct Moments<'a> {
    /// One byte an element; 0 at first.
    pub codes: &'a mut [u8],
    /// [`scales`] floats; 0 at first.
    pub scales: &'a mut [f32],
}

impl<'a> Moments<'a> {
    fn tasks(self) -> impl IndexedParallelIterator<Item = Moments<'a>> {
        let scales = self.scales.par_chunks_mut(TASK_ELEMENTS / BLOCK);
        let tasks = self.codes.par_chunks_mut(TASK_ELEMENTS).zip(scales);
        tasks.map(|(codes, scales)| Moments { codes, scales })
    }
}

/// One step for all parameters of an arena, which `groups` divide. The update is that of the new moments before they are rounded;
/// `seed` is that of their rounding, the same at every step. Deterministic for any number of threads.
///
/// # Panics
/// If lengths differ, groups are out of order or end elsewhere than the arena, or the step is 0.
pub fn update(
    p: &mut [f32],
    g: &[f32],
    m: Moments<'_>,
    v: Moments<'_>,
    groups: &[Group],
    seed: u32,
    grad_scale: f32,
) {
    let n = p.len();
    assert!([g.len(), m.codes.len(), v.codes.len()] == [n; 3], "the arrays of an arena differ in length");
    assert!([m.scales.len(), v.scales.len()] == [scales(n); 2], "every block has a scale");
    assert!(groups.is_sorted_by_key(|g| g.end) && groups.last().map_or(0, |g| g.end) == n, "groups' ends");
    assert!(groups.iter().all(|g| g.hyper.step > 0), "steps count from 1");
    let Some(step) = groups.first().map(|g| g.hyper.step) else { return };
    let groups: Vec<(usize, Factors)> = groups.iter().map(|g| (g.end, g.hyper.factors())).collect();
    let at = Step { groups: &groups, step, seed, grad_scale };
    let tasks =
        p.par_chunks_mut(TASK_ELEMENTS).zip(g.par_chunks(TASK_ELEMENTS)).zip(m.tasks()).zip(v.tasks());
    tasks.enumerate().for_each(|(task, (((p, g), m), v))| {
        vectorised(
            #[inline(always)]
            || {
                let values = p.chunks_mut(BLOCK).zip(g.chunks(BLOCK));
                let first = m.codes.chunks_mut(BLOCK).zip(&mut *m.scales);
                let second = v.codes.chunks_mut(BLOCK).zip(&mut *v.scales);
                for (i, (((p, g), m), v)) in values.zip(first).zip(second).enumerate() {
                    at.block(task * (TASK_ELEMENTS / BLOCK) + i, p, g, m, v);
                }
            },
        );
    });
}

/// What the blocks of an update share.
#[derive(Clone, Copy)]
struct Step<'a> {
    groups: &'a [(usize, Factors)],
    step: u32,
    seed: u32,
    grad_scale: f32,
}

impl Step<'_> {
    /// Updates block number `block`: parameters, and codes with their scale.
    #[inline(always)]
    fn block(
        &self,
        block: usize,
        p: &mut [f32],
        g: &[f32],
        m: (&mut [u8], &mut f32),
        v: (&mut [u8], &mut f32),
    ) {
        let mut first = decode_block::<true>(m.0, *m.1);
        let mut second = decode_block::<false>(v.0, *v.1);
        let (begin, mut done) = (block * BLOCK, 0);
        for (end, f) in self.groups {
            let part = done..end.saturating_sub(begin).min(p.len()).max(done);
            done = part.end;
            let moments = first[part.clone()].iter_mut().zip(&mut second[part.clone()]);
            for ((p, &g), (m, v)) in p[part.clone()].iter_mut().zip(&g[part]).zip(moments) {
                f.element(p, g * self.grad_scale, m, v);
            }
        }
        let random = |array| random_block(block, array, self.step, self.seed);
        *m.1 = encode_block::<true>(&first, &random(Array::First), m.0);
        *v.1 = encode_block::<false>(&second, &random(Array::Second), v.0);
    }
}
