//! One pass over memory each way.

use rayon::prelude::*;

use super::sigmoid;
use crate::passes::{rows_per_task, vectorised};

pub(super) fn forward(gate_up_T2F: &[f32], act_TF: &mut [f32], f: usize) {
    let rows = rows_per_task(2 * f);
    gate_up_T2F.par_chunks(2 * rows * f).zip(act_TF.par_chunks_mut(rows * f)).for_each(|(gate_up, act)| {
        vectorised(
            #[inline(always)]
            || {
                for (gate_up, act) in gate_up.chunks_exact(2 * f).zip(act.chunks_exact_mut(f)) {
                    let (gate, up) = gate_up.split_at(f);
                    for ((act, &g), &u) in act.iter_mut().zip(gate).zip(up) {
                        *act = g * sigmoid(g) * u;
                    }
                }
            },
        );
    });
}

pub(super) fn backward(gate_up_T2F: &mut [f32], dact_TF: &[f32], f: usize) {
    let rows = rows_per_task(2 * f);
    gate_up_T2F.par_chunks_mut(2 * rows * f).zip(dact_TF.par_chunks(rows * f)).for_each(|(gate_up, dact)| {
        vectorised(
            #[inline(always)]
            || {
                for (gate_up, dact) in gate_up.chunks_exact_mut(2 * f).zip(dact.chunks_exact(f)) {
                    let (gate, up) = gate_up.split_at_mut(f);
                    for ((g, u), &da) in gate.iter_mut().zip(up).zip(dact) {
                        let s = sigmoid(*g);
                        let silu = *g * s;
                        // σ·(1 + g·(1 − σ)) = σ + silu·(1 − σ)
                        (*g, *u) = (da * *u * silu.mul_add(1.0 - s, s), da * silu);
                    }
                }
            },
        );
    });
}
