//! LoRA on a GPU: products, and launches of `kernel.cu`. The same contract as the CPU's functions, in bf16 or f32, with the
//! gradients of A and B in f32.
//!
//! A group's adapters are batched: two products make the forward pass of q, k and v, or of gate and up, and four its backward pass;
//! merged weights never exist. The A are one matrix already. Adapters of one width and rank that fill the output, those of gate and up
//! or one alone, are a batch of products, which have the scale as a factor. Others have their B, scaled, in one matrix, `wide_NS`,
//! with a block for each adapter and zeros elsewhere: these cost arithmetic, not bytes, as S is small beside T, D and N.
//!
//! Rows of S elements end at whole packs: S is the sum of the ranks, rounded up to a multiple of 8, and what is beyond the ranks
//! is zero. `xa_TS` must be so before its first use; nothing writes there.
//!
//! ```text
//! xa_TS = x·Aᵀ     y += s·xa·Bᵀ     dxa_TS = s·dy·B     dB += s·dyᵀ·xa     dA += dxaᵀ·x     dx += dxa·A
//! ```
//!
//! * Overwritten: `xa_TS`, `dxa_TS`, the scratch. Added to: `y_TN`, `dx_TD` (of the element type), `da_SD`, `db` (f32).
//! * Deterministic, as cuBLASLt's products are.

use super::{Segment, Shape, b_len, placed, stacked_rank};
use crate::gpu::{
    Arg, Cost, Elem, Entry, GpuError, Grid, Launcher, Needs, Product, Products, Ptr, Unit,
    product::{Batch, Factor, Matrix},
};

/// `kernel.cu`.
pub static UNIT: Unit = Unit {
    name: "lora",
    source: include_str!("kernel.cu"),
    entries: &["lora_widen", "lora_collect"],
    elems: &Elem::ALL,
    needs: Needs::Ampere,
};

/// A group of adapters with one input.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Extents.
    pub shape: Shape,
    /// Element type.
    pub elem: Elem,
    /// S: the sum of the ranks, rounded up to a multiple of 8.
    pub s: usize,
    /// The sum of the ranks: rows of A.
    pub ranks: usize,
    /// Adapters.
    pub count: usize,
    /// Factor of the update, α/r.
    pub scale: f32,
    /// Columns and rank of every adapter, where these are equal and a batch.
    even: Option<Even>,
    /// Elements of all B.
    of_b: usize,
}

/// Adapters side by side, each of so many columns and so many ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Even {
    width: usize,
    r: usize,
}

impl Even {
    /// Whole packs alone: each adapter begins at one.
    fn of(segments: &[Segment], outputs: usize) -> Option<Self> {
        let Segment { width, r, .. } = *segments.first()?;
        let alike = |(i, s): (usize, &Segment)| s.width == width && s.r == r && s.offset == i * width;
        let whole = width.is_multiple_of(8) && r.is_multiple_of(8) && segments.len() * width == outputs;
        (whole && segments.iter().enumerate().all(alike)).then_some(Self { width, r })
    }
}

impl Group {
    /// # Panics
    /// If D or N is not a multiple of 8, there is no rank, or a segment ends beyond N.
    pub fn new(segments: &[Segment], shape: Shape, elem: Elem, scale: f32) -> Self {
        let ranks = stacked_rank(segments);
        let s = ranks.next_multiple_of(8);
        let extents = [shape.inputs, shape.outputs, s];
        assert!(extents.iter().all(|n| *n > 0 && n.is_multiple_of(8)), "{extents:?} are no multiples of 8");
        let inside = |s: &Segment| s.offset + s.width <= shape.outputs;
        assert!(segments.iter().all(inside), "a segment ends beyond {} columns", shape.outputs);
        assert!(b_len(segments) <= i32::MAX as usize, "{} elements of B", b_len(segments));
        let (even, of_b) = (Even::of(segments, shape.outputs), b_len(segments));
        Self { shape, elem, s, ranks, count: segments.len(), scale, even, of_b }
    }

    /// Bytes of scratch: none of a batch, else `wide_NS` and its gradient in f32.
    pub fn scratch_bytes(&self) -> usize {
        if self.even.is_some() { 0 } else { self.wide_bytes() + 4 * self.shape.outputs * self.s }
    }

    /// `y += s·xa·Bᵀ`, `dxa = s·dy·B` and `dB += s·dyᵀ·xa` as batches.
    fn batches(&self, Even { width, r }: Even) -> [Product; 3] {
        let Self { shape: Shape { tokens: t, outputs: n, .. }, elem, s, count, scale, .. } = *self;
        let (factor, of_b) = (Factor::new(scale), width * r);
        let matrix = |ld, transposed| Matrix { ld, transposed };
        let batch = |strides| Batch { count, strides };
        let up = Product {
            a: matrix(s, false),
            ldc: n,
            accumulate: true,
            batch: batch([r, of_b, width]),
            factor,
            ..Product::linear_forward(t, width, r, elem)
        };
        let dxa = Product {
            a: matrix(n, false),
            ldc: s,
            batch: batch([width, of_b, r]),
            factor,
            ..Product::linear_dgrad(t, width, r, elem)
        };
        let db = Product {
            a: matrix(n, true),
            b: matrix(s, false),
            batch: batch([width, r, of_b]),
            factor,
            ..Product::linear_wgrad(t, width, r, elem)
        };
        [up, dxa, db]
    }

    fn wide_bytes(&self) -> usize {
        (self.shape.outputs * self.s * self.elem.bytes()).next_multiple_of(256)
    }

    fn grid(&self) -> Grid {
        Grid { blocks: (self.shape.outputs as u32, 1), threads: 128, shared: 0 }
    }

    fn launch_args(&self, pointers: [Ptr; 3]) -> Vec<Arg> {
        let [count, s] = [self.count, self.s].map(|n| Arg::I32(n as i32));
        [pointers.map(Arg::Ptr).as_slice(), &[count, s, Arg::F32(self.scale)]].concat()
    }

    fn entry(&self, name: &'static str) -> Entry {
        UNIT.entry(name, self.elem)
    }
}

/// The segments as the kernels read them, five i32 each: offset, width, rank, first row of A, first element of B.
pub fn table(segments: &[Segment]) -> Vec<i32> {
    let row = |p: super::Placed| [p.segment.offset, p.segment.width, p.segment.r, p.s, p.b];
    placed(segments).flat_map(row).map(|n| n as i32).collect()
}

/// What both passes read.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// Input of the layer, T × D.
    pub x_TD: Ptr,
    /// The A stacked, one row a rank, × D.
    pub a_SD: Ptr,
    /// The B, one after another.
    pub b: Ptr,
    /// x·Aᵀ, T × S: written by [`forward`], read by [`backward`].
    pub xa_TS: Ptr,
    /// [`table`] of the segments.
    pub table: Ptr,
    /// [`Group::scratch_bytes`].
    pub scratch: Ptr,
}

/// `xa_TS = x·Aᵀ` and `y_TN += s·xa·Bᵀ`, the latter unless whoever reads y adds it. `own` launches the layer's own product, which
/// writes y: the narrow one runs beside it.
///
/// # Safety
/// As [`Launcher::launch`]: operands have the lengths that their docs say, 16-byte aligned, and outputs overlap nothing. `on`
/// and `products` are of one machine. `own` writes nothing that the operands name.
///
/// # Errors
/// As [`Launcher::launch`] and [`Products::product`].
pub unsafe fn forward(
    on: &dyn Launcher,
    products: &dyn Products,
    group: &Group,
    operands: &Operands,
    y_TN: Option<Ptr>,
    own: &mut dyn FnMut() -> Result<(), GpuError>,
) -> Result<(), GpuError> {
    let Group { shape: Shape { tokens, inputs, outputs }, elem, s, ranks, .. } = *group;
    let down = Product { ldc: s, ..Product::linear_forward(tokens, ranks, inputs, elem) };
    let up = Product { accumulate: true, ..Product::linear_forward(tokens, outputs, s, elem) };
    let Operands { x_TD, a_SD, xa_TS, scratch: wide_NS, .. } = *operands;
    // SAFETY: the caller's promise; the scratch begins with the wide matrix. What runs beside the layer's own product writes xa and the
    // scratch, and reads what that one does not write.
    unsafe {
        on.beside(0, &mut || {
            products.product(&down, x_TD, a_SD, Ptr::NULL, xa_TS)?;
            if y_TN.is_some() && group.even.is_none() { widen(on, group, operands) } else { Ok(()) }
        })?;
        own()?;
        on.join()?;
        let Some(y_TN) = y_TN else { return Ok(()) };
        match group.even {
            Some(even) => {
                let [up, ..] = group.batches(even);
                products.product(&up, xa_TS, operands.b, Ptr::NULL, y_TN)
            }
            None => products.product(&up, xa_TS, wide_NS, Ptr::NULL, y_TN),
        }
    }
}

/// Gradients.
#[derive(Clone, Copy, Debug)]
pub struct Gradients {
    /// Of the packed output, T × N.
    pub dy_TN: Ptr,
    /// Scratch, T × S; overwritten.
    pub dxa_TS: Ptr,
    /// f32; added to.
    pub da_SD: Ptr,
    /// f32; added to.
    pub db: Ptr,
    /// T × D; added to. None where nothing before the layer trains, or whoever reads it adds `dxa·A`.
    pub dx_TD: Option<Ptr>,
}

/// Gradients of [`forward`]. `own` launches the layer's own product, which writes the gradient of x: those of A and B are found
/// beside it.
///
/// # Safety
/// As [`forward`]; `xa_TS` is what it left.
///
/// # Errors
/// As [`forward`].
pub unsafe fn backward(
    on: &dyn Launcher,
    products: &dyn Products,
    group: &Group,
    operands: &Operands,
    gradients: &Gradients,
    own: &mut dyn FnMut() -> Result<(), GpuError>,
) -> Result<(), GpuError> {
    let Group { shape: Shape { tokens, inputs, outputs }, elem, s, ranks, .. } = *group;
    let Gradients { dy_TN, dxa_TS, da_SD, db, dx_TD } = *gradients;
    let Operands { x_TD, a_SD, xa_TS, scratch: wide_NS, .. } = *operands;
    let dwide_NS = wide_NS.offset(group.wide_bytes());
    let dxa = Product::linear_dgrad(tokens, outputs, s, elem);
    let dwide = Product { accumulate: false, ..Product::linear_wgrad(tokens, outputs, s, elem) };
    let dxa_TR = Matrix { ld: s, transposed: false };
    let dxa_RT = Matrix { ld: s, transposed: true };
    let da = Product { a: dxa_RT, ..Product::linear_wgrad(tokens, ranks, inputs, elem) };
    let dx = Product { a: dxa_TR, accumulate: true, ..Product::linear_dgrad(tokens, ranks, inputs, elem) };
    // SAFETY: the caller's promise; the gradient of the wide matrix lies behind it in the scratch. Of the lanes and the layer's own
    // product none reads what another writes.
    unsafe {
        on.beside(0, &mut || {
            match group.even {
                Some(even) => {
                    let [_, dxa, _] = group.batches(even);
                    products.product(&dxa, dy_TN, operands.b, Ptr::NULL, dxa_TS)?;
                }
                None => {
                    widen(on, group, operands)?;
                    products.product(&dxa, dy_TN, wide_NS, Ptr::NULL, dxa_TS)?;
                }
            }
            products.product(&da, dxa_TS, x_TD, Ptr::NULL, da_SD)
        })?;
        on.beside(1, &mut || {
            if let Some(even) = group.even {
                let [.., of_b] = group.batches(even);
                return products.product(&of_b, dy_TN, xa_TS, Ptr::NULL, db);
            }
            products.product(&dwide, dy_TN, xa_TS, Ptr::NULL, dwide_NS)?;
            let args = group.launch_args([dwide_NS, operands.table, db]);
            // The blocks of the adapters, and the gradient read and written.
            on.costs(Cost::bytes(4 * 3 * group.of_b as u64));
            on.launch(group.entry("lora_collect"), group.grid(), &args)
        })?;
        own()?;
        on.join()?;
        match dx_TD {
            Some(to) => products.product(&dx, dxa_TS, a_SD, Ptr::NULL, to),
            None => Ok(()),
        }
    }
}

/// # Safety
/// As [`forward`].
unsafe fn widen(on: &dyn Launcher, group: &Group, operands: &Operands) -> Result<(), GpuError> {
    let args = group.launch_args([operands.b, operands.table, operands.scratch]);
    on.costs(Cost::bytes((group.elem.bytes() * (group.of_b + group.shape.outputs * group.s)) as u64));
    // SAFETY: the caller's promise is the same.
    unsafe { on.launch(group.entry("lora_widen"), group.grid(), &args) }
}
