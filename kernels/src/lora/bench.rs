//! LoRA on a GPU, for [`crate::gpu::bench`].

use rayon::prelude::*;

use super::{
    Placed, Segment, Shape, b_len,
    cases::{Case, workload},
    cuda::{self, Gradients, Group, Operands as Inputs},
    cuda_eager, placed, reference,
};
use crate::gpu::{
    Elem, GpuError, Launcher, Products, Ptr,
    bench::{
        Compared, EAGER, FUSED, Look, Operand, Room, Subject, Taker, Testbed, Values, Variant, product_bytes,
        sample,
    },
    eager::traffic,
    le_bytes,
};

const ELEM: Elem = Elem::Bf16;

/// α/r
const SCALE: f32 = 2.0;

/// Rounding of what lies between two products, and of the result, to bf16.
const TOLERANCE: f64 = 1.2e-2;

/// The gradient of x·Aᵀ of one token, one row of A after another, from its `dy`.
fn dxa(dy: &[f64], b: &Values, segments: &[Segment]) -> Vec<f64> {
    let column = |p: &Placed, i: usize| {
        let Segment { offset, width, r } = p.segment;
        let terms = dy[offset..offset + width].iter().enumerate();
        f64::from(SCALE) * terms.map(|(j, dy)| dy * b.at(p.b + j * r + i)).sum::<f64>()
    };
    placed(segments).flat_map(|p| (0..p.segment.r).map(move |i| (p, i))).map(|(p, i)| column(&p, i)).collect()
}

/// Operands of a case.
struct Operands<'a, B: Testbed> {
    on: &'a B,
    shape: Shape,
    segments: &'a [Segment],
    group: Group,
    x: Operand<B::Memory>,
    a: Operand<B::Memory>,
    b: Operand<B::Memory>,
    y: Operand<B::Memory>,
    dy: Operand<B::Memory>,
    dx: Operand<B::Memory>,
    /// What the forward pass leaves, and what the backward pass reads.
    xa_out: Operand<B::Memory>,
    xa_in: Operand<B::Memory>,
    dxa: Operand<B::Memory>,
    da: Operand<B::Memory>,
    db: Operand<B::Memory>,
    table: Operand<B::Memory>,
    scratch: Operand<B::Memory>,
}

impl<'a, B: Testbed> Operands<'a, B> {
    fn new(on: &'a B, case: &'a Case) -> Result<Self, GpuError> {
        let Case { shape: shape @ Shape { tokens: t, inputs: d, outputs: n }, segments, .. } = *case;
        let group = Group::new(segments, shape, ELEM, SCALE);
        let (s, b_len) = (group.s, b_len(segments));
        let normal = |seed, len, scale| Operand::normal(on, ELEM, seed, len, scale);
        Ok(Self {
            on,
            shape,
            segments,
            group,
            x: normal(1, t * d, 1.0)?,
            a: normal(2, s * d, 0.03)?,
            b: normal(3, b_len, 0.1)?,
            y: normal(4, t * n, 1.0)?,
            dy: normal(5, t * n, 1.0)?,
            dx: normal(6, t * d, 1.0)?,
            xa_out: Operand::output(on, ELEM, t * s)?,
            xa_in: normal(7, t * s, 1.0)?,
            dxa: Operand::output(on, ELEM, t * s)?,
            da: Operand::of(on, Elem::F32, s * d, &[0.0])?,
            db: Operand::of(on, Elem::F32, b_len, &[0.0])?,
            table: Operand::raw(on, &le_bytes(&cuda::table(segments), i32::to_le_bytes))?,
            scratch: Operand::output(on, Elem::F32, group.scratch_bytes().div_ceil(4))?,
        })
    }

    /// Bytes of the kernels beside the fused products, where there are any: B made wide, and backward its gradient collected.
    fn kernel_bytes(&self, backward: bool) -> u64 {
        if self.group.scratch_bytes() == 0 {
            return 0;
        }
        let (b, wide) = (b_len(self.segments), self.shape.outputs * self.group.s);
        let collected = if backward { 4 * b + 8 * b } else { 0 };
        (ELEM.bytes() * (b + wide) + collected) as u64
    }

    fn inputs(&self, xa: &Operand<B::Memory>) -> Inputs {
        let [x_TD, a_SD, b, xa_TS, table, scratch] =
            [&self.x, &self.a, &self.b, xa, &self.table, &self.scratch].map(|m| m.ptr(self.on));
        Inputs { x_TD, a_SD, b, xa_TS, table, scratch }
    }

    /// Sampled rows of y.
    fn compare_forward(&self, slack: f64) -> Result<Vec<Compared>, GpuError> {
        let Shape { inputs: d, outputs: n, tokens } = self.shape;
        let a = self.a.values().elements(0, self.group.s * d);
        let b = self.b.values().elements(0, b_len(self.segments));
        let one = Shape { tokens: 1, ..self.shape };
        let mut look = Look::default();
        for t in sample(tokens, 4) {
            let (x, y) = (self.x.values().row(t, d), self.y.values().row(t, n));
            let want = reference::forward(&x, &a, &b, f64::from(SCALE), self.segments, &y, one);
            look.add(t * n, self.y.now(self.on, t * n, n)?, want);
        }
        Ok(vec![look.against_largest("y", slack * TOLERANCE)])
    }

    /// Sampled rows of dx, and sampled sums over all tokens for the gradients of A and B.
    fn compare_backward(&self, by: Variant) -> Result<Vec<Compared>, GpuError> {
        let slack = by.slack;
        let (Shape { inputs: d, outputs: n, tokens }, s) = (self.shape, self.group.s);
        let (x, dy, xa) = (self.x.values(), self.dy.values(), self.xa_in.values());
        let (b, segments) = (self.b.values(), self.segments);
        let rows: Vec<Vec<f64>> =
            (0..tokens).into_par_iter().map(|t| dxa(&dy.row(t, n), b, segments)).collect();
        let [mut of_x, mut of_a, mut of_b] = [0; 3].map(|_| Look::default());
        for t in sample(tokens, 4) {
            let mut want = self.dx.values().row(t, d);
            let from_a = self.a.values().combine(&rows[t], d);
            want.iter_mut().zip(from_a).for_each(|(sum, x)| *sum += x);
            of_x.add(t * d, self.dx.now(self.on, t * d, d)?, want);
        }
        for i in sample(s, 2) {
            let column: Vec<f64> = rows.iter().map(|row| row[i]).collect();
            of_a.add(i * d, self.da.now(self.on, i * d, d)?, x.combine(&column, d));
        }
        for p in placed(self.segments) {
            let Segment { offset, width, r } = p.segment;
            for (j, i) in sample(width, 2).into_iter().zip([0, r - 1, r / 2, 0]) {
                // Eager has a matrix for each adapter, the fused variant one for all.
                let at = |t: usize| if by == EAGER { p.s * tokens + t * r + i } else { t * s + p.s + i };
                let term = |t: usize| dy.at(t * n + offset + j) * xa.at(at(t));
                let want = f64::from(SCALE) * (0..tokens).map(term).sum::<f64>();
                let at = p.b + j * r + i;
                of_b.add(at, self.db.now(self.on, at, 1)?, vec![want]);
            }
        }
        Ok(vec![
            of_x.against_largest("dx", slack * TOLERANCE),
            of_a.against_largest("da", slack * TOLERANCE),
            of_b.against_largest("db", slack * TOLERANCE),
        ])
    }
}

/// Calls `f` with both passes of every case, one case's operands at a time.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(on: &B, cases: &[Case], f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    for case in cases {
        let o = Operands::new(on, case)?;
        let room = Room::new(on, 0, cuda_eager::scratch_bytes(&o.group, o.segments)?);
        forward(&o, case, &room, f)?;
        backward(&o, case, &room, f)?;
    }
    Ok(())
}

fn forward<B: Testbed>(
    o: &Operands<B>,
    case: &Case,
    room: &Room<B::Memory>,
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    let on = o.on;
    let subject = Subject {
        on,
        work: workload("lora_forward", case),
        changes: vec![vec![("y", &o.y), ("xa", &o.xa_out)]],
        memory_bytes: 0,
        compare: Box::new(|by| o.compare_forward(by.slack)),
    };
    let (inputs, y) = (o.inputs(&o.xa_out), o.y.ptr(on));
    // SAFETY: the operands have the lengths that their docs say and outlive the measurement.
    let fused = |l: &dyn Launcher, p: &dyn Products| unsafe {
        cuda::forward(l, p, &o.group, &inputs, Some(y), &mut || Ok(()))
    };
    subject.counted(f, FUSED, product_bytes(fused)? + o.kernel_bytes(false), |_| {
        fused(on.launcher(), on.products()?)
    })?;
    let eager = |l: &dyn Launcher, p: &dyn Products, scratch| {
        let inputs = Inputs { scratch, ..inputs };
        // SAFETY: as above.
        unsafe { cuda_eager::forward(l, p, &o.group, o.segments, &inputs, y) }
    };
    let passes = traffic(&cuda_eager::forward_passes(&o.group, o.segments));
    subject.counted(f, EAGER, product_bytes(|l, p| eager(l, p, Ptr::NULL))? + passes, |_| {
        eager(on.launcher(), on.products()?, room.at(on)?.scratch)
    })
}

fn backward<B: Testbed>(
    o: &Operands<B>,
    case: &Case,
    room: &Room<B::Memory>,
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    let on = o.on;
    let subject = Subject {
        on,
        work: workload("lora_backward", case),
        changes: vec![vec![("dx", &o.dx), ("da", &o.da), ("db", &o.db), ("dxa", &o.dxa)]],
        memory_bytes: 0,
        compare: Box::new(|by| o.compare_backward(by)),
    };
    let [dy_TN, dxa_TS, da_SD, db, dx_TD] = [&o.dy, &o.dxa, &o.da, &o.db, &o.dx].map(|m| m.ptr(on));
    let gradients = Gradients { dy_TN, dxa_TS, da_SD, db, dx_TD: Some(dx_TD) };
    let inputs = o.inputs(&o.xa_in);
    // SAFETY: the operands have the lengths that their docs say and outlive the measurement.
    let fused = |l: &dyn Launcher, p: &dyn Products| unsafe {
        cuda::backward(l, p, &o.group, &inputs, &gradients, &mut || Ok(()))
    };
    subject.counted(f, FUSED, product_bytes(fused)? + o.kernel_bytes(true), |_| {
        fused(on.launcher(), on.products()?)
    })?;
    let eager = |l: &dyn Launcher, p: &dyn Products, scratch| {
        let inputs = Inputs { scratch, ..inputs };
        // SAFETY: as above.
        unsafe { cuda_eager::backward(l, p, &o.group, o.segments, &inputs, &gradients) }
    };
    let passes = traffic(&cuda_eager::backward_passes(&o.group, o.segments, true));
    subject.counted(f, EAGER, product_bytes(|l, p| eager(l, p, Ptr::NULL))? + passes, |_| {
        eager(on.launcher(), on.products()?, room.at(on)?.scratch)
    })
}
