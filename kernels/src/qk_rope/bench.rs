//! QK-RoPE on a GPU, for [`crate::gpu::bench`].

use super::{
    Shape, Tables,
    cases::{self, POSITIONS},
    cuda::{self, Rotation},
    cuda_eager, reference,
};
use crate::gpu::{
    Elem, GpuError,
    bench::{Compared, EAGER, FUSED, Look, Operand, Room, Subject, Taker, Testbed, Variant, sample, sets},
    eager::traffic,
    le_bytes,
};

const ELEM: Elem = Elem::Bf16;

/// Rounding of the element type.
const TOLERANCE: f64 = 6e-3;

/// f32 sums over all tokens, of which each thread adds up a few hundred.
const SUM_TOLERANCE: f64 = 2e-5;

/// Operands of one shape: the packed rows, once for each set.
struct Operands<'a, B: Testbed> {
    on: &'a B,
    shape: Shape,
    frequencies: Vec<f64>,
    angles: [Operand<B::Memory>; 3],
    qkv: Vec<Operand<B::Memory>>,
    bias: Operand<B::Memory>,
    dbias: Operand<B::Memory>,
    scratch: Operand<B::Memory>,
}

impl<'a, B: Testbed> Operands<'a, B> {
    fn new(on: &'a B, shape: Shape) -> Result<Self, GpuError> {
        let frequencies = Tables::inverse_frequencies(1e6, shape.head_dim);
        let tables = Tables::new(&frequencies, POSITIONS);
        let positions: Vec<u32> = (0..shape.tokens).map(position).collect();
        let positions = le_bytes(&positions, u32::to_le_bytes);
        let table = |values: &[f32]| Operand::of(on, Elem::F32, values.len(), values);
        let sets = sets(on, cases::workload("qk_rope_forward", shape).bytes);
        let rows = |_| Operand::normal(on, ELEM, 1, shape.tokens * shape.packed(), 1.0);
        let scratch = cuda::scratch_floats(on.launcher().processors(), shape, true, false);
        Ok(Self {
            on,
            shape,
            angles: [table(tables.cos())?, table(tables.sin())?, Operand::raw(on, &positions)?],
            frequencies,
            qkv: (0..sets).map(rows).collect::<Result<_, _>>()?,
            bias: Operand::normal(on, ELEM, 2, shape.packed(), 1.0)?,
            dbias: Operand::of(on, Elem::F32, shape.packed(), &[0.0])?,
            scratch: Operand::output(on, Elem::F32, scratch)?,
        })
    }

    /// Room for the eager variant, which saves nothing without a norm.
    fn room(&self, with_bias: bool) -> Room<B::Memory> {
        let saved = cuda_eager::saved_bytes(ELEM, false, self.shape);
        Room::new(self.on, saved, cuda_eager::scratch_bytes(ELEM, with_bias, false, self.shape))
    }

    fn rotation(&self) -> Rotation {
        let [cos, sin, positions] = self.angles.each_ref().map(|m| m.ptr(self.on));
        Rotation { cos, sin, positions }
    }

    /// Row `t` turned by its angle, or back, after the bias.
    fn turned(&self, t: usize, back: bool, with_bias: bool) -> Vec<f64> {
        let sign = if back { -1.0 } else { 1.0 };
        let frequencies: Vec<f64> = self.frequencies.iter().map(|f| sign * f).collect();
        let bias = with_bias.then(|| self.bias.values().elements(0, self.shape.packed()));
        let row = self.qkv[0].values().row(t, self.shape.packed());
        let one = Shape { tokens: 1, ..self.shape };
        reference::forward(&row, bias.as_deref(), None, &frequencies, &[position(t)], one)
    }

    fn rows(&self, back: bool, with_bias: bool, slack: f64) -> Result<Compared, GpuError> {
        let (q, mut look) = (self.shape.packed(), Look::default());
        for t in sample(self.shape.tokens, 6) {
            look.add(t * q, self.qkv[0].now(self.on, t * q, q)?, self.turned(t, back, with_bias));
        }
        Ok(look.against_largest(if back { "dqkv" } else { "qkv" }, slack * TOLERANCE))
    }

    /// Sampled columns of the bias' gradient, over all tokens.
    fn columns(&self, by: Variant) -> Result<Compared, GpuError> {
        let (q, k) = (self.shape.packed(), self.shape.head_dim);
        let now = self.dbias.now(self.on, 0, q)?;
        let mut look = Look::default();
        for c in sample(q, 6) {
            let (head, i) = (c / k * k, c % k);
            let pair = [head + i % (k / 2), head + i % (k / 2) + k / 2];
            let f = self.frequencies[i % (k / 2)];
            let term = |t: usize| {
                let at = |c: usize| self.qkv[0].values().at(t * q + c);
                if c >= self.shape.rotated() {
                    return at(c);
                }
                let (sin, cos) = (f64::from(position(t)) * f).sin_cos();
                let [first, second] = pair.map(at);
                if i < k / 2 { first * cos + second * sin } else { second * cos - first * sin }
            };
            look.add(c, vec![now[c]], vec![(0..self.shape.tokens).map(term).sum()]);
        }
        Ok(look.against_largest("dbias", by.of_sum(SUM_TOLERANCE)))
    }
}

fn position(t: usize) -> u32 {
    (t % POSITIONS) as u32
}

/// Calls `f` with the benches of every shape, one shape's operands at a time: rotation alone, and with the bias.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(on: &B, shapes: &[Shape], f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    for &shape in shapes {
        let operands = Operands::new(on, shape)?;
        for with_bias in [false, true] {
            forward(&operands, with_bias, f)?;
            backward(&operands, with_bias, f)?;
        }
    }
    Ok(())
}

fn forward<B: Testbed>(o: &Operands<B>, with_bias: bool, f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    let subject = Subject {
        on: o.on,
        work: cases::workload(if with_bias { "qk_rope_bias_forward" } else { "qk_rope_forward" }, o.shape),
        changes: o.qkv.iter().map(|x| vec![("qkv", x)]).collect(),
        memory_bytes: 0,
        compare: Box::new(move |by| Ok(vec![o.rows(false, with_bias, by.slack)?])),
    };
    subject.counted(f, FUSED, subject.work.bytes, |set| {
        let (x, bias) = (o.qkv[set].ptr(o.on), with_bias.then(|| o.bias.ptr(o.on)));
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        unsafe { cuda::forward(o.on.launcher(), ELEM, x, bias, None, o.rotation(), o.shape) }
    })?;
    let (room, moved) =
        (o.room(with_bias), traffic(&cuda_eager::forward_passes(ELEM, with_bias, false, o.shape)));
    subject.counted(f, EAGER, moved, |set| {
        let (x, bias) = (o.qkv[set].ptr(o.on), with_bias.then(|| o.bias.ptr(o.on)));
        let memory = room.at(o.on)?;
        // SAFETY: as above.
        unsafe { cuda_eager::forward(o.on.launcher(), ELEM, x, bias, None, o.rotation(), memory, o.shape) }
    })
}

fn backward<B: Testbed>(o: &Operands<B>, with_bias: bool, f: &mut Taker<'_, B>) -> Result<(), GpuError> {
    let changes = |x| {
        let mut all = vec![("dqkv", x)];
        all.extend(with_bias.then_some(("dbias", &o.dbias)));
        all
    };
    let subject = Subject {
        on: o.on,
        work: cases::workload(if with_bias { "qk_rope_bias_backward" } else { "qk_rope_backward" }, o.shape),
        changes: o.qkv.iter().map(changes).collect(),
        memory_bytes: 0,
        compare: Box::new(move |by| {
            let mut all = vec![o.rows(true, false, by.slack)?];
            if with_bias {
                all.push(o.columns(by)?);
            }
            Ok(all)
        }),
    };
    subject.counted(f, FUSED, subject.work.bytes, |set| {
        let (x, dbias) = (o.qkv[set].ptr(o.on), with_bias.then(|| o.dbias.ptr(o.on)));
        let (rotation, scratch) = (o.rotation(), o.scratch.ptr(o.on));
        // SAFETY: as above.
        unsafe { cuda::backward(o.on.launcher(), ELEM, x, dbias, None, rotation, scratch, o.shape) }
    })?;
    let (room, moved) =
        (o.room(with_bias), traffic(&cuda_eager::backward_passes(ELEM, with_bias, false, false, o.shape)));
    subject.counted(f, EAGER, moved, |set| {
        let (x, dbias) = (o.qkv[set].ptr(o.on), with_bias.then(|| o.dbias.ptr(o.on)));
        let (rotation, memory) = (o.rotation(), room.at(o.on)?);
        // SAFETY: as above.
        unsafe { cuda_eager::backward(o.on.launcher(), ELEM, x, dbias, None, rotation, memory, o.shape) }
    })
}
