//! Gather and scatter on a GPU, for [`crate::gpu::bench`].

use super::cuda::{self, Shape};
use crate::{
    cases::values,
    gpu::{
        Elem, Gpu, GpuError,
        bench::{Bench, Taker, matrix},
        le_bytes,
    },
};

/// Operations that [`each`] times.
pub const OPS: &[&str] = &["embedding_forward", "embedding_backward"];

/// Tokens of the benches, of Qwen2.5-0.5B's vocabulary and width.
const TOKENS: [usize; 2] = [16_384, 65_536];

/// Ids that fall off as words do: a few are a large part of all.
fn ids(shape: Shape) -> Vec<u32> {
    let top = (shape.vocabulary as f32).ln();
    values(1, shape.tokens)
        .into_iter()
        .map(|v| ((v.abs() * top).exp() as u32).min(shape.vocabulary as u32) - 1)
        .collect()
}

/// Calls `f` with the benches of every shape.
pub fn each(on: &Gpu, f: &mut Taker) -> Result<(), GpuError> {
    for tokens in TOKENS {
        let shape = Shape { tokens, vocabulary: 151_936, hidden: 896 };
        let ids = ids(shape);
        let ids_in = on.upload(&le_bytes(&cuda::checked(&ids, shape.vocabulary), i32::to_le_bytes))?;
        let index = on.upload(&le_bytes(&cuda::index(&ids, shape.vocabulary), i32::to_le_bytes))?;
        let (table, x) = (matrix(on, shape.vocabulary, 896)?, matrix(on, tokens, 896)?);
        let dtable = on.repeat(&[0; 4], shape.vocabulary * 896 * 4)?;
        let scratch = on.alloc(4 * cuda::scratch_floats(shape))?;
        let mut distinct = ids.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let (rows, distinct) = (tokens as u64 * 896, distinct.len() as u64 * 896);
        let bench = |op, bytes, run| Bench { op, case: format!("{tokens}x896"), bytes, flops: 0, run };
        f(bench(
            "embedding_forward",
            // Rows that several tokens share are read once at best.
            2 * rows + 2 * distinct,
            // SAFETY: the operands have the lengths that their names say, the ids were checked, and all outlive the
            // measurement.
            Box::new(|| unsafe { cuda::forward(on, Elem::Bf16, ids_in.ptr(), table.ptr(), x.ptr(), shape) }),
        ))?;
        f(bench(
            "embedding_backward",
            2 * rows + 8 * distinct,
            // SAFETY: as above.
            Box::new(|| unsafe {
                let (index, x) = (index.ptr(), x.ptr());
                cuda::backward(on, Elem::Bf16, index, x, dtable.ptr(), scratch.ptr(), shape)
            }),
        ))?;
    }
    Ok(())
}
