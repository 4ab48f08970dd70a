//! `clip_grad_norm_` and `torch.optim.AdamW(foreach=True)`, PyTorch's default on CUDA: launches of `eager.cu`, one kernel for
//! each `torch._foreach_*` operator, over the arena where PyTorch has lists of tensors. The contract is that of [`super::cuda`]
//! but for the scratch and these:
//!
//! * Gradients are scaled in place, unless they are cast first. With a clip buffer they always are: PyTorch multiplies by 1 too.
//! * Gradients of another type than the state's are cast to it first, as they must be for PyTorch: `main_grad` and master
//!   weights are the custom of its mixed-precision trainers.
//! * All is rounded to nearest: a state in bf16 loses small changes, as it does in PyTorch.
//! * There are no 8-bit moments: such a [`State`] is an error.
//! * The norm is [`super::cuda::norm`] in both variants: one pass over the gradients, as `torch._foreach_norm` makes. PyTorch has
//!   a norm for each tensor and takes that of the stack of them, a handful of kernels over a few hundred numbers.
//!
//! {state} is the type of parameters and moments, f32 or elem; {grad}, that of the gradients. Where a group does not decay, its
//! parameters are left out of that pass; the account has all N.
//!
//! # Update
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `adamw_eager_to_{state}` | grad.to(state) | N {grad} | N {state} | cast |
//! | `adamw_eager_clip_{state}` | mul_(grads, clip_coef) | N {state} | N {state} | clip |
//! | `adamw_eager_decay_{state}` | mul_(params, 1 - lr * wd) | N {state} | N {state} | |
//! | `adamw_eager_lerp_{state}` | lerp_(exp_avgs, grads, 1 - beta1) | N {state} + N {state} | N {state} | |
//! | `adamw_eager_mul_{state}` | mul_(exp_avg_sqs, beta2) | N {state} | N {state} | |
//! | `adamw_eager_addcmul_{state}` | addcmul_(exp_avg_sqs, grads, grads, 1 - beta2) | N {state} + N {state} | N {state} | |
//! | `adamw_eager_sqrt_{state}` | sqrt(exp_avg_sqs) | N {state} | N {state} | |
//! | `adamw_eager_div_{state}` | div_(sqrt, bias_correction2_sqrt) | N {state} | N {state} | |
//! | `adamw_eager_add_{state}` | add_(sqrt, eps) | N {state} | N {state} | |
//! | `adamw_eager_addcdiv_{state}` | addcdiv_(params, exp_avgs, sqrt, -step_size) | N {state} + N {state} + N {state} | N {state} | |
//! | `adamw_eager_to_elem` | weights.copy_(params) | N f32 | N elem | copy |

pub use super::cuda::norm;
use super::cuda::{Grads, State};
use crate::gpu::{
    Arg, Elem, GpuError, Launcher, Needs, Ptr, Unit,
    eager::{Operators, Pass, View},
};

/// `eager.cu`.
pub static UNIT: Unit = Unit {
    name: "adamw_eager",
    source: concat!(
        "#line 1 \"eager.cuh\"\n",
        include_str!("../gpu/eager.cuh"),
        "#line 1 \"adamw/hyper.cuh\"\n",
        include_str!("hyper.cuh"),
        "#line 1 \"adamw/eager.cu\"\n",
        include_str!("eager.cu")
    ),
    entries: &[
        "adamw_eager_to_f32",
        "adamw_eager_to_elem",
        "adamw_eager_clip_f32",
        "adamw_eager_decay_f32",
        "adamw_eager_lerp_f32",
        "adamw_eager_mul_f32",
        "adamw_eager_addcmul_f32",
        "adamw_eager_sqrt_f32",
        "adamw_eager_div_f32",
        "adamw_eager_add_f32",
        "adamw_eager_addcdiv_f32",
        "adamw_eager_clip_elem",
        "adamw_eager_decay_elem",
        "adamw_eager_lerp_elem",
        "adamw_eager_mul_elem",
        "adamw_eager_addcmul_elem",
        "adamw_eager_sqrt_elem",
        "adamw_eager_div_elem",
        "adamw_eager_add_elem",
        "adamw_eager_addcdiv_elem",
    ],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Whose kernels are launched.
static UNITS: &[&Unit] = &[&UNIT];

/// What a step is of, without where that lies.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// f32 parameters and moments, not ones of the element type.
    pub master: bool,
    /// Gradients of the element type, not f32 ones.
    pub of_elem: bool,
    /// A copy of the parameters in the element type, of a master.
    pub copy: bool,
    /// Gradients are clipped.
    pub clip: bool,
}

impl Layout {
    /// Type of parameters and moments, and of the gradients.
    fn types(self, elem: Elem) -> [Elem; 2] {
        [if self.master { Elem::F32 } else { elem }, if self.of_elem { elem } else { Elem::F32 }]
    }
}

/// Bytes of scratch that [`update`] needs.
pub fn scratch_bytes(elem: Elem, layout: Layout, n: usize) -> usize {
    account(elem, layout, n).1
}

/// The passes of [`update`].
pub fn update_passes(elem: Elem, layout: Layout, n: usize) -> Vec<Pass> {
    account(elem, layout, n).0
}

fn account(elem: Elem, layout: Layout, n: usize) -> (Vec<Pass>, usize) {
    let at = Ptr::NULL;
    let mut ops = Operators::new(None, UNITS, elem, at);
    let step = Step { layout, arrays: [at; 5], n, hyper: at, groups: 1, clip: at };
    // SAFETY: nothing is launched.
    unsafe { step.run(&mut ops, elem).expect("counted only") };
    ops.account()
}

/// As [`super::cuda::update`]; `scratch` has [`scratch_bytes`].
///
/// # Safety
/// As [`super::cuda::update`]; gradients may be overwritten.
///
/// # Errors
/// As [`Launcher::launch`]; or the state has 8-bit moments.
///
/// # Panics
/// When `n` is no multiple of 8.
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn update(
    on: &dyn Launcher,
    elem: Elem,
    state: State,
    grads: Grads,
    n: usize,
    hyper: Ptr,
    groups: usize,
    clip: Ptr,
    scratch: Ptr,
) -> Result<(), GpuError> {
    assert!(n > 0 && n.is_multiple_of(8), "an arena of {n} is no multiple of 8");
    let (master, [p, copy, m, v]) = match state {
        State::Master { p, copy, m, v } => (true, [p, copy, m, v]),
        State::Rounded { p, m, v } => (false, [p, Ptr::NULL, m, v]),
        State::MasterQuantised { .. } => {
            return Err(GpuError::new(
                "the eager variant has no 8-bit moments",
                "AdamW",
                "take the fused variant of the optimizer, or moments that are not quantised",
            ));
        }
    };
    let (g, of_elem) = match grads {
        Grads::F32(g) => (g, false),
        Grads::Elem(g) => (g, true),
    };
    let layout = Layout { master, of_elem, copy: copy != Ptr::NULL, clip: clip != Ptr::NULL };
    let step = Step { layout, arrays: [p, copy, m, v, g], n, hyper, groups, clip };
    let mut ops = Operators::new(Some(on), UNITS, elem, scratch);
    // SAFETY: the caller's promise is the same.
    unsafe { step.run(&mut ops, elem) }
}

/// A step's operands.
struct Step {
    layout: Layout,
    /// p, copy, m, v, g.
    arrays: [Ptr; 5],
    n: usize,
    hyper: Ptr,
    groups: usize,
    clip: Ptr,
}

/// Kernels for a type of the state.
struct Kernels {
    to: &'static str,
    clip: &'static str,
    decay: &'static str,
    lerp: &'static str,
    mul: &'static str,
    addcmul: &'static str,
    sqrt: &'static str,
    div: &'static str,
    add: &'static str,
    addcdiv: &'static str,
}

macro_rules! kernels {
    ($state:literal) => {
        Kernels {
            to: concat!("adamw_eager_to_", $state),
            clip: concat!("adamw_eager_clip_", $state),
            decay: concat!("adamw_eager_decay_", $state),
            lerp: concat!("adamw_eager_lerp_", $state),
            mul: concat!("adamw_eager_mul_", $state),
            addcmul: concat!("adamw_eager_addcmul_", $state),
            sqrt: concat!("adamw_eager_sqrt_", $state),
            div: concat!("adamw_eager_div_", $state),
            add: concat!("adamw_eager_add_", $state),
            addcdiv: concat!("adamw_eager_addcdiv_", $state),
        }
    };
}

const OF_F32: Kernels = kernels!("f32");
const OF_ELEM: Kernels = kernels!("elem");

impl Step {
    /// # Safety
    /// As [`update`].
    unsafe fn run(&self, ops: &mut Operators, elem: Elem) -> Result<(), GpuError> {
        let n = self.n;
        let [state, grad] = self.layout.types(elem);
        let kernel = if self.layout.master { OF_F32 } else { OF_ELEM };
        let [p, _, m, v, _] = self.arrays.map(|at| View::dense(at, state));
        let [_, copy, ..] = self.arrays.map(|at| View::dense(at, elem));
        let [.., given] = self.arrays.map(|at| View::dense(at, grad));
        let denominator = ops.temporary(state, n);
        let h = [Arg::Ptr(self.hyper)];
        let of_group = [Arg::Ptr(self.hyper), Arg::I32(self.groups as i32)];
        // SAFETY: the caller's promise; temporaries have the lengths that they are used at.
        unsafe {
            let g = if state == grad {
                given
            } else {
                let cast = ops.temporary(state, n);
                ops.map(kernel.to, cast, &[given], n)?;
                cast
            };
            if self.layout.clip {
                ops.map_with(kernel.clip, g, &[g], n, &[Arg::Ptr(self.clip)])?;
            }
            ops.map_with(kernel.decay, p, &[p], n, &of_group)?;
            ops.map_with(kernel.lerp, m, &[m, g], n, &h)?;
            ops.map_with(kernel.mul, v, &[v], n, &h)?;
            ops.map_with(kernel.addcmul, v, &[v, g], n, &h)?;
            ops.map(kernel.sqrt, denominator, &[v], n)?;
            ops.map_with(kernel.div, denominator, &[denominator], n, &h)?;
            ops.map_with(kernel.add, denominator, &[denominator], n, &h)?;
            ops.map_with(kernel.addcdiv, p, &[p, m, denominator], n, &of_group)?;
            if self.layout.copy {
                ops.map("adamw_eager_to_elem", copy, &[p], n)?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::eager::documented;

    #[test]
    fn passes_are_those_of_the_table() {
        let n = 10_008;
        for (elem, [master, of_elem]) in Elem::ALL
            .into_iter()
            .flat_map(|e| [[true, true], [true, false], [false, true], [false, false]].map(|o| (e, o)))
        {
            for optional in [false, true] {
                let layout = Layout { master, of_elem, copy: master && optional, clip: optional };
                let when = |condition: &str| match condition {
                    "cast" => elem == Elem::Bf16 && master == of_elem,
                    "clip" => optional,
                    "copy" => layout.copy,
                    _ => panic!("no condition '{condition}'"),
                };
                let source = include_str!("cuda_eager.rs")
                    .replace("{state}", if master { "f32" } else { "elem" })
                    .replace("{grad}", if of_elem { "elem" } else { "f32" });
                let table = documented(source.leak(), "Update", elem, |_| n, when);
                assert_eq!(update_passes(elem, layout, n), table, "{layout:?}");
            }
        }
    }
}
