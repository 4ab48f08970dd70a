//! Attention on a GPU, for [`crate::gpu::bench`].

use super::{
    Shape, cu_seqlens,
    cuda::{self, Documents, Path},
};
use crate::{
    cases::values,
    gpu::{
        Buffer, Gpu, GpuError,
        bench::{Bench, Taker, matrix},
    },
};

/// Operations that [`each`] times.
pub const OPS: &[&str] = &["attention_forward", "attention_backward"];

const PATH: Path = Path::Mma;

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

/// A name, heads, and lengths of documents.
fn cases() -> [(&'static str, Shape, Vec<u32>); 3] {
    let heads = |heads, kv_heads, head_dim| Shape { heads, kv_heads, head_dim };
    [
        ("14/2x64 8x2048", heads(14, 2, 64), vec![2048; 8]),
        ("14/2x64 instructions", heads(14, 2, 64), instructions()),
        ("32/8x128 2x4096", heads(32, 8, 128), vec![4096; 2]),
    ]
}

/// Floating-point operations of the forward pass, of the scores that the mask leaves: half of each square. The backward pass
/// is counted as 2.5 times as many.
fn flops(shape: Shape, lengths: &[u32]) -> u64 {
    let pairs: u64 = lengths.iter().map(|n| u64::from(*n) * u64::from(*n) / 2).sum();
    4 * pairs * shape.out() as u64
}

/// Calls `f` with the benches of every case.
pub fn each(on: &Gpu, f: &mut Taker) -> Result<(), GpuError> {
    for (name, shape, lengths) in cases() {
        let cu = cu_seqlens(&lengths);
        let t = *cu.last().expect("a document") as usize;
        let list =
            on.upload(&cuda::documents(&cu).iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<u8>>())?;
        let documents = Documents { list: list.ptr(), tokens: t };
        let (qkv, dqkv) = (matrix(on, t, shape.packed())?, on.alloc(2 * t * shape.packed())?);
        let (out, dout) = (on.alloc(2 * t * shape.out())?, matrix(on, t, shape.out())?);
        let (lse, scratch) = (on.alloc(4 * t * shape.heads)?, on.alloc(4 * cuda::scratch_floats(t, shape))?);
        let [q, dq, o, d, l, s] = [&qkv, &dqkv, &out, &dout, &lse, &scratch].map(Buffer::ptr);
        let rows = |of: usize| 2 * (t * of) as u64;
        let statistics = 4 * (t * shape.heads) as u64;
        let bench = |op, bytes, flops, run| Bench { op, case: name.into(), bytes, flops, run };
        let flops = flops(shape, &lengths);
        f(bench(
            "attention_forward",
            rows(shape.packed() + shape.out()) + statistics,
            flops,
            // SAFETY: the operands have the lengths that their names say and outlive the measurement.
            Box::new(|| unsafe { cuda::forward(on, PATH, q, &documents, o, l, shape) }),
        ))?;
        f(bench(
            "attention_backward",
            rows(2 * shape.packed() + 2 * shape.out()) + statistics,
            flops / 2 * 5,
            // SAFETY: as above; the forward pass ran before.
            Box::new(|| unsafe { cuda::backward(on, PATH, d, q, o, l, &documents, s, dq, shape) }),
        ))?;
    }
    Ok(())
}
