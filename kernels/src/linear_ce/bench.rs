//! Linear cross-entropy on a GPU, for [`crate::gpu::bench`], beside its three products alone. The eager variant has no chunks: it
//! is a case of its own.

use super::{
    Options, Shape, cases,
    cuda::{self, Gradients, Operands as Inputs, Plan},
    cuda_eager,
    witness::Witness,
};
use crate::{
    cases::Workload,
    gpu::{
        Elem, GpuError, Launcher, Product, Products, Ptr,
        bench::{
            Compared, EAGER, FUSED, Look, Operand, Room, Subject, Taker, Testbed, Variant, Wants,
            product_bytes, sample,
        },
        eager::traffic,
        le_bytes,
    },
};

const ELEM: Elem = Elem::Bf16;

/// Rounding of logits, of their gradients and of the result to bf16.
const TOLERANCE: f64 = 1.2e-2;

/// Standard deviation of W, as models begin: logits of about 1.
const HEAD: f32 = 0.02;

/// x, W and their gradients, bf16 but for dW, which is f32.
struct Operands<M> {
    x: Operand<M>,
    w: Operand<M>,
    dx: Operand<M>,
    dw: Operand<M>,
}

/// Calls `f` with the benches that are wanted: forward and backward in chunks of several sizes, the pass between the
/// products, and the products on the whole batch.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(
    on: &B,
    shapes: &[Shape],
    wants: &Wants,
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    for &shape in shapes {
        let Shape { tokens: t, hidden: d, vocab: v } = shape;
        let operands = Operands {
            x: Operand::normal(on, ELEM, 1, t * d, 1.0)?,
            w: Operand::normal(on, ELEM, 2, v * d, HEAD)?,
            dx: Operand::output(on, ELEM, t * d)?,
            dw: Operand::of(on, Elem::F32, v * d, &[0.0])?,
        };
        if wants("linear_ce_products") {
            products(on, &operands, shape, f)?;
        }
        let labels: Vec<usize> = (0..t).map(|i| i * 7919 % v).collect();
        for chunk in cases::CHUNKS.map(|c| c.min(t)) {
            if wants("linear_ce_rows") {
                rows(on, chunk, shape, &labels, f)?;
            }
        }
        if wants("linear_ce") {
            let witness = Witness::new(&operands.x, &operands.w, &labels, shape);
            for chunk in cases::CHUNKS.map(|c| c.min(t)) {
                whole(on, &operands, (chunk, shape), &witness, f)?;
            }
            unfused(on, &operands, shape, &witness, f)?;
        }
    }
    Ok(())
}

/// Logits, and the gradients of x and W for logits as their gradient.
fn products<B: Testbed>(
    on: &B,
    o: &Operands<B::Memory>,
    shape: Shape,
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    let Shape { tokens: t, hidden: d, vocab: v } = shape;
    let logits = Operand::output(on, ELEM, t * v)?;
    let all = [
        (Product::linear_forward(t, v, d, ELEM), &o.x, &o.w, &logits),
        (Product::linear_dgrad(t, v, d, ELEM), &logits, &o.w, &o.dx),
        (Product::linear_wgrad(t, v, d, ELEM), &logits, &o.x, &o.dw),
    ];
    let compare = |by: Variant| -> Result<Vec<Compared>, GpuError> {
        let [mut z, mut dx, mut dw] = [0; 3].map(|_| Look::default());
        for row in sample(t, 2) {
            let x = o.x.values().row(row, d);
            z.add(
                row * v,
                logits.now(on, row * v, v)?,
                (0..v).map(|j| o.w.values().dot(j * d, &x)).collect(),
            );
            let left: Vec<f64> = logits.now(on, row * v, v)?.into_iter().map(f64::from).collect();
            dx.add(row * d, o.dx.now(on, row * d, d)?, o.w.values().combine(&left, d));
        }
        for j in sample(v, 2) {
            let w = o.w.values().row(j, d);
            let column: Vec<f64> = (0..t).map(|row| rounded(o.x.values().dot(row * d, &w))).collect();
            dw.add(j * d, o.dw.now(on, j * d, d)?, o.x.values().combine(&column, d));
        }
        Ok(vec![
            z.against_largest("logits", by.slack * 6e-3),
            dx.against_largest("dx", by.slack * TOLERANCE),
            dw.against_largest("dw", by.slack * TOLERANCE),
        ])
    };
    let subject = Subject {
        on,
        work: cases::products(shape),
        changes: vec![vec![("logits", &logits), ("dx", &o.dx), ("dw", &o.dw)]],
        memory_bytes: 0,
        compare: Box::new(compare),
    };
    subject.variant(f, FUSED, |_| {
        let products = on.products()?;
        for (product, a, b, c) in &all {
            // SAFETY: the operands have the extents of the products and outlive the measurement.
            unsafe { products.product(product, a.ptr(on), b.ptr(on), Ptr::NULL, c.ptr(on))? };
        }
        Ok(())
    })
}

fn rounded(x: f64) -> f64 {
    f64::from(half::bf16::from_f32(x as f32).to_f32())
}

/// The labels of so many rows, as the kernels take them.
fn index<B: Testbed>(on: &B, labels: &[usize], plan: &Plan) -> Result<Operand<B::Memory>, GpuError> {
    let labels: Vec<i32> = labels.iter().map(|y| *y as i32).collect();
    Operand::raw(on, &le_bytes(&cuda::index(&labels, plan), i32::to_le_bytes))
}

/// Losses and gradients of a chunk's logits, in place.
fn rows<B: Testbed>(
    on: &B,
    chunk: usize,
    shape: Shape,
    labels: &[usize],
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    const SCALE: f32 = 1.0;
    let v = shape.vocab;
    let stride = v.next_multiple_of(8);
    let logits = Operand::normal(on, ELEM, 3, chunk * stride, 1.0)?;
    let losses = Operand::output(on, Elem::F32, chunk)?;
    let plan = Plan::new(shape, ELEM, shape.tokens, Some(chunk));
    let index = index(on, labels, &plan)?;
    let scale = Operand::of(on, Elem::F32, 1, &[SCALE])?;
    let compare = |by: Variant| -> Result<Vec<Compared>, GpuError> {
        let [mut loss, mut gradient] = [0; 2].map(|_| Look::default());
        for r in sample(chunk, 4) {
            let z = logits.values().elements(r * stride, v);
            let (l, dz) = super::reference::row(&z, labels[r], f64::from(SCALE));
            loss.add(r, losses.now(on, r, 1)?, vec![l]);
            gradient.add(r * stride, logits.now(on, r * stride, v)?, dz);
        }
        Ok(vec![
            loss.against_largest("loss", by.slack * 1e-5),
            // Each by itself: they differ by orders of magnitude.
            gradient.against("dlogits", by.slack * 6e-3, |x| x.abs().max(1e-12)),
        ])
    };
    let subject = Subject {
        on,
        work: cases::rows(shape, chunk),
        changes: vec![vec![("dlogits", &logits), ("losses", &losses)]],
        memory_bytes: 0,
        compare: Box::new(compare),
    };
    subject.variant(f, FUSED, |_| {
        let [z, labels, scale, losses] = [&logits, &index, &scale, &losses].map(|m| m.ptr(on));
        let (extents, opts) = ((chunk, v), Options::default());
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        unsafe { cuda::rows(on.launcher(), ELEM, z, labels, Some(scale), losses, extents, opts) }
    })
}

/// A call's operands besides x, W and their gradients.
struct Call<'a, B: Testbed> {
    on: &'a B,
    o: &'a Operands<B::Memory>,
    index: Operand<B::Memory>,
    loss: Operand<B::Memory>,
    scale: Operand<B::Memory>,
}

impl<'a, B: Testbed> Call<'a, B> {
    fn new(on: &'a B, o: &'a Operands<B::Memory>, plan: &Plan, witness: &Witness) -> Result<Self, GpuError> {
        Ok(Self {
            on,
            o,
            index: index(on, witness.labels(), plan)?,
            loss: Operand::raw(on, &0f64.to_le_bytes())?,
            scale: Operand::of(on, Elem::F32, 1, &[witness.scale()])?,
        })
    }

    /// Offered as `work`; what is there besides x and W is the scratch and both gradients.
    fn subject(&'a self, work: Workload, scratch_bytes: usize, witness: &'a Witness) -> Subject<'a, B> {
        let (on, o, loss) = (self.on, self.o, &self.loss);
        Subject {
            on,
            work,
            changes: vec![vec![("dx", &o.dx), ("dw", &o.dw), ("loss", loss)]],
            memory_bytes: (scratch_bytes + o.dx.bytes() + o.dw.bytes()) as u64,
            compare: Box::new(|by| witness.compare(on, [&o.x, &o.w, &o.dx, &o.dw], loss, by.slack)),
        }
    }

    fn operands(&self, scratch: Ptr) -> (Inputs, Gradients) {
        let [x_TD, w_VD, index, loss, scale, dx_TD, dw] =
            [&self.o.x, &self.o.w, &self.index, &self.loss, &self.scale, &self.o.dx, &self.o.dw]
                .map(|m| m.ptr(self.on));
        (
            Inputs { x_TD, w_VD, index, loss, scratch },
            Gradients { scale, dx_TD, dw_VD: Some(dw), dw_is_new: false },
        )
    }
}

/// Loss and gradients, a chunk of rows at a time.
fn whole<B: Testbed>(
    on: &B,
    o: &Operands<B::Memory>,
    (chunk, shape): (usize, Shape),
    witness: &Witness,
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    let plan = Plan::new(shape, ELEM, shape.tokens, Some(chunk));
    let call = Call::new(on, o, &plan, witness)?;
    let scratch = Operand::output(on, Elem::F32, plan.scratch_bytes().div_ceil(4))?;
    let run = |l: &dyn Launcher, p: &dyn Products| {
        let (inputs, gradients) = call.operands(scratch.ptr(on));
        // SAFETY: the operands have the lengths that their docs say and outlive the measurement.
        unsafe { cuda::forward_backward(l, p, &inputs, &gradients, &plan, Options::default()) }
    };
    let moved = product_bytes(run)? + cases::rows(shape, shape.tokens).bytes;
    let subject = call.subject(cases::whole(shape, chunk), plan.scratch_bytes(), witness);
    subject.counted(f, FUSED, moved, |_| run(on.launcher(), on.products()?))
}

/// The same by PyTorch's operators, on the logits of all rows.
fn unfused<B: Testbed>(
    on: &B,
    o: &Operands<B::Memory>,
    shape: Shape,
    witness: &Witness,
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    let (plan, opts) = (Plan::new(shape, ELEM, shape.tokens, None), Options::default());
    let call = Call::new(on, o, &plan, witness)?;
    let scratch_bytes = cuda_eager::scratch_bytes(&plan, opts);
    let room = Room::new(on, 0, scratch_bytes);
    let run = |l: &dyn Launcher, p: &dyn Products, scratch| {
        let (inputs, gradients) = call.operands(scratch);
        // SAFETY: as above.
        unsafe { cuda_eager::forward_backward(l, p, &inputs, &gradients, &plan, opts) }
    };
    let passes = [cuda_eager::forward_passes(&plan, opts), cuda_eager::backward_passes(&plan, opts)].concat();
    let moved = product_bytes(|l, p| run(l, p, Ptr::NULL))? + traffic(&passes);
    let subject = call.subject(cases::unchunked(shape), scratch_bytes, witness);
    subject.counted(f, EAGER, moved, |_| run(on.launcher(), on.products()?, room.at(on)?.scratch))
}
