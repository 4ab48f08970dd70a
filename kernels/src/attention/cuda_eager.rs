//! Attention as PyTorch eager runs Hugging Face's `eager_attention_forward`: batched products, and between them launches of
//! `eager.cu`, one for each operator and for each of its autograd backward pass. The equation is that of [`super::cuda`], with
//! these differences: the batch is [`Batch::rows`] rows of as many slots, whose scores are S × S whatever the documents; those
//! enter by a mask; `lse_HT` is neither written nor read; scores are rounded to the element type, which the mask's lowest
//! number must not overflow: a key that is not seen may hold any number whose products are finite.
//!
//! Autograd keeps the repeated keys and values, the probabilities in f32, and in the element type: [`Batch::saved_bytes`].
//!
//! The products, which move what they must, are left out of the tables: q·kᵀ before `attention_eager_mul` and p·v behind
//! `attention_eager_to`; backward `pᵀ·dout`, then `dout·vᵀ`, and at the end `ds·k` and `dsᵀ·q`. As `matmul` does, they read heads
//! where they lie if the batch has one row, and copies if it has several ("rows"); keys and values are copied ("repeat") if
//! either that or several query heads share them. Gradients go to the packed rows: at once where PyTorch makes no operator of it,
//! but for one copy of q's, of several rows. S is rounded up to a multiple of 8.
//!
//! # Mask
//!
//! Once a batch, whatever the layers.
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `attention_eager_mask` | causal, of documents | T u32 | TS elem | |
//!
//! # Forward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `attention_eager_gather` | q, contiguous | THK elem | THK elem | rows |
//! | `attention_eager_gather` | repeat_kv(k) | TGK elem | THK elem | repeat |
//! | `attention_eager_gather` | repeat_kv(v) | TGK elem | THK elem | repeat |
//! | `attention_eager_mul` | scores * scaling | HTS elem | HTS elem | |
//! | `attention_eager_add` | + mask | HTS elem + TS elem | HTS elem | |
//! | `attention_eager_float` | softmax's to(float32) | HTS elem | HTS f32 | bf16 |
//! | `attention_eager_softmax` | softmax | HTS f32 | HTS f32 | |
//! | `attention_eager_to` | to(bf16) | HTS f32 | HTS elem | bf16 |
//! | `attention_eager_scatter` | transpose(1, 2).contiguous() | THK elem | THK elem | |
//!
//! # Backward
//!
//! | kernel | operator | reads | writes | when |
//! |---|---|---|---|---|
//! | `attention_eager_gather` | dout, contiguous | THK elem | THK elem | rows |
//! | `attention_eager_scatter` | repeat_kv(v)'s sum | THK elem | TGK elem | repeat |
//! | `attention_eager_float` | to(bf16)'s | HTS elem | HTS f32 | bf16 |
//! | `attention_eager_dsoftmax` | softmax's | HTS f32 + HTS f32 | HTS f32 | |
//! | `attention_eager_to` | to(float32)'s | HTS f32 | HTS elem | bf16 |
//! | `attention_eager_mul` | * scaling's | HTS elem | HTS elem | |
//! | `attention_eager_scatter` | dq, packed | THK elem | THK elem | rows |
//! | `attention_eager_scatter` | repeat_kv(k)'s sum | THK elem | TGK elem | repeat |

mod call;

use call::Call;

use super::{Shape, cuda::Documents};
use crate::gpu::{
    Arg, Elem, GpuError, Grid, Launcher, Needs, Products, Ptr, Unit,
    eager::{Memory, Operators, Pass},
};

/// `eager.cu`.
pub static UNIT: Unit = Unit {
    name: "attention_eager",
    source: concat!(
        "#line 1 \"eager.cuh\"\n",
        include_str!("../gpu/eager.cuh"),
        "#line 1 \"floats.cuh\"\n",
        include_str!("../gpu/floats.cuh"),
        "#line 1 \"attention/eager.cu\"\n",
        include_str!("eager.cu")
    ),
    entries: &[
        "attention_eager_float",
        "attention_eager_to",
        "attention_eager_mul",
        "attention_eager_add",
        "attention_eager_mask",
        "attention_eager_gather",
        "attention_eager_scatter",
        "attention_eager_softmax",
        "attention_eager_dsoftmax",
    ],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// Whose kernels are launched.
static UNITS: &[&Unit] = &[&UNIT];

/// Extents of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Element type of the operands, the scores and the mask.
    pub elem: Elem,
    /// Extents of a packed row.
    pub shape: Shape,
    /// Rows of the batch; no document crosses one.
    pub rows: usize,
    /// Slots of a row, S.
    pub row_slots: usize,
}

impl Batch {
    /// # Panics
    /// If the head dimension is not a multiple of 8, or heads do not share keys and values evenly.
    pub fn new(elem: Elem, shape: Shape, rows: usize, row_slots: usize) -> Self {
        let Shape { heads, kv_heads, head_dim } = shape;
        assert!(head_dim > 0 && head_dim.is_multiple_of(8), "heads of {head_dim} are no multiple of 8");
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{shape:?}");
        let batch = Self { elem, shape, rows, row_slots };
        let most = batch.tokens().max(batch.scores() / batch.stride().max(1)).max(batch.heads() / 8);
        assert!(most < i32::MAX as usize, "{batch:?} is too large");
        batch
    }

    /// Tokens, T.
    pub fn tokens(&self) -> usize {
        self.rows * self.row_slots
    }

    /// Bytes of the mask: T × S.
    pub fn mask_bytes(&self) -> usize {
        self.tokens() * self.stride() * self.elem.bytes()
    }

    /// Bytes of [`Memory::saved`].
    pub fn saved_bytes(&self) -> usize {
        Call::counted(self).saved_bytes
    }

    /// Bytes of [`Memory::scratch`] for either pass.
    pub fn scratch_bytes(&self) -> usize {
        self.account(false).1.max(self.account(true).1)
    }

    /// The passes of [`mask`].
    pub fn mask_passes(&self) -> Vec<Pass> {
        let mut ops = Operators::new(None, UNITS, self.elem, Ptr::NULL);
        // SAFETY: nothing is launched.
        unsafe { make_mask(&mut ops, self, Ptr::NULL, Ptr::NULL).expect("counted only") };
        ops.account().0
    }

    /// The passes of [`forward`].
    pub fn forward_passes(&self) -> Vec<Pass> {
        self.account(false).0
    }

    /// The passes of [`backward`].
    pub fn backward_passes(&self) -> Vec<Pass> {
        self.account(true).0
    }

    fn account(&self, backward: bool) -> (Vec<Pass>, usize) {
        let (mut call, nowhere) = (Call::counted(self), Ptr::NULL);
        // SAFETY: nothing is launched.
        let done = unsafe {
            if backward {
                call.backward(nowhere, nowhere, nowhere)
            } else {
                call.forward(nowhere, nowhere, nowhere)
            }
        };
        done.expect("counted only");
        call.ops.account()
    }

    /// Elements from one row of scores to the next.
    fn stride(&self) -> usize {
        self.row_slots.next_multiple_of(8)
    }

    /// Elements of scores.
    fn scores(&self) -> usize {
        self.tokens() * self.shape.heads * self.stride()
    }

    /// Elements of all heads.
    fn heads(&self) -> usize {
        self.tokens() * self.shape.out()
    }

    /// Whether keys and values are copied.
    fn repeats(&self) -> bool {
        self.rows > 1 || self.shape.group() > 1
    }
}

/// Bytes that suffice for every batch of so many tokens, or fewer, in rows of so many slots, or fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Of the mask.
    pub mask: usize,
    /// Of [`Memory::saved`].
    pub saved: usize,
    /// Of [`Memory::scratch`].
    pub scratch: usize,
}

/// Either a row as long as can be, whose scores are the most, or several, which are copied besides.
///
/// # Panics
/// As [`Batch::new`].
pub fn most(elem: Elem, shape: Shape, tokens: usize, row_slots: usize) -> Most {
    let slots = row_slots.min(tokens / 2).max(1);
    let one = Batch::new(elem, shape, 1, row_slots.min(tokens));
    let several = Batch::new(elem, shape, tokens.div_ceil(slots).max(2), slots);
    let of = |bytes: fn(&Batch) -> usize| bytes(&one).max(bytes(&several));
    Most { mask: of(Batch::mask_bytes), saved: of(Batch::saved_bytes), scratch: of(Batch::scratch_bytes) }
}

/// `mask_TS`, [`Batch::mask_bytes`]: 0 where a query sees a key, the lowest number of the element type elsewhere.
///
/// # Safety
/// As [`Launcher::launch`]: the mask has its length, 16-byte aligned, and the documents are those of the batch, none of which
/// crosses a row.
///
/// # Errors
/// As [`Launcher::launch`].
///
/// # Panics
/// If the documents have another number of tokens.
pub unsafe fn mask(
    on: &dyn Launcher,
    batch: &Batch,
    documents: &Documents,
    mask_TS: Ptr,
) -> Result<(), GpuError> {
    assert_eq!(documents.tokens, batch.tokens(), "tokens of the documents");
    let mut ops = Operators::new(Some(on), UNITS, batch.elem, Ptr::NULL);
    // SAFETY: the caller's promise is the same.
    unsafe { make_mask(&mut ops, batch, documents.begin(), mask_TS) }
}

/// # Safety
/// As [`mask`].
unsafe fn make_mask(ops: &mut Operators, batch: &Batch, begin_T: Ptr, mask_TS: Ptr) -> Result<(), GpuError> {
    let (t, stride) = (batch.tokens(), batch.stride());
    if t == 0 {
        return Ok(());
    }
    let [s, ld] = [batch.row_slots, stride].map(|n| Arg::I32(n as i32));
    let args = [Arg::Ptr(begin_T), Arg::Ptr(mask_TS), s, ld];
    let threads = (stride / 8).next_multiple_of(32).min(256) as u32;
    let grid = Grid { blocks: (t as u32, 1), threads, shared: 0 };
    // SAFETY: the caller's promise is the same.
    unsafe { ops.launch("attention_eager_mask", grid, &args, 4 * t as u64, batch.mask_bytes() as u64) }
}

/// `out_T` of `qkv_TQ` and the [`mask`]; what [`backward`] reads goes to `memory.saved`.
///
/// # Safety
/// As [`super::cuda::forward`]; `memory` has [`Batch::saved_bytes`] and [`Batch::scratch_bytes`].
///
/// # Errors
/// As [`Launcher::launch`] and [`Products::product`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn forward(
    on: &dyn Launcher,
    products: &dyn Products,
    batch: &Batch,
    qkv_TQ: Ptr,
    mask_TS: Ptr,
    out_T: Ptr,
    memory: Memory,
) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { Call::new(Some((on, products)), batch, memory).forward(qkv_TQ, mask_TS, out_T) }
}

/// `dqkv_TQ`, overwritten, from `dout_T` and what [`forward`] left in `memory.saved`.
///
/// # Safety
/// As [`forward`].
///
/// # Errors
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub unsafe fn backward(
    on: &dyn Launcher,
    products: &dyn Products,
    batch: &Batch,
    dout_T: Ptr,
    qkv_TQ: Ptr,
    dqkv_TQ: Ptr,
    memory: Memory,
) -> Result<(), GpuError> {
    // SAFETY: the caller's promise is the same.
    unsafe { Call::new(Some((on, products)), batch, memory).backward(dout_T, qkv_TQ, dqkv_TQ) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::eager::documented;

    #[test]
    fn passes_are_those_of_the_tables() {
        for (rows, kv_heads, elem) in
            [(1, 2), (1, 4), (3, 2), (3, 4)].into_iter().flat_map(|(r, g)| Elem::ALL.map(|e| (r, g, e)))
        {
            let shape = Shape { heads: 4, kv_heads, head_dim: 16 };
            let batch = Batch::new(elem, shape, rows, 13);
            let extent = |name: &str| match name {
                "T" => 13 * rows,
                "TS" => 13 * rows * 16,
                "HTS" => 4 * 13 * rows * 16,
                "THK" => 13 * rows * 4 * 16,
                "TGK" => 13 * rows * kv_heads * 16,
                _ => panic!("no extent '{name}'"),
            };
            let when = |condition: &str| match condition {
                "bf16" => elem == Elem::Bf16,
                "rows" => rows > 1,
                "repeat" => rows > 1 || kv_heads < 4,
                _ => panic!("no condition '{condition}'"),
            };
            let table = |heading| documented(include_str!("cuda_eager.rs"), heading, elem, extent, when);
            assert_eq!(batch.mask_passes(), table("Mask"), "{batch:?}");
            assert_eq!(batch.forward_passes(), table("Forward"), "{batch:?}");
            assert_eq!(batch.backward_passes(), table("Backward"), "{batch:?}");
        }
    }

    #[test]
    fn no_batch_needs_more_than_the_most() {
        for (elem, kv_heads) in Elem::ALL.into_iter().flat_map(|e| [1, 2].map(|g| (e, g))) {
            let shape = Shape { heads: 2, kv_heads, head_dim: 24 };
            for (tokens, row_slots) in (1..40).flat_map(|t| (1..=t).map(move |s| (t, s))) {
                let most = most(elem, shape, tokens, row_slots);
                for slots in 1..=row_slots {
                    for rows in 1..=tokens / slots {
                        let b = Batch::new(elem, shape, rows, slots);
                        let needs = [b.mask_bytes(), b.saved_bytes(), b.scratch_bytes()];
                        let has = [most.mask, most.saved, most.scratch];
                        assert!(needs.iter().zip(has).all(|(n, h)| *n <= h), "{b:?}: {needs:?}, {most:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_saved_is_probabilities_and_copies() {
        let shape = Shape { heads: 4, kv_heads: 2, head_dim: 64 };
        let saved = |elem, rows| Batch::new(elem, shape, rows, 512).saved_bytes();
        let (scores, heads) = (4 * 512 * 512, 4 * 512 * 64);
        assert_eq!(saved(Elem::Bf16, 1), scores * (4 + 2) + 2 * heads * 2);
        assert_eq!(saved(Elem::F32, 1), scores * 4 + 2 * heads * 4);
        assert_eq!(saved(Elem::Bf16, 3), 3 * (scores * (4 + 2) + 3 * heads * 2));
    }
}
