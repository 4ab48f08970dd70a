//! Register tiles: the inner loops of the products inside attention.
//!
//! A right operand is packed into panels of [`PANEL`] columns, rows of a panel contiguous, missing columns zero. The
//! loops are written so that the compiler keeps a [`Tile`] in registers under whatever instruction set the caller was
//! dispatched to: with AVX2, twelve registers of sums, two of the panel and one of the left operand.

/// Columns of a panel.
pub(super) const PANEL: usize = 16;

/// Rows of a register tile.
pub(super) const STRIP: usize = 6;

/// One row of a panel.
pub(super) type Lane = [f32; PANEL];

/// A register tile.
pub(super) type Tile = [Lane; STRIP];

/// `tile[r] = Σ_p a[r][p] · panel[p]`; every `a[r]` has a value for every row of the panel.
#[inline(always)]
pub(super) fn rows_by_panel(a: [&[f32]; STRIP], panel: &[Lane]) -> Tile {
    let n = panel.len();
    let [a0, a1, a2, a3, a4, a5] = [&a[0][..n], &a[1][..n], &a[2][..n], &a[3][..n], &a[4][..n], &a[5][..n]];
    let mut tile = [[0.0; PANEL]; STRIP];
    for (p, b) in panel.iter().enumerate() {
        multiply_add(&mut tile, [a0[p], a1[p], a2[p], a3[p], a4[p], a5[p]], b);
    }
    tile
}

/// `tile[r] = Σ_p a[p·stride + r] · panel[p]`: the left operand is read transposed.
#[inline(always)]
pub(super) fn columns_by_panel(a: &[f32], stride: usize, panel: &[Lane]) -> Tile {
    let mut tile = [[0.0; PANEL]; STRIP];
    for (a, b) in a.chunks(stride).zip(panel) {
        let (a, _) = a.split_first_chunk::<STRIP>().expect("a strip of columns");
        multiply_add(&mut tile, *a, b);
    }
    tile
}

#[inline(always)]
fn multiply_add(tile: &mut Tile, a: [f32; STRIP], b: &Lane) {
    for r in 0..STRIP {
        for c in 0..PANEL {
            tile[r][c] = a[r].mul_add(b[c], tile[r][c]);
        }
    }
}

/// Packs rows (all of one length) as the panels of their matrix: `⌈len/16⌉` panels of `rows.len()` lanes each.
#[inline(always)]
pub(super) fn pack<'a>(
    panels: &mut Vec<Lane>,
    rows: impl ExactSizeIterator<Item = &'a [f32]>,
    columns: usize,
) {
    let n = rows.len();
    reset(panels, columns.div_ceil(PANEL) * n);
    for (i, row) in rows.enumerate() {
        let (lanes, rest) = row.as_chunks::<PANEL>();
        for (c, lane) in lanes.iter().enumerate() {
            panels[c * n + i] = *lane;
        }
        for (c, &x) in rest.iter().enumerate() {
            panels[lanes.len() * n + i][c] = x;
        }
    }
}

/// Packs rows (all of one length) as the panels of their transposed matrix: `⌈rows.len()/16⌉` panels of `columns` lanes.
#[inline(always)]
pub(super) fn pack_transposed<'a>(
    panels: &mut Vec<Lane>,
    rows: impl ExactSizeIterator<Item = &'a [f32]>,
    columns: usize,
) {
    reset(panels, rows.len().div_ceil(PANEL) * columns);
    for (i, row) in rows.enumerate() {
        let panel = &mut panels[i / PANEL * columns..][..columns];
        for (lane, &x) in panel.iter_mut().zip(row) {
            lane[i % PANEL] = x;
        }
    }
}

/// The first rows of a matrix with rows of `columns` elements.
#[inline(always)]
pub(super) fn strip(matrix: &[f32], columns: usize) -> [&[f32]; STRIP] {
    let mut rows = [&[][..]; STRIP];
    for (row, elements) in rows.iter_mut().zip(matrix.chunks_exact(columns)) {
        *row = elements;
    }
    rows
}

/// Combines the elements of a lane pairwise, which a vector unit does in four steps.
#[inline(always)]
pub(super) fn fold(mut lane: Lane, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = PANEL / 2;
    while n > 0 {
        for i in 0..n {
            lane[i] = combine(lane[i], lane[i + n]);
        }
        n /= 2;
    }
    lane[0]
}

/// Makes `buffer` hold `len` zeros.
#[inline(always)]
pub(super) fn reset<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) {
    buffer.clear();
    buffer.resize(len, T::default());
}
