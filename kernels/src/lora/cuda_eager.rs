//! LoRA as PEFT's `Linear` and its autograd graph make it on a GPU: one adapter after another, with scaling and addition as
//! operators of their own. The operands and the contract are those of [`cuda`](super::cuda), but for three things: the host
//! gives the segments and the table is not read; `xa_TS` and `dxa_TS` hold T × r_i matrices one behind another, as the tensors
//! that autograd keeps are; ranks, offsets and widths are multiples of 8, which the products want of a row.
//!
//! Of an adapter of N columns, in `e`, the element type. Forward:
//!
//! | operator | launch | when | reads | writes |
//! |---|---|---|---|---|
//! | `lora_A(x)` | product | | | |
//! | `lora_B(·)` | product | | | |
//! | `· * scaling` | `lora_eager_mul` | | T·N e | T·N e |
//! | `result + ·` | `lora_eager_add` | | 2·T·N e | T·N e |
//!
//! Backward:
//!
//! | operator | launch | when | reads | writes |
//! |---|---|---|---|---|
//! | of `· * scaling` | `lora_eager_mul` | | T·N e | T·N e |
//! | of `lora_B`: B | product | | | |
//! | of `lora_B`: x·Aᵀ | product | | | |
//! | of `lora_A`: A | product | | | |
//! | of `lora_A`: x | product | dx | | |
//! | added to x's | `lora_eager_add` | dx | 2·T·D e | T·D e |
//!
//! * Gradients of A and B are added to in f32 by their products, as everywhere in the step.
//! * Deterministic, as cuBLASLt's products are.

use super::{
    Placed, Segment, Shape,
    cuda::{Gradients, Group, Operands},
    placed,
};
use crate::gpu::{Arg, Elem, GpuError, Launcher, Needs, Product, Products, Ptr, Unit, cast::each_pack};

/// `eager.cu`.
pub static UNIT: Unit = Unit {
    name: "lora_eager",
    source: concat!("#line 1 \"lora/eager.cu\"\n", include_str!("eager.cu")),
    entries: &["lora_eager_mul", "lora_eager_add"],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Bytes of scratch: of the widest adapter, its output before and after scaling, or its scaled gradient and that of x.
pub fn scratch_bytes(group: &Group, segments: &[Segment]) -> usize {
    let wide = wide_bytes(group, segments);
    wide + wide.max(bytes_of(group, group.shape.inputs))
}

/// Bytes that the two passes move outside of products, the second with dx: the sums of the tables over the adapters.
pub fn bytes(group: &Group, segments: &[Segment]) -> [u64; 2] {
    let of = |columns: usize| (group.shape.tokens * columns * group.elem.bytes()) as u64;
    let outputs: u64 = segments.iter().map(|s| of(s.width)).sum();
    [5 * outputs, 2 * outputs + 3 * of(group.shape.inputs) * segments.len() as u64]
}

fn bytes_of(group: &Group, columns: usize) -> usize {
    (group.shape.tokens * columns * group.elem.bytes()).next_multiple_of(256)
}

fn wide_bytes(group: &Group, segments: &[Segment]) -> usize {
    bytes_of(group, segments.iter().map(|s| s.width).max().unwrap_or(0))
}

/// The adapters, if their extents are what products want.
fn adapters(segments: &[Segment]) -> Result<impl Iterator<Item = Placed>, GpuError> {
    let odd = |s: &&Segment| [s.offset, s.width, s.r].iter().any(|n| !n.is_multiple_of(8));
    match segments.iter().find(odd) {
        None => Ok(placed(segments)),
        Some(s) => Err(GpuError::new(
            format!("an adapter of rank {} for columns {}..{}", s.r, s.offset, s.offset + s.width),
            "unfused LoRA",
            "make its rank and columns multiples of 8, or take the fused variant",
        )),
    }
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
}

/// `xa_TS = x·Aᵀ` and `y_TN += scale·xa·Bᵀ`; the scratch has [`scratch_bytes`].
///
/// # Safety
/// As [`cuda::forward`](super::cuda::forward).
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
    let Group { shape: Shape { tokens: t, inputs: d, outputs: n }, elem, scale, .. } = *group;
    let (out, scaled) = (operands.scratch, operands.scratch.offset(wide_bytes(group, segments)));
    for place in adapters(segments)?.filter(|_| t > 0) {
        let Adapter { segment: Segment { offset, width, r }, a, b, xa } =
            Adapter::new(place, group, operands);
        let (down, up) = (Product::linear_forward(t, r, d, elem), Product::linear_forward(t, width, r, elem));
        // SAFETY: the caller's promise; the scratch holds two outputs of the widest adapter.
        unsafe {
            products.product(&down, operands.x_TD, a, Ptr::NULL, xa)?;
            products.product(&up, xa, b, Ptr::NULL, out)?;
            mul(on, group, (out, width), scaled, width, scale)?;
            add(on, group, (scaled, width), (y_TN.offset(offset * elem.bytes()), n), width)?;
        }
    }
    Ok(())
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
    let Group { shape: Shape { tokens: t, inputs: d, outputs: n }, elem, scale, .. } = *group;
    let (dout, dx) = (operands.scratch, operands.scratch.offset(wide_bytes(group, segments)));
    for place in adapters(segments)?.filter(|_| t > 0) {
        let (da, db) = (gradients.da_SD.offset(4 * place.s * d), gradients.db.offset(4 * place.b));
        let dxa = gradients.dxa_TS.offset(place.s * t * elem.bytes());
        let Adapter { segment: Segment { offset, width, r }, a, b, xa } =
            Adapter::new(place, group, operands);
        // SAFETY: the caller's promise; the scratch holds a gradient of the widest adapter's output, and one of x.
        unsafe {
            mul(on, group, (gradients.dy_TN.offset(offset * elem.bytes()), n), dout, width, scale)?;
            products.product(&Product::linear_wgrad(t, width, r, elem), dout, xa, Ptr::NULL, db)?;
            products.product(&Product::linear_dgrad(t, width, r, elem), dout, b, Ptr::NULL, dxa)?;
            products.product(&Product::linear_wgrad(t, r, d, elem), dxa, operands.x_TD, Ptr::NULL, da)?;
            if let Some(sum) = gradients.dx_TD {
                products.product(&Product::linear_dgrad(t, r, d, elem), dxa, a, Ptr::NULL, dx)?;
                add(on, group, (dx, d), (sum, d), d)?;
            }
        }
    }
    Ok(())
}

/// `to = factor·from`, `columns` of rows; `from` with the distance between its rows.
///
/// # Safety
/// As [`forward`].
unsafe fn mul(
    on: &dyn Launcher,
    group: &Group,
    from: (Ptr, usize),
    to: Ptr,
    columns: usize,
    factor: f32,
) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { rows(on, group, "lora_eager_mul", from, (to, columns), columns, &[Arg::F32(factor)]) }
}

/// `to += from`, `columns` of rows; each with the distance between its rows.
///
/// # Safety
/// As [`forward`].
unsafe fn add(
    on: &dyn Launcher,
    group: &Group,
    from: (Ptr, usize),
    to: (Ptr, usize),
    columns: usize,
) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { rows(on, group, "lora_eager_add", from, to, columns, &[]) }
}

/// # Safety
/// As [`forward`].
unsafe fn rows(
    on: &dyn Launcher,
    group: &Group,
    name: &'static str,
    (from, from_stride): (Ptr, usize),
    (to, to_stride): (Ptr, usize),
    columns: usize,
    factor: &[Arg],
) -> Result<(), GpuError> {
    let packs = group.shape.tokens * columns / 8;
    assert!(packs < i32::MAX as usize, "{packs} packs are too many for one launch");
    let mut args =
        vec![Arg::Ptr(from), Arg::I64(from_stride as i64), Arg::Ptr(to), Arg::I64(to_stride as i64)];
    args.extend([packs, columns / 8].map(|n| Arg::U32(n as u32)));
    args.extend(factor);
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(UNIT.entry(name, group.elem), each_pack(packs), &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::{Recorder, sum, tables};

    #[test]
    fn the_tables_are_what_is_launched_and_its_bytes() {
        let segments = [(0, 32, 8), (32, 16, 16)].map(|(offset, width, r)| Segment { offset, width, r });
        let group = Group::new(&segments, Shape { tokens: 7, inputs: 24, outputs: 56 }, Elem::Bf16, 2.0);
        let of = |segment: &Segment| {
            let extent = |name: &str| match name {
                "T" => 7,
                "D" => 24,
                "N" => segment.width as u64,
                _ => panic!("extent {name}"),
            };
            tables(include_str!("cuda_eager.rs"), group.elem, extent)
        };
        let tables = segments.each_ref().map(of);
        let passes = |i: usize, dx: bool| tables.each_ref().map(|t| sum(&t[i], |when| when == "dx" && dx));
        let total = |i| passes(i, true).iter().map(|(_, bytes)| bytes).sum::<u64>();
        assert_eq!([total(0), total(1)], bytes(&group, &segments));
        let (at, machine) = (Ptr(0), Recorder::default());
        let operands = Operands { x_TD: at, a_SD: at, b: at, xa_TS: at, table: at, scratch: at };
        for dx in [false, true] {
            let dx_TD = dx.then_some(at);
            let gradients = Gradients { dy_TN: at, dxa_TS: at, da_SD: at, db: at, dx_TD };
            // SAFETY: nothing runs.
            unsafe {
                forward(&machine, &machine, &group, &segments, &operands, at).unwrap();
                backward(&machine, &machine, &group, &segments, &operands, &gradients).unwrap();
            }
            let launches = [0, 1].map(|i| passes(i, dx).map(|(launches, _)| launches).concat());
            assert_eq!(machine.take(), launches.concat());
        }
    }
}
