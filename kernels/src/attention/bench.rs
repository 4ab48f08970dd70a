//! Attention on a GPU, for [`crate::gpu::bench`].

use super::{
    Shape, cu_seqlens,
    cuda::{self, Documents, Path},
    witness::Witness,
};
use crate::{
    cases::{Workload, values},
    gpu::{
        Elem, GpuError,
        bench::{HOPPER, MMA, Operand, Subject, Taker, Testbed, Variant, Wants},
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

/// Calls `f` with the benches of every case.
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
        let shape = case.shape;
        let cu = cu_seqlens(&case.lengths);
        let t = *cu.last().expect("a document") as usize;
        let list = Operand::raw(on, &le_bytes(&cuda::documents(&cu), u32::to_le_bytes))?;
        let documents = Documents { list: list.ptr(on), tokens: t };
        let qkv = Operand::normal(on, ELEM, 1, t * shape.packed(), 1.0)?;
        let dout = Operand::normal(on, ELEM, 2, t * shape.out(), 1.0)?;
        let (out, dqkv) =
            (Operand::output(on, ELEM, t * shape.out())?, Operand::output(on, ELEM, t * shape.packed())?);
        let lse = Operand::output(on, Elem::F32, t * shape.heads)?;
        let scratch = Operand::output(on, Elem::F32, cuda::scratch_floats(t, shape))?;
        let [q, dq, o, d, l, s] = [&qkv, &dqkv, &out, &dout, &lse, &scratch].map(|m| m.ptr(on));
        let witness = Witness { shape, cu_seqlens: &cu, qkv: qkv.values(), dout: dout.values() };
        // SAFETY: the operands have the lengths that their names say and outlive the measurement.
        let forward = |path| unsafe { cuda::forward(on.launcher(), path, q, &documents, o, l, shape) };
        let subject = |op, changes, compare| Subject {
            on,
            work: workload(op, case),
            changes: vec![changes],
            memory_bytes: 0,
            compare,
        };
        for (variant, path) in PATHS.into_iter().filter(|(_, path)| on.meets(path.needs())) {
            if wants("attention_forward") {
                let changes = vec![("out", &out), ("lse", &lse)];
                let compare = Box::new(|slack| witness.forward(on, &out, &lse, slack));
                subject("attention_forward", changes, compare).variant(f, variant, |_| forward(path))?;
            }
            if wants("attention_backward") {
                // It reads what the forward pass of the same path leaves.
                forward(path)?;
                // SAFETY: as above.
                let backward =
                    || unsafe { cuda::backward(on.launcher(), path, d, q, o, l, &documents, s, dq, shape) };
                let compare = Box::new(|slack| witness.backward(on, &dqkv, slack));
                subject("attention_backward", vec![("dqkv", &dqkv)], compare)
                    .variant(f, variant, |_| backward())?;
            }
        }
    }
    Ok(())
}
