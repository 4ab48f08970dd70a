//! Attention on a GPU, for [`crate::gpu::bench`].

use super::{
    Shape, cu_seqlens,
    cuda::{self, Documents, Path},
    cuda_eager,
    witness::Witness,
};
use crate::{
    cases::{Workload, values},
    gpu::{
        Elem, GpuError, Launcher, Products, Ptr,
        bench::{EAGER, HOPPER, MMA, Operand, Room, Subject, Taker, Testbed, Variant, Wants, product_bytes},
        eager::{Memory, traffic},
        le_bytes,
    },
};

const ELEM: Elem = Elem::Bf16;

/// Ways through the kernels that are timed.
const PATHS: [(Variant, Path); 2] = [(MMA, Path::Mma), (HOPPER, Path::Hopper)];

/// Heads and documents of a bench.
#[derive(Clone, Debug)]
pub struct GpuCase {
    /// Documents in words.
    pub name: &'static str,
    /// Heads.
    pub shape: Shape,
    /// Lengths of the documents.
    pub lengths: Vec<u32>,
}

/// Documents of lengths as instruction data has them, most of them short, until there are 16,384 tokens.
fn instructions() -> Vec<u32> {
    let mut lengths = Vec::new();
    let mut left = 16_384;
    for v in values(7, 1000) {
        let len = (20.0 * (30f32.ln() * v.abs()).exp()) as u32;
        let len = len.min(left);
        if len > 0 {
            lengths.push(len);
        }
        left -= len;
    }
    lengths
}

/// The cases of the benches.
pub fn cases() -> Vec<GpuCase> {
    let heads = |heads, kv_heads, head_dim| Shape { heads, kv_heads, head_dim };
    let case = |name, shape, lengths| GpuCase { name, shape, lengths };
    vec![
        case("8x2048", heads(14, 2, 64), vec![2048; 8]),
        case("instructions", heads(14, 2, 64), instructions()),
        case("2x4096", heads(32, 8, 128), vec![4096; 2]),
    ]
}

/// Fewest bytes, and floating-point operations of the scores that the mask leaves: half of each square. The backward pass is
/// counted as 2.5 times the forward's.
fn workload(op: &'static str, case: &GpuCase) -> Workload {
    let GpuCase { name, shape, ref lengths } = *case;
    let tokens: usize = lengths.iter().map(|n| *n as usize).sum();
    let pairs: u64 = lengths.iter().map(|n| u64::from(*n) * u64::from(*n) / 2).sum();
    let forward = 4 * pairs * shape.out() as u64;
    let (rows, flops) = match op {
        "attention_forward" => (shape.packed() + shape.out(), forward),
        _ => (2 * shape.packed() + 2 * shape.out(), forward / 2 * 5),
    };
    let Shape { heads, kv_heads, head_dim } = shape;
    Workload {
        op,
        case: format!("{heads}/{kv_heads}x{head_dim} {name}"),
        dims: vec![("tokens", tokens), ("heads", heads), ("kv_heads", kv_heads), ("head_dim", head_dim)],
        documents: lengths.clone(),
        bytes: (2 * tokens * rows + 4 * tokens * heads) as u64,
        flops,
    }
}

/// Every operation of every case.
pub fn workloads() -> Vec<Workload> {
    cases()
        .iter()
        .flat_map(|c| ["attention_forward", "attention_backward"].map(|op| workload(op, c)))
        .collect()
}

/// Calls `f` with the benches of every case: each path that the machine has, and eager where documents are of one length.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(
    on: &B,
    cases: &[GpuCase],
    wants: &Wants,
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    for case in cases {
        let cu = cu_seqlens(&case.lengths);
        let operands = Operands::new(on, case, &cu)?;
        for (variant, path) in PATHS.into_iter().filter(|(_, path)| on.meets(path.needs())) {
            operands.fused(variant, path, wants, f)?;
        }
        if let Some(batch) = dense(case) {
            operands.unfused(&batch, wants, f)?;
        }
    }
    Ok(())
}

/// The rows of a batch in which every document is one. Documents of several lengths are no dense batch: padded to the longest,
/// they would have other tokens; as one row, scores of T × T.
fn dense(case: &GpuCase) -> Option<cuda_eager::Batch> {
    let first = *case.lengths.first()?;
    let even = case.lengths.iter().all(|n| *n == first);
    even.then(|| cuda_eager::Batch::new(ELEM, case.shape, case.lengths.len(), first as usize))
}

/// Operands of a case.
struct Operands<'a, B: Testbed> {
    on: &'a B,
    case: &'a GpuCase,
    cu_seqlens: &'a [u32],
    tokens: usize,
    list: Operand<B::Memory>,
    qkv: Operand<B::Memory>,
    dout: Operand<B::Memory>,
    out: Operand<B::Memory>,
    lse: Operand<B::Memory>,
    dqkv: Operand<B::Memory>,
    scratch: Operand<B::Memory>,
}

impl<'a, B: Testbed> Operands<'a, B> {
    fn new(on: &'a B, case: &'a GpuCase, cu_seqlens: &'a [u32]) -> Result<Self, GpuError> {
        let (shape, t) = (case.shape, *cu_seqlens.last().expect("a document") as usize);
        Ok(Self {
            on,
            case,
            cu_seqlens,
            tokens: t,
            list: Operand::raw(on, &le_bytes(&cuda::documents(cu_seqlens), u32::to_le_bytes))?,
            qkv: Operand::normal(on, ELEM, 1, t * shape.packed(), 1.0)?,
            dout: Operand::normal(on, ELEM, 2, t * shape.out(), 1.0)?,
            out: Operand::output(on, ELEM, t * shape.out())?,
            lse: Operand::output(on, Elem::F32, t * shape.heads)?,
            dqkv: Operand::output(on, ELEM, t * shape.packed())?,
            scratch: Operand::output(
                on,
                Elem::F32,
                cuda::scratch_floats(on.launcher().processors(), t, shape),
            )?,
        })
    }

    fn documents(&self) -> Documents {
        Documents { list: self.list.ptr(self.on), tokens: self.tokens }
    }

    fn witness(&self) -> Witness<'_> {
        let (qkv, dout) = (self.qkv.values(), self.dout.values());
        Witness { shape: self.case.shape, cu_seqlens: self.cu_seqlens, qkv, dout }
    }

    /// With lse, which eager has none of.
    fn forward_subject(&self, with_lse: bool) -> Subject<'_, B> {
        let lse = with_lse.then_some(&self.lse);
        let mut changes = vec![("out", &self.out)];
        changes.extend(lse.map(|lse| ("lse", lse)));
        Subject {
            on: self.on,
            work: workload("attention_forward", self.case),
            changes: vec![changes],
            memory_bytes: 0,
            compare: Box::new(move |by| self.witness().forward(self.on, &self.out, lse, by.slack)),
        }
    }

    fn backward_subject(&self) -> Subject<'_, B> {
        Subject {
            on: self.on,
            work: workload("attention_backward", self.case),
            changes: vec![vec![("dqkv", &self.dqkv)]],
            memory_bytes: 0,
            compare: Box::new(|by| self.witness().backward(self.on, &self.dqkv, by.slack)),
        }
    }

    fn fused(
        &self,
        variant: Variant,
        path: Path,
        wants: &Wants,
        f: &mut Taker<'_, B>,
    ) -> Result<(), GpuError> {
        let (on, shape, documents) = (self.on, self.case.shape, self.documents());
        let [q, dq, o, d, l, s] =
            [&self.qkv, &self.dqkv, &self.out, &self.dout, &self.lse, &self.scratch].map(|m| m.ptr(on));
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        let forward = || unsafe { cuda::forward(on.launcher(), path, q, &documents, o, l, shape) };
        if wants("attention_forward") {
            let subject = self.forward_subject(true);
            subject.counted(f, variant, subject.work.bytes, |_| forward())?;
        }
        if wants("attention_backward") {
            // It reads what the forward pass of the same path leaves.
            forward()?;
            let subject = self.backward_subject();
            // SAFETY: as above.
            subject.counted(f, variant, subject.work.bytes, |_| unsafe {
                cuda::backward(on.launcher(), path, d, q, o, l, &documents, s, dq, shape)
            })?;
        }
        Ok(())
    }

    /// The mask is made before: once a batch, whatever the layers.
    fn unfused(
        &self,
        batch: &cuda_eager::Batch,
        wants: &Wants,
        f: &mut Taker<'_, B>,
    ) -> Result<(), GpuError> {
        let (on, documents) = (self.on, self.documents());
        let room = Room::new(on, batch.saved_bytes(), batch.scratch_bytes());
        let mask = Operand::output(on, Elem::F32, batch.mask_bytes().div_ceil(4))?;
        let [q, dq, o, d, m] = [&self.qkv, &self.dqkv, &self.out, &self.dout, &mask].map(|x| x.ptr(on));
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        unsafe { cuda_eager::mask(on.launcher(), batch, &documents, m)? };
        // SAFETY: as above.
        let forward = |l: &dyn Launcher, p: &dyn Products, memory| unsafe {
            cuda_eager::forward(l, p, batch, q, m, o, memory)
        };
        let nowhere = Memory { saved: Ptr::NULL, scratch: Ptr::NULL };
        if wants("attention_forward") {
            let moved = product_bytes(|l, p| forward(l, p, nowhere))? + traffic(&batch.forward_passes());
            self.forward_subject(false)
                .counted(f, EAGER, moved, |_| forward(on.launcher(), on.products()?, room.at(on)?))?;
        }
        if wants("attention_backward") {
            // SAFETY: as above.
            let backward = |l: &dyn Launcher, p: &dyn Products, memory| unsafe {
                cuda_eager::backward(l, p, batch, d, q, dq, memory)
            };
            room.fill(on, |memory| forward(on.launcher(), on.products()?, memory))?;
            let moved = product_bytes(|l, p| backward(l, p, nowhere))? + traffic(&batch.backward_passes());
            self.backward_subject()
                .counted(f, EAGER, moved, |_| backward(on.launcher(), on.products()?, room.at(on)?))?;
        }
        Ok(())
    }
}
