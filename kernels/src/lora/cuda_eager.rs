//! LoRA as PEFT's `Linear` and its autograd graph make it on a GPU: one adapter after another, with scaling and addition as
//! operators of their own. The operands and the contract are those of [`super::cuda`], but for three things: the host gives the
//! segments and the table is not read; `xa_TS` and `dxa_TS` hold T × r_i matrices one behind another, as the tensors that
//! autograd keeps are; ranks, offsets and widths are multiples of 8, which the products want of a row.
//!
//! Of an adapter of N columns. Its products, which move what they must, are left out of the tables: forward `lora_A(x)` and
//! `lora_B(·)`, before the first row; backward the gradients of B, of `x·Aᵀ`, of A and of x, after the first. Those of A and B
//! are added to in f32 by their products, as everywhere in the step.
//!
//! # Forward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `lora_eager_mul` | · * scaling | TN elem | TN elem | |
//! | `lora_eager_add` | result + · | TN elem + TN elem | TN elem | |
//!
//! # Backward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `lora_eager_mul` | dy * scaling | TN elem | TN elem | |
//! | `lora_eager_add` | with x's other gradients | TD elem + TD elem | TD elem | dx |

use super::{
    Placed, Segment, Shape,
    cuda::{Gradients, Group, Operands},
    placed,
};
use crate::gpu::{
    Arg, Elem, GpuError, Launcher, Needs, Product, Products, Ptr, Unit,
    eager::{Operators, Pass, View},
};

/// `eager.cu`.
pub static UNIT: Unit = Unit {
    name: "lora_eager",
    source: concat!(
        "#line 1 \"eager.cuh\"\n",
        include_str!("../gpu/eager.cuh"),
        "#line 1 \"lora/eager.cu\"\n",
        include_str!("eager.cu")
    ),
    entries: &["lora_eager_mul", "lora_eager_add"],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Whose kernels are launched.
static UNITS: &[&Unit] = &[&UNIT];

/// Bytes of scratch for either pass: of the widest adapter, its output before and after scaling, or its scaled gradient and
/// that of x.
///
/// # Errors
/// An adapter whose rank or columns are no multiples of 8.
pub fn scratch_bytes(group: &Group, segments: &[Segment]) -> Result<usize, GpuError> {
    check(segments)?;
    Ok(forward_account(group, segments).1.max(backward_account(group, segments, true).1))
}

/// The passes of [`forward`], of adapters that it does not refuse.
pub fn forward_passes(group: &Group, segments: &[Segment]) -> Vec<Pass> {
    forward_account(group, segments).0
}

/// The passes of [`backward`], with the gradient of x or without, of adapters that it does not refuse.
pub fn backward_passes(group: &Group, segments: &[Segment], dx: bool) -> Vec<Pass> {
    backward_account(group, segments, dx).0
}

const NOWHERE: Operands = Operands {
    x_TD: Ptr::NULL,
    a_SD: Ptr::NULL,
    b: Ptr::NULL,
    xa_TS: Ptr::NULL,
    table: Ptr::NULL,
    scratch: Ptr::NULL,
};

fn forward_account(group: &Group, segments: &[Segment]) -> (Vec<Pass>, usize) {
    let mut ops = Operators::new(None, UNITS, group.elem, Ptr::NULL);
    // SAFETY: nothing is launched.
    unsafe { update(&mut ops, None, group, segments, &NOWHERE, Ptr::NULL).expect("counted only") };
    ops.account()
}

fn backward_account(group: &Group, segments: &[Segment], dx: bool) -> (Vec<Pass>, usize) {
    let mut ops = Operators::new(None, UNITS, group.elem, Ptr::NULL);
    let [dy_TN, dxa_TS, da_SD, db] = [Ptr::NULL; 4];
    let gradients = Gradients { dy_TN, dxa_TS, da_SD, db, dx_TD: dx.then_some(Ptr::NULL) };
    // SAFETY: nothing is launched.
    unsafe { gradient(&mut ops, None, group, segments, &NOWHERE, &gradients).expect("counted only") };
    ops.account()
}

/// An adapter that products can do.
fn check(segments: &[Segment]) -> Result<(), GpuError> {
    let odd = |s: &&Segment| [s.offset, s.width, s.r].iter().any(|n| !n.is_multiple_of(8));
    segments.iter().find(odd).map_or(Ok(()), |s| {
        Err(GpuError::new(
            format!("an adapter of rank {} for columns {}..{}", s.r, s.offset, s.offset + s.width),
            "eager LoRA",
            "make its rank and columns multiples of 8, or take the fused variant",
        ))
    })
}

/// Places of an adapter's parts in the operands of its group.
struct Adapter {
    segment: Segment,
    a: Ptr,
    b: Ptr,
    xa: Ptr,
}

impl Adapter {
    fn new(p: Placed, group: &Group, operands: &Operands) -> Self {
        let Shape { tokens, inputs, .. } = group.shape;
        let at = |of: Ptr, elements: usize| of.offset(elements * group.elem.bytes());
        let (a, b) = (at(operands.a_SD, p.s * inputs), at(operands.b, p.b));
        Self { segment: p.segment, a, b, xa: at(operands.xa_TS, p.s * tokens) }
    }

    /// Its columns of the packed output, or of its gradient.
    fn columns(&self, packed_TN: Ptr, group: &Group) -> View {
        let Segment { offset, width, .. } = self.segment;
        View::rows(packed_TN.offset(offset * group.elem.bytes()), group.elem, width, group.shape.outputs)
    }
}

/// `xa_TS = x·Aᵀ` and `y_TN += scale·xa·Bᵀ`; the scratch has [`scratch_bytes`].
///
/// # Safety
/// As [`super::cuda::forward`].
///
/// # Errors
/// As there, and an adapter whose rank or columns are no multiples of 8.
pub unsafe fn forward(
    on: &dyn Launcher,
    products: &dyn Products,
    group: &Group,
    segments: &[Segment],
    operands: &Operands,
    y_TN: Ptr,
) -> Result<(), GpuError> {
    check(segments)?;
    let mut ops = Operators::new(Some(on), UNITS, group.elem, operands.scratch);
    // SAFETY: the caller's promise is the same.
    unsafe { update(&mut ops, Some(products), group, segments, operands, y_TN) }
}

/// Gradients of [`forward`].
///
/// # Safety
/// As [`forward`]; `xa_TS` is what it left.
///
/// # Errors
/// As [`forward`].
pub unsafe fn backward(
    on: &dyn Launcher,
    products: &dyn Products,
    group: &Group,
    segments: &[Segment],
    operands: &Operands,
    gradients: &Gradients,
) -> Result<(), GpuError> {
    check(segments)?;
    let mut ops = Operators::new(Some(on), UNITS, group.elem, operands.scratch);
    // SAFETY: the caller's promise is the same.
    unsafe { gradient(&mut ops, Some(products), group, segments, operands, gradients) }
}

/// Room for T rows of the widest adapter.
fn widest(ops: &mut Operators, group: &Group, segments: &[Segment]) -> Ptr {
    let columns = segments.iter().map(|s| s.width).max().unwrap_or(0);
    ops.take(group.shape.tokens * columns * group.elem.bytes())
}

/// # Safety
/// As [`forward`].
unsafe fn update(
    ops: &mut Operators,
    products: Option<&dyn Products>,
    group: &Group,
    segments: &[Segment],
    operands: &Operands,
    y_TN: Ptr,
) -> Result<(), GpuError> {
    let Group { shape: Shape { tokens: t, inputs: d, .. }, elem, scale, .. } = *group;
    let [out, scaled] = [(); 2].map(|()| widest(ops, group, segments));
    for place in placed(segments).filter(|_| t > 0) {
        let adapter = Adapter::new(place, group, operands);
        let (Segment { width, r, .. }, y) = (adapter.segment, adapter.columns(y_TN, group));
        let dense = |at| View::dense(at, elem);
        // SAFETY: the caller's promise; the scratch holds two outputs of the widest adapter.
        unsafe {
            Product::linear_forward(t, r, d, elem).run(products, operands.x_TD, adapter.a, adapter.xa)?;
            Product::linear_forward(t, width, r, elem).run(products, adapter.xa, adapter.b, out)?;
            ops.map_with("lora_eager_mul", dense(scaled), &[dense(out)], t * width, &[Arg::F32(scale)])?;
            ops.map("lora_eager_add", y, &[y, dense(scaled)], t * width)?;
        }
    }
    Ok(())
}

/// # Safety
/// As [`backward`].
unsafe fn gradient(
    ops: &mut Operators,
    products: Option<&dyn Products>,
    group: &Group,
    segments: &[Segment],
    operands: &Operands,
    gradients: &Gradients,
) -> Result<(), GpuError> {
    let Group { shape: Shape { tokens: t, inputs: d, .. }, elem, scale, .. } = *group;
    let (dout, dx) = (widest(ops, group, segments), ops.take(t * d * elem.bytes()));
    for place in placed(segments).filter(|_| t > 0) {
        let (da, db) = (gradients.da_SD.offset(4 * place.s * d), gradients.db.offset(4 * place.b));
        let dxa = gradients.dxa_TS.offset(place.s * t * elem.bytes());
        let adapter = Adapter::new(place, group, operands);
        let (Segment { width, r, .. }, dy) = (adapter.segment, adapter.columns(gradients.dy_TN, group));
        let scaled = View::dense(dout, elem);
        // SAFETY: the caller's promise; the scratch holds a gradient of the widest adapter's output, and one of x.
        unsafe {
            ops.map_with("lora_eager_mul", scaled, &[dy], t * width, &[Arg::F32(scale)])?;
            Product::linear_wgrad(t, width, r, elem).run(products, dout, adapter.xa, db)?;
            Product::linear_dgrad(t, width, r, elem).run(products, dout, adapter.b, dxa)?;
            Product::linear_wgrad(t, r, d, elem).run(products, dxa, operands.x_TD, da)?;
            if let Some(sum) = gradients.dx_TD.map(|at| View::dense(at, elem)) {
                Product::linear_dgrad(t, r, d, elem).run(products, dxa, adapter.a, dx)?;
                ops.map("lora_eager_add", sum, &[sum, View::dense(dx, elem)], t * d)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::eager::documented;

    #[test]
    fn passes_are_those_of_the_tables() {
        let segments = [(0, 32, 8), (32, 16, 16)].map(|(offset, width, r)| Segment { offset, width, r });
        for (elem, dx) in Elem::ALL.into_iter().flat_map(|e| [false, true].map(|dx| (e, dx))) {
            let group = Group::new(&segments, Shape { tokens: 7, inputs: 24, outputs: 56 }, elem, 2.0);
            let table = |heading| -> Vec<Pass> {
                let of = |segment: &Segment| {
                    let extent = |name: &str| match name {
                        "TN" => 7 * segment.width,
                        "TD" => 7 * 24,
                        _ => panic!("no extent '{name}'"),
                    };
                    let when = |condition: &str| condition == "dx" && dx;
                    documented(include_str!("cuda_eager.rs"), heading, elem, extent, when)
                };
                segments.iter().flat_map(of).collect()
            };
            assert_eq!(forward_passes(&group, &segments), table("Forward"));
            assert_eq!(backward_passes(&group, &segments, dx), table("Backward"));
        }
    }
}
