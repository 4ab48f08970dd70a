//! The passes of HF's `act_fn(gate) * up` and its autograd backward. Autograd would have saved `silu(gate)`; here it is
//! recomputed where it would be read, so that both variants save the same.

use super::sigmoid;
use crate::passes::{rows, temporary};

pub(super) fn forward(gate_up_T2F: &[f32], act_TF: &mut [f32], f: usize) {
    let silu_TF = temporary(
        act_TF.len() / f,
        f,
        #[inline(always)]
        |t| {
            gate_up_T2F[2 * t * f..][..f].iter().map(
                #[inline(always)]
                |&g| g * sigmoid(g),
            )
        },
    );
    rows(
        act_TF,
        f,
        #[inline(always)]
        |t, act| {
            let (silu, up) = (&silu_TF[t * f..][..f], &gate_up_T2F[(2 * t + 1) * f..][..f]);
            for ((act, &s), &u) in act.iter_mut().zip(silu).zip(up) {
                *act = s * u;
            }
        },
    );
}

pub(super) fn backward(gate_up_T2F: &mut [f32], dact_TF: &[f32], f: usize) {
    let dsilu_TF = temporary(
        dact_TF.len() / f,
        f,
        #[inline(always)]
        |t| {
            let (dact, up) = (&dact_TF[t * f..][..f], &gate_up_T2F[(2 * t + 1) * f..][..f]);
            dact.iter().zip(up).map(|(&da, &u)| da * u)
        },
    );
    rows(
        gate_up_T2F,
        2 * f,
        #[inline(always)]
        |t, row| {
            let (gate, dup) = row.split_at_mut(f);
            for ((o, &da), &g) in dup.iter_mut().zip(&dact_TF[t * f..][..f]).zip(&*gate) {
                *o = da * (g * sigmoid(g));
            }
        },
    );
    rows(
        gate_up_T2F,
        2 * f,
        #[inline(always)]
        |t, row| {
            for (g, &d) in row[..f].iter_mut().zip(&dsilu_TF[t * f..][..f]) {
                let s = sigmoid(*g);
                *g = d * s * (1.0 + *g * (1.0 - s));
            }
        },
    );
}
