//! RMSNorm on a GPU, for [`crate::gpu::bench`].

use rayon::prelude::*;

use super::{Shape, cases::workload, cuda, cuda_eager, reference};
use crate::gpu::{
    Elem, GpuError,
    bench::{
        Changes, Compared, EAGER, FUSED, Look, Operand, Room, Subject, Taker, Testbed, Variant, sample, sets,
    },
    eager::{Memory, traffic},
};

const EPS: f32 = 1e-6;

const ELEM: Elem = Elem::Bf16;

/// Rounding of the element type, and of an f32 sum over a row.
const TOLERANCE: f64 = 6e-3;

/// f32 sums over all rows, of which each thread adds up a few hundred.
const SUM_TOLERANCE: f64 = 2e-5;

/// Operands of one shape, bf16.
struct Operands<M> {
    matrices: [Operand<M>; 4],
    weight: Operand<M>,
    rstd_in: Operand<M>,
    rstd_out: Operand<M>,
    outputs: [Operand<M>; 2],
    dweight: Operand<M>,
    scratch: Operand<M>,
}

impl<M> Operands<M> {
    fn new<B: Testbed<Memory = M>>(on: &B, shape: Shape) -> Result<Self, GpuError> {
        let n = shape.elements();
        let matrix = |seed| Operand::normal(on, ELEM, seed, n, 1.0);
        let scratch = cuda::scratch_floats(on.launcher().processors(), shape);
        Ok(Self {
            matrices: [matrix(1)?, matrix(2)?, matrix(3)?, matrix(4)?],
            weight: Operand::normal(on, ELEM, 5, shape.hidden, 1.0)?,
            rstd_in: Operand::output(on, Elem::F32, shape.tokens)?,
            rstd_out: Operand::output(on, Elem::F32, shape.tokens)?,
            outputs: [Operand::output(on, ELEM, n)?, Operand::output(on, ELEM, n)?],
            dweight: Operand::of(on, Elem::F32, shape.hidden, &[0.0])?,
            scratch: Operand::output(on, Elem::F32, scratch)?,
        })
    }

    fn forward_changes(&self, added: bool) -> Changes<'_, M> {
        let [y, sum] = self.outputs.each_ref();
        let mut all = vec![("y", y), ("rstd", &self.rstd_out)];
        all.extend(added.then_some(("sum", sum)));
        all
    }

    /// What the gradient of x goes to.
    fn dx(&self, added: bool) -> &Operand<M> {
        if added { &self.matrices[2] } else { &self.outputs[0] }
    }

    /// The forward pass whose gradients the backward pass computes: it leaves `rstd_in`, and of eager what is saved.
    fn forward_of_backward<B: Testbed<Memory = M>>(
        &self,
        on: &B,
        shape: Shape,
        eager: Option<Memory>,
    ) -> Result<(), GpuError> {
        let [x, w, y, r] =
            [&self.matrices[1], &self.weight, &self.outputs[0], &self.rstd_in].map(|m| m.ptr(on));
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        unsafe {
            match eager {
                None => cuda::forward(on.launcher(), ELEM, x, w, EPS, y, r, shape),
                Some(memory) => cuda_eager::forward(on.launcher(), ELEM, x, w, EPS, y, r, memory, shape),
            }
        }
    }
}

/// Room for the eager variant of every set.
fn rooms<B: Testbed>(on: &B, shape: Shape, sets: usize) -> Vec<Room<B::Memory>> {
    let (saved, scratch) = (cuda_eager::saved_bytes(ELEM, shape), cuda_eager::scratch_bytes(ELEM, shape));
    (0..sets).map(|_| Room::new(on, saved, scratch)).collect()
}

/// Calls `f` with the benches of every shape, one shape's operands at a time.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(on: &B, shapes: &[Shape], f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    for &shape in shapes {
        let sets = sets(on, workload("rmsnorm_forward", shape).bytes);
        let all = (0..sets).map(|_| Operands::new(on, shape)).collect::<Result<Vec<_>, _>>()?;
        for added in [false, true] {
            forward(on, &all, added, shape, f)?;
            backward(on, &all, added, shape, f)?;
        }
    }
    Ok(())
}

/// x and weight, as well as x = residual + delta.
fn forward<B: Testbed>(
    on: &B,
    sets: &[Operands<B::Memory>],
    added: bool,
    shape: Shape,
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    let subject = Subject {
        on,
        work: workload(if added { "rmsnorm_add_forward" } else { "rmsnorm_forward" }, shape),
        changes: sets.iter().map(|s| s.forward_changes(added)).collect(),
        memory_bytes: 0,
        compare: Box::new(|by| compare_forward(on, &sets[0], added, shape, by.slack)),
    };
    subject.counted(f, FUSED, subject.work.bytes, |set| {
        let s = &sets[set];
        let [a, b, ..] = s.matrices.each_ref().map(|m| m.ptr(on));
        let [w, r, y, sum] = [&s.weight, &s.rstd_out, &s.outputs[0], &s.outputs[1]].map(|m| m.ptr(on));
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        unsafe {
            if added {
                return cuda::add_forward(on.launcher(), ELEM, a, b, sum, w, EPS, y, r, shape);
            }
            cuda::forward(on.launcher(), ELEM, a, w, EPS, y, r, shape)
        }
    })?;
    let rooms = rooms(on, shape, sets.len());
    let moved = traffic(&cuda_eager::forward_passes(ELEM, added, shape));
    subject.counted(f, EAGER, moved, |set| {
        let (s, memory) = (&sets[set], rooms[set].at(on)?);
        let [a, b, ..] = s.matrices.each_ref().map(|m| m.ptr(on));
        let [w, r, y, sum] = [&s.weight, &s.rstd_out, &s.outputs[0], &s.outputs[1]].map(|m| m.ptr(on));
        // SAFETY: as above.
        unsafe {
            if added {
                return cuda_eager::add_forward(on.launcher(), ELEM, a, b, sum, w, EPS, y, r, memory, shape);
            }
            cuda_eager::forward(on.launcher(), ELEM, a, w, EPS, y, r, memory, shape)
        }
    })
}

fn compare_forward<B: Testbed>(
    on: &B,
    s: &Operands<B::Memory>,
    added: bool,
    shape: Shape,
    slack: f64,
) -> Result<Vec<Compared>, GpuError> {
    let d = shape.hidden;
    let weight = s.weight.values().elements(0, d);
    let [mut y, mut rstd, mut sum] = [0; 3].map(|_| Look::default());
    for t in sample(shape.tokens, 6) {
        let mut x = s.matrices[0].values().row(t, d);
        if added {
            x.iter_mut().zip(s.matrices[1].values().row(t, d)).for_each(|(a, b)| *a += b);
            sum.add(t * d, s.outputs[1].now(on, t * d, d)?, x.clone());
        }
        let row = Shape { tokens: 1, hidden: d };
        let (y_row, rstd_row) = reference::forward(&x, &weight, f64::from(EPS), row);
        y.add(t * d, s.outputs[0].now(on, t * d, d)?, y_row);
        rstd.add(t, s.rstd_out.now(on, t, 1)?, rstd_row);
    }
    let mut all = vec![
        y.against_largest("y", slack * TOLERANCE),
        // Of the sum before it is rounded, or after.
        rstd.against_largest("rstd", if added { 4e-3 } else { 2e-6 } * slack),
    ];
    if added {
        all.push(sum.against_largest("sum", slack * TOLERANCE));
    }
    Ok(all)
}

/// dy is the first matrix, x the second; what the gradient is added to is the third.
fn backward<B: Testbed>(
    on: &B,
    sets: &[Operands<B::Memory>],
    added: bool,
    shape: Shape,
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    sets.iter().try_for_each(|s| s.forward_of_backward(on, shape, None))?;
    let subject = Subject {
        on,
        work: workload(if added { "rmsnorm_add_backward" } else { "rmsnorm_backward" }, shape),
        changes: sets.iter().map(|s| vec![("dx", s.dx(added)), ("dweight", &s.dweight)]).collect(),
        memory_bytes: 0,
        compare: Box::new(|by| compare_backward(on, &sets[0], added, shape, by)),
    };
    subject.counted(f, FUSED, subject.work.bytes, |set| {
        let s = &sets[set];
        let [dy, x, ..] = s.matrices.each_ref().map(|m| m.ptr(on));
        let [w, r, dx] = [&s.weight, &s.rstd_in, s.dx(added)].map(|m| m.ptr(on));
        let dweight = Some((s.dweight.ptr(on), s.scratch.ptr(on)));
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        unsafe { cuda::backward(on.launcher(), ELEM, dy, x, r, w, dx, added, dweight, shape) }
    })?;
    let rooms = rooms(on, shape, sets.len());
    for (s, room) in sets.iter().zip(&rooms) {
        room.fill(on, |memory| s.forward_of_backward(on, shape, Some(memory)))?;
    }
    let moved = traffic(&cuda_eager::backward_passes(ELEM, added, true, shape));
    subject.counted(f, EAGER, moved, |set| {
        let (s, memory) = (&sets[set], rooms[set].at(on)?);
        let [dy, x, ..] = s.matrices.each_ref().map(|m| m.ptr(on));
        let [w, r, dx, dw] = [&s.weight, &s.rstd_in, s.dx(added), &s.dweight].map(|m| m.ptr(on));
        // SAFETY: as above.
        unsafe { cuda_eager::backward(on.launcher(), ELEM, dy, x, r, w, dx, added, Some(dw), memory, shape) }
    })
}

fn compare_backward<B: Testbed>(
    on: &B,
    s: &Operands<B::Memory>,
    added: bool,
    shape: Shape,
    by: Variant,
) -> Result<Vec<Compared>, GpuError> {
    let (d, dx) = (shape.hidden, s.dx(added));
    let weight = s.weight.values().elements(0, d);
    let one = Shape { tokens: 1, hidden: d };
    let x = s.matrices[1].values();
    let rstd_of = |t: usize| {
        let (_, rstd) = reference::forward(&x.row(t, d), &weight, f64::from(EPS), one);
        rstd[0]
    };
    let rstd: Vec<f64> = (0..shape.tokens).into_par_iter().map(rstd_of).collect();
    let [mut rows, mut columns] = [0; 2].map(|_| Look::default());
    for t in sample(shape.tokens, 6) {
        let [dy, x] = [0, 1].map(|i| s.matrices[i].values().row(t, d));
        let mut want = reference::backward(&dy, &x, &[rstd[t]], &weight, one);
        if !dx.is_output() {
            want.iter_mut().zip(dx.values().row(t, d)).for_each(|(w, old)| *w += old);
        }
        rows.add(t * d, dx.now(on, t * d, d)?, want);
    }
    let dweight = s.dweight.now(on, 0, d)?;
    for j in sample(d, 6) {
        let term =
            |t: usize| s.matrices[0].values().at(t * d + j) * s.matrices[1].values().at(t * d + j) * rstd[t];
        columns.add(j, vec![dweight[j]], vec![(0..shape.tokens).map(term).sum()]);
    }
    Ok(vec![
        rows.against_largest("dx", by.slack * TOLERANCE),
        columns.against_largest("dweight", by.of_sum(SUM_TOLERANCE)),
    ])
}
