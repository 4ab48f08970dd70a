//! Gather and scatter on a GPU, for [`crate::gpu::bench`].

use super::{
    cases,
    cuda::{self, Shape},
};
use crate::gpu::{
    Elem, GpuError,
    bench::{Compared, FUSED, Look, Operand, Subject, Taker, Testbed, sample, sets},
    le_bytes,
};

const ELEM: Elem = Elem::Bf16;

/// f32 sums of as many rows as a word has tokens.
const SUM_TOLERANCE: f64 = 1e-5;

/// Calls `f` with the benches of every shape.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(on: &B, shapes: &[Shape], f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    for &shape in shapes {
        let ids = cases::ids(shape);
        forward(on, &ids, shape, f)?;
        backward(on, &ids, shape, f)?;
    }
    Ok(())
}

fn forward<B: Testbed>(on: &B, ids: &[u32], shape: Shape, f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    let Shape { tokens, vocabulary, hidden } = shape;
    let work = cases::workload("embedding_forward", shape);
    let ids_in = Operand::raw(on, &le_bytes(&cuda::checked(ids, vocabulary), i32::to_le_bytes))?;
    let table = Operand::normal(on, ELEM, 1, vocabulary * hidden, 1.0)?;
    let output = |_| Operand::output(on, ELEM, tokens * hidden);
    let all = (0..sets(on, work.bytes)).map(output).collect::<Result<Vec<_>, _>>()?;
    let subject = Subject {
        on,
        work,
        changes: all.iter().map(|x| vec![("x", x)]).collect(),
        memory_bytes: 0,
        compare: Box::new(|_| {
            let mut look = Look::default();
            for t in sample(tokens, 6) {
                let row = table.values().row(ids[t] as usize, hidden);
                look.add(t * hidden, all[0].now(on, t * hidden, hidden)?, row);
            }
            // Rows as they are.
            Ok(vec![look.against_largest("x", 0.0)])
        }),
    };
    // SAFETY: the operands have the lengths that their names say, the ids were checked, and all outlive the measurement.
    subject.variant(f, FUSED, |set| unsafe {
        let [ids, table, x] = [&ids_in, &table, &all[set]].map(|m| m.ptr(on));
        cuda::forward(on.launcher(), ELEM, ids, table, x, shape)
    })
}

fn backward<B: Testbed>(on: &B, ids: &[u32], shape: Shape, f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    let Shape { tokens, vocabulary, hidden } = shape;
    let index = Operand::raw(on, &le_bytes(&cuda::index(ids, vocabulary), i32::to_le_bytes))?;
    let dx = Operand::normal(on, ELEM, 2, tokens * hidden, 1.0)?;
    let dtable = Operand::of(on, Elem::F32, vocabulary * hidden, &[0.0])?;
    let scratch = Operand::output(on, Elem::F32, cuda::scratch_floats(shape))?;
    let subject = Subject {
        on,
        work: cases::workload("embedding_backward", shape),
        changes: vec![vec![("dtable", &dtable)]],
        memory_bytes: 0,
        compare: Box::new(|by| compare_backward(on, ids, &dx, &dtable, shape, by.slack)),
    };
    // SAFETY: as above; the index is that of the ids.
    subject.variant(f, FUSED, |_| unsafe {
        let [index, dx, dtable, scratch] = [&index, &dx, &dtable, &scratch].map(|m| m.ptr(on));
        cuda::backward(on.launcher(), ELEM, index, dx, dtable, scratch, shape)
    })
}

/// Rows of the commonest and other ids, and one of an id that no token has.
fn compare_backward<B: Testbed>(
    on: &B,
    ids: &[u32],
    dx: &Operand<B::Memory>,
    dtable: &Operand<B::Memory>,
    shape: Shape,
    slack: f64,
) -> Result<Vec<Compared>, GpuError> {
    let d = shape.hidden;
    let unused = (0..shape.vocabulary as u32).rev().find(|id| !ids.contains(id));
    let mut looked: Vec<u32> = sample(ids.len(), 4).into_iter().map(|t| ids[t]).chain([0]).collect();
    looked.extend(unused);
    let mut look = Look::default();
    for id in looked {
        let mut want = dtable.values().row(id as usize, d);
        for t in (0..ids.len()).filter(|t| ids[*t] == id) {
            want.iter_mut().zip(dx.values().row(t, d)).for_each(|(sum, x)| *sum += x);
        }
        look.add(id as usize * d, dtable.now(on, id as usize * d, d)?, want);
    }
    Ok(vec![look.against_largest("dtable", slack * SUM_TOLERANCE)])
}
