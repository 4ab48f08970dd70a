//! The passes of one call, in order: run, or only counted.

use super::{Batch, Memory, UNITS};
use crate::gpu::{
    Arg, Elem, GpuError, Grid, Launcher, Product, Products, Ptr,
    eager::{Operators, View},
    product,
};

/// Threads of a row of scores at most, and packs that one of them keeps, as `HELD` in the kernels.
const ROW_THREADS: usize = 512;
const HELD: usize = 4;

/// Matrices of a batched product: one for each row of the batch and each head.
#[derive(Clone, Copy)]
struct Matrices {
    at: Ptr,
    /// Elements from one row of a matrix to the next, and from one matrix to the next.
    ld: usize,
    stride: usize,
}

impl Matrices {
    fn left(self, transposed: bool) -> product::Matrix {
        product::Matrix { ld: self.ld, transposed }
    }
}

/// What autograd keeps.
struct Saved {
    q: Ptr,
    k: Ptr,
    v: Ptr,
    p_f32: Ptr,
    p: Ptr,
}

/// Without a launcher and products, it is only counted.
pub(super) struct Call<'a> {
    pub(super) ops: Operators<'a>,
    products: Option<&'a dyn Products>,
    batch: Batch,
    saved: Saved,
    pub(super) saved_bytes: usize,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        on: Option<(&'a dyn Launcher, &'a dyn Products)>,
        batch: &Batch,
        memory: Memory,
    ) -> Self {
        let mut saved_bytes = 0;
        let mut keep = |bytes: usize, wanted: bool| {
            let at = memory.saved.offset(saved_bytes);
            saved_bytes += if wanted { bytes.next_multiple_of(256) } else { 0 };
            at
        };
        let (heads, scores, size) = (batch.heads(), batch.scores(), batch.elem.bytes());
        let q = keep(heads * size, batch.rows > 1);
        let [k, v] = [(); 2].map(|()| keep(heads * size, batch.repeats()));
        let p_f32 = keep(4 * scores, true);
        // In f32 they are the same.
        let p = if batch.elem == Elem::F32 { p_f32 } else { keep(scores * size, true) };
        let ops = Operators::new(on.map(|on| on.0), UNITS, batch.elem, memory.scratch);
        let saved = Saved { q, k, v, p_f32, p };
        Self { ops, products: on.map(|on| on.1), batch: *batch, saved, saved_bytes }
    }

    pub(super) fn counted(batch: &Batch) -> Self {
        Self::new(None, batch, Memory { saved: Ptr::NULL, scratch: Ptr::NULL })
    }

    /// Heads of slots at `at`, in rows of K.
    fn heads_first(&self, at: Ptr) -> Matrices {
        let k = self.batch.shape.head_dim;
        Matrices { at, ld: k, stride: self.batch.row_slots * k }
    }

    /// Scores, or what has their shape.
    fn scores(&self, at: Ptr) -> Matrices {
        let ld = self.batch.stride();
        Matrices { at, ld, stride: self.batch.row_slots * ld }
    }

    /// The heads from element `first` on in rows of tokens, `width` apart; only of a batch of one row.
    fn packed(&self, at: Ptr, first: usize, width: usize) -> Matrices {
        let at = at.offset(first * self.batch.elem.bytes());
        Matrices { at, ld: width, stride: self.batch.shape.head_dim }
    }

    /// Queries, keys and values as the products read them.
    fn operands(&self, qkv_TQ: Ptr) -> [Matrices; 3] {
        let Batch { shape, rows, .. } = self.batch;
        let pick = |copied: bool, copy: Ptr, first: usize| {
            if copied { self.heads_first(copy) } else { self.packed(qkv_TQ, first, shape.packed()) }
        };
        let Saved { q, k, v, .. } = self.saved;
        let repeats = self.batch.repeats();
        [pick(rows > 1, q, 0), pick(repeats, k, shape.key(0)), pick(repeats, v, shape.value(0))]
    }

    /// # Safety
    /// As [`super::forward`].
    pub(super) unsafe fn forward(&mut self, qkv_TQ: Ptr, mask_TS: Ptr, out_T: Ptr) -> Result<(), GpuError> {
        let Batch { shape, elem, rows, row_slots, .. } = self.batch;
        let (n, k, packed) = (self.batch.scores(), shape.head_dim, shape.packed());
        let first = self.ops.take(n.max(self.batch.heads()) * elem.bytes());
        let second = self.ops.take(4 * n);
        if n == 0 {
            return Ok(());
        }
        let repeats = self.batch.repeats();
        let row = row_slots * self.batch.stride();
        let mask = View::rows(mask_TS, elem, row, row).repeated(shape.heads);
        let [a, b] = [first, second].map(|at| View::dense(at, elem));
        let Saved { q, k: keys, v: values, p_f32, p } = self.saved;
        let at = |first: usize| qkv_TQ.offset(first * elem.bytes());
        // SAFETY: the caller's promise; temporaries have the lengths that they are used at.
        unsafe {
            if rows > 1 {
                self.gather(qkv_TQ, packed, 1, q)?;
            }
            if repeats {
                self.gather(at(shape.key(0)), packed, shape.group(), keys)?;
                self.gather(at(shape.value(0)), packed, shape.group(), values)?;
            }
            let [query, key, value] = self.operands(qkv_TQ);
            self.product((query, false), (key, true), self.scores(first), [row_slots, row_slots, k])?;
            self.ops.map_with("attention_eager_mul", b, &[a], n, &[Arg::F32(shape.scale())])?;
            self.ops.map("attention_eager_add", a, &[b, mask], n)?;
            let x = self.widened(first, second)?;
            self.row_pass("attention_eager_softmax", &[x, p_f32], 1)?;
            if elem == Elem::Bf16 {
                let (to, from) = (View::dense(p, elem), View::dense(p_f32, Elem::F32));
                self.ops.map("attention_eager_to", to, &[from], n)?;
            }
            let (p, out) = (self.scores(p), self.heads_first(first));
            self.product((p, false), (value, false), out, [row_slots, k, row_slots])?;
            self.scatter(first, out_T, shape.out(), 1)
        }
    }

    /// # Safety
    /// As [`super::backward`].
    pub(super) unsafe fn backward(&mut self, dout_T: Ptr, qkv_TQ: Ptr, dqkv_TQ: Ptr) -> Result<(), GpuError> {
        let Batch { shape, elem, rows, row_slots: s, .. } = self.batch;
        let (n, k) = (self.batch.scores(), shape.head_dim);
        let heads_bytes = self.batch.heads() * elem.bytes();
        let [copy, part] =
            [rows > 1, self.batch.repeats()].map(|w| self.ops.take(if w { heads_bytes } else { 0 }));
        let first = self.ops.take(n * elem.bytes());
        let second = self.ops.take(if elem == Elem::Bf16 { 4 * n } else { 0 });
        let third = self.ops.take(4 * n);
        if n == 0 {
            return Ok(());
        }
        let [query, key, value] = self.operands(qkv_TQ);
        let Saved { p_f32, p, .. } = self.saved;
        let p = self.scores(p);
        // SAFETY: the caller's promise; temporaries have the lengths that they are used at.
        unsafe {
            let mut dout = self.packed(dout_T, 0, shape.out());
            if rows > 1 {
                self.gather(dout_T, shape.out(), 1, copy)?;
                dout = self.heads_first(copy);
            }
            let repeats = self.batch.repeats();
            self.packed_gradient((p, true), dout, (part, repeats), dqkv_TQ, shape.value(0))?;
            self.product((dout, false), (value, true), self.scores(first), [s, s, k])?;
            let dp = self.widened(first, second)?;
            self.row_pass("attention_eager_dsoftmax", &[dp, p_f32, third], 2)?;
            // Of bf16, the gradient of the scores goes through the places of those that are read no more.
            let (dx, ds) = if elem == Elem::Bf16 { (first, second) } else { (third, first) };
            let [dx_view, ds_view] = [dx, ds].map(|at| View::dense(at, elem));
            if elem == Elem::Bf16 {
                self.ops.map("attention_eager_to", dx_view, &[View::dense(third, Elem::F32)], n)?;
            }
            self.ops.map_with("attention_eager_mul", ds_view, &[dx_view], n, &[Arg::F32(shape.scale())])?;
            let ds = self.scores(ds);
            self.packed_gradient((ds, false), key, (part, rows > 1), dqkv_TQ, 0)?;
            self.packed_gradient((ds, true), query, (part, repeats), dqkv_TQ, shape.key(0))
        }
    }

    /// `left·right`, S × K for each query head, into the packed gradient from element `first` on: at once, or through `part`,
    /// summed over the heads that share keys and values where `first` is behind the queries'.
    ///
    /// # Safety
    /// As [`super::backward`].
    unsafe fn packed_gradient(
        &mut self,
        left: (Matrices, bool),
        right: Matrices,
        (part, through): (Ptr, bool),
        dqkv_TQ: Ptr,
        first: usize,
    ) -> Result<(), GpuError> {
        let Batch { shape, row_slots: s, elem, .. } = self.batch;
        let extents = [s, shape.head_dim, s];
        // SAFETY: the caller's promise.
        unsafe {
            if !through {
                let to = self.packed(dqkv_TQ, first, shape.packed());
                return self.product(left, (right, false), to, extents);
            }
            self.product(left, (right, false), self.heads_first(part), extents)?;
            let group = if first == 0 { 1 } else { shape.group() };
            self.scatter(part, dqkv_TQ.offset(first * elem.bytes()), shape.packed(), group)
        }
    }

    /// The product of each head, transposed where it says so.
    ///
    /// # Safety
    /// As [`super::forward`].
    unsafe fn product(
        &self,
        (a, ta): (Matrices, bool),
        (b, tb): (Matrices, bool),
        c: Matrices,
        [m, n, k]: [usize; 3],
    ) -> Result<(), GpuError> {
        let Batch { elem, rows, shape, .. } = self.batch;
        let batch = product::Batch { count: rows * shape.heads, strides: [a.stride, b.stride, c.stride] };
        let product = Product {
            m,
            n,
            k,
            a: a.left(ta),
            b: b.left(tb),
            ldc: c.ld,
            out: elem,
            elem,
            bias: false,
            accumulate: false,
            batch,
            factor: product::Factor::ONE,
        };
        // SAFETY: the caller's promise.
        unsafe { product.run(self.products, a.at, b.at, c.at) }
    }

    /// Scores in f32: a copy at `to`, or themselves.
    ///
    /// # Safety
    /// As [`super::forward`].
    unsafe fn widened(&mut self, from: Ptr, to: Ptr) -> Result<Ptr, GpuError> {
        let Batch { elem, .. } = self.batch;
        if elem == Elem::F32 {
            return Ok(from);
        }
        let (to_view, from) = (View::dense(to, Elem::F32), View::dense(from, elem));
        // SAFETY: the caller's promise.
        unsafe { self.ops.map("attention_eager_float", to_view, &[from], self.batch.scores())? };
        Ok(to)
    }

    /// A block for each row of scores; `read` operands, then one that is written, all f32.
    ///
    /// # Safety
    /// As [`super::forward`].
    unsafe fn row_pass(&mut self, name: &'static str, operands: &[Ptr], read: usize) -> Result<(), GpuError> {
        let (n, stride) = (self.batch.scores(), self.batch.stride());
        let threads = (stride / 8).div_ceil(HELD).next_multiple_of(32).min(ROW_THREADS) as u32;
        let grid = Grid { blocks: ((n / stride) as u32, 1), threads, shared: 0 };
        let mut args: Vec<Arg> = operands.iter().copied().map(Arg::Ptr).collect();
        args.extend([self.batch.row_slots, stride].map(|n| Arg::I32(n as i32)));
        // SAFETY: the caller's promise.
        unsafe { self.ops.launch(name, grid, &args, (4 * read * n) as u64, 4 * n as u64) }
    }

    /// `to`, H heads of slots, from rows of tokens `width` apart whose heads are each taken `group` times.
    ///
    /// # Safety
    /// As [`super::forward`].
    unsafe fn gather(&mut self, from: Ptr, width: usize, group: usize, to: Ptr) -> Result<(), GpuError> {
        let bytes = (self.batch.heads() * self.batch.elem.bytes()) as u64;
        let operands = [Arg::Ptr(from), Arg::I64(width as i64), Arg::Ptr(to)];
        let heads = self.batch.shape.heads;
        // SAFETY: the caller's promise.
        unsafe {
            self.move_heads("attention_eager_gather", operands, (heads, group), [bytes / group as u64, bytes])
        }
    }

    /// Rows of tokens, `width` apart, from H heads of slots, of which each `group` are summed.
    ///
    /// # Safety
    /// As [`super::forward`].
    unsafe fn scatter(&mut self, from: Ptr, to: Ptr, width: usize, group: usize) -> Result<(), GpuError> {
        let bytes = (self.batch.heads() * self.batch.elem.bytes()) as u64;
        let operands = [Arg::Ptr(from), Arg::Ptr(to), Arg::I64(width as i64)];
        let heads = self.batch.shape.heads / group;
        // SAFETY: the caller's promise.
        unsafe {
            self.move_heads(
                "attention_eager_scatter",
                operands,
                (heads, group),
                [bytes, bytes / group as u64],
            )
        }
    }

    /// A thread for each pack of `heads` heads.
    ///
    /// # Safety
    /// As [`super::forward`].
    unsafe fn move_heads(
        &mut self,
        name: &'static str,
        operands: [Arg; 3],
        (heads, group): (usize, usize),
        [read, written]: [u64; 2],
    ) -> Result<(), GpuError> {
        const THREADS: usize = 256;
        let Batch { row_slots, shape, .. } = self.batch;
        let packs = self.batch.tokens() * heads * shape.head_dim / 8;
        let grid = Grid { blocks: (packs.div_ceil(THREADS) as u32, 1), threads: THREADS as u32, shared: 0 };
        let extents = [packs, heads, group, row_slots, shape.head_dim].map(|n| Arg::U32(n as u32));
        let args = [&operands[..], &extents].concat();
        // SAFETY: the caller's promise.
        unsafe { self.ops.launch(name, grid, &args, read, written) }
    }
}
