//! What the eager variants share: launches of `eager.cuh`, whose kernels are operators as PyTorch runs them, and the account of
//! what they move.
//!
//! An operation is written once, as a list of operators over `Operators`. With a launcher the list runs; without one it is
//! only counted: the bytes of a report, and of the scratch, are those of the launches.

use super::{Arg, Cost, Elem, GpuError, Grid, Launcher, Ptr, Unit};

/// Threads of a block, as `THREADS` in the kernels, and vectors of a thread, as `ITEMS`.
const THREADS: u32 = 256;
const ITEMS: u32 = 2;

/// Threads of a block that ends a sum over rows, at most: eight for each row of partial sums.
const FINISH_THREADS: u32 = 1024;

/// Blocks that share a sum over rows, about. Not the device's number: the order of a sum is then the same on all.
const SUM_BLOCKS: usize = 1024;

/// What an eager variant needs besides the operands of the fused one.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// What autograd keeps from the forward to the backward pass, besides what the fused variant saves.
    pub saved: Ptr,
    /// Temporaries; nothing in them is kept between calls.
    pub scratch: Ptr,
}

/// An operator's pass over memory. What all rows share, and what is one for a row, is counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The kernel, whose name is the operator's.
    pub kernel: &'static str,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

/// Bytes that passes read and write.
pub fn traffic(passes: &[Pass]) -> u64 {
    passes.iter().map(|p| p.read + p.written).sum()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Elements of its own.
    Own,
    /// One row for all.
    Shared,
    /// An f32 for each row.
    PerRow,
    /// Elements that so many rows share.
    Repeated(usize),
}

/// An operand: rows of elements, `heads` of which are `stride` apart in a row that is `outer` apart from the next. Counted in
/// elements; a row of 0 means that everything lies in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    at: Ptr,
    elem: Elem,
    kind: Kind,
    row: usize,
    heads: usize,
    stride: usize,
    outer: usize,
}

impl View {
    /// Elements in order.
    pub(crate) fn dense(at: Ptr, elem: Elem) -> Self {
        Self { at, elem, kind: Kind::Own, row: 0, heads: 1, stride: 0, outer: 0 }
    }

    /// Rows of `row` elements, `outer` apart.
    pub(crate) fn rows(at: Ptr, elem: Elem, row: usize, outer: usize) -> Self {
        Self { row, outer, ..Self::dense(at, elem) }
    }

    /// Parts of its rows: `row` elements, `heads` parts `stride` apart. `columns` are those of a row of its own, where it is
    /// in order.
    pub(crate) fn parts(self, row: usize, (heads, stride): (usize, usize), columns: usize) -> Self {
        let outer = if self.row == 0 { columns } else { self.outer };
        Self { row, heads, stride, outer, ..self }
    }

    /// A row of `row` elements that all rows share.
    pub(crate) fn shared(at: Ptr, elem: Elem, row: usize) -> Self {
        Self { kind: Kind::Shared, row, ..Self::dense(at, elem) }
    }

    /// An f32 for each row of `row` elements: `heads` in order, the next as many `outer` further.
    pub(crate) fn per_row(at: Ptr, row: usize, heads: usize, outer: usize) -> Self {
        Self { kind: Kind::PerRow, row, heads, stride: 1, outer, ..Self::dense(at, Elem::F32) }
    }

    /// The same [rows](Self::rows), each for so many rows of the result, and counted once for them.
    pub(crate) fn repeated(self, times: usize) -> Self {
        Self { kind: Kind::Repeated(times), heads: times, stride: 0, ..self }
    }

    /// The same from so many elements on.
    pub(crate) fn from(self, elements: usize) -> Self {
        Self { at: self.at.offset(elements * self.elem.bytes()), ..self }
    }

    fn args(self, width: usize) -> [Arg; 5] {
        assert!(self.row.is_multiple_of(width), "a row of {} is not whole vectors of {width}", self.row);
        let [row, heads] = [self.row / width, self.heads].map(|n| Arg::U32(n as u32));
        [Arg::Ptr(self.at), row, heads, Arg::I64(self.stride as i64), Arg::I64(self.outer as i64)]
    }

    /// Bytes of `n` elements.
    fn bytes(self, n: usize) -> u64 {
        let elements = match self.kind {
            Kind::Own => n,
            Kind::Shared => self.row,
            Kind::PerRow => n / self.row,
            Kind::Repeated(times) => n / times,
        };
        (elements * self.elem.bytes()) as u64
    }
}

/// Lanes, a power of two up to 32, that share a row of so many vectors.
fn lanes_of(vectors: usize) -> u32 {
    (vectors.next_power_of_two() as u32).min(32)
}

/// A sum over `rows` rows of `columns` elements: its grid, lanes of a row, and rows of partial sums.
fn column_grid(rows: usize, columns: usize, elem: Elem) -> (Grid, u32) {
    let vectors = columns * elem.bytes() / 16;
    let lanes = lanes_of(vectors);
    let (across, own) = ((vectors as u32).div_ceil(lanes), THREADS / lanes);
    let down = (rows as u32).div_ceil(own).clamp(1, (SUM_BLOCKS as u32).div_ceil(across));
    (Grid { blocks: (across, down), threads: THREADS, shared: 0 }, lanes)
}

/// A list of operators: run, or only counted.
pub(crate) struct Operators<'a> {
    on: Option<&'a dyn Launcher>,
    units: &'static [&'static Unit],
    elem: Elem,
    scratch: Ptr,
    taken: usize,
    most_taken: usize,
    passes: Vec<Pass>,
}

impl<'a> Operators<'a> {
    /// Of the kernels of these units. With a launcher, to run; `scratch` has room for all that is [taken](Self::take).
    pub(crate) fn new(
        on: Option<&'a dyn Launcher>,
        units: &'static [&'static Unit],
        elem: Elem,
        scratch: Ptr,
    ) -> Self {
        Self { on, units, elem, scratch, taken: 0, most_taken: 0, passes: Vec::new() }
    }

    /// The next so many bytes of the scratch.
    pub(crate) fn take(&mut self, bytes: usize) -> Ptr {
        let at = self.scratch.offset(self.taken);
        self.taken += bytes.next_multiple_of(256);
        self.most_taken = self.most_taken.max(self.taken);
        at
    }

    /// Corrects the bytes that the last pass read, where its views do not say them.
    pub(crate) fn recount_reads(&mut self, recount: impl FnOnce(u64) -> u64) {
        let read = &mut self.passes.last_mut().expect("a pass").read;
        *read = recount(*read);
        if let (Some(on), Some(pass)) = (self.on, self.passes.last()) {
            on.cost(Cost::bytes(pass.read + pass.written));
        }
    }

    /// Frees all of the scratch for what follows.
    pub(crate) fn free(&mut self) {
        self.taken = 0;
    }

    /// Room for so many elements, as a view of them in order.
    pub(crate) fn temporary(&mut self, elem: Elem, elements: usize) -> View {
        View::dense(self.take(elements * elem.bytes()), elem)
    }

    /// Passes so far, and bytes of scratch.
    pub(crate) fn account(self) -> (Vec<Pass>, usize) {
        (self.passes, self.most_taken)
    }

    /// `dst = f(sources)`, `n` elements, of an operator without a constant.
    ///
    /// # Safety
    /// As [`map_with`](Self::map_with).
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub(crate) unsafe fn map(
        &mut self,
        kernel: &'static str,
        dst: View,
        sources: &[View],
        n: usize,
    ) -> Result<(), GpuError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.map_with(kernel, dst, sources, n, &[Arg::F32(0.0)]) }
    }

    /// `dst = f(sources)`, `n` elements, where `more` is what the kernel takes behind their number.
    ///
    /// # Safety
    /// As [`Launcher::launch`]: views lie in memory, 16-byte aligned as their rows are, and `dst` is a source or apart from all.
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub(crate) unsafe fn map_with(
        &mut self,
        kernel: &'static str,
        dst: View,
        sources: &[View],
        n: usize,
        more: &[Arg],
    ) -> Result<(), GpuError> {
        let dense = [&[dst], sources].concat().into_iter().filter(|v| v.kind != Kind::PerRow);
        let width = 16 / dense.map(|v| v.elem.bytes()).max().unwrap_or(4);
        assert!(n.is_multiple_of(width), "{n} elements are not whole vectors of {width}");
        let vectors = n / width;
        // A little below u32's end, which the indices of the last block's idle threads may pass.
        assert!(vectors <= u32::MAX as usize - (ITEMS * THREADS) as usize, "{n} elements are too many");
        let views = [&[dst], sources].concat();
        let mut args: Vec<Arg> = views.iter().flat_map(|v| v.args(width)).collect();
        args.push(Arg::U32(vectors as u32));
        args.extend(more);
        let blocks = (vectors as u32).div_ceil(ITEMS * THREADS);
        let read = sources.iter().map(|v| v.bytes(n)).sum();
        // SAFETY: the caller's promise is the same.
        unsafe {
            self.launch(
                kernel,
                Grid { blocks: (blocks, 1), threads: THREADS, shared: 0 },
                &args,
                read,
                dst.bytes(n),
            )
        }
    }

    /// `dst = f(sources)` of an f32 for each of `rows` rows.
    ///
    /// # Safety
    /// As [`map_with`](Self::map_with).
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub(crate) unsafe fn per_row(
        &mut self,
        kernel: &'static str,
        dst: View,
        sources: &[View],
        rows: usize,
        constant: f32,
    ) -> Result<(), GpuError> {
        let views = [&[dst], sources].concat();
        // Rows themselves do not matter to the kernel: any length will do.
        let mut args: Vec<Arg> = views.iter().flat_map(|v| View { row: 1, ..*v }.args(1)).collect();
        args.extend([Arg::U32(rows as u32), Arg::F32(constant)]);
        let grid = Grid { blocks: ((rows as u32).div_ceil(THREADS), 1), threads: THREADS, shared: 0 };
        let (read, written) = ((4 * rows * sources.len()) as u64, 4 * rows as u64);
        // SAFETY: the caller's promise is the same.
        unsafe { self.launch(kernel, grid, &args, read, written) }
    }

    /// `out = factor · Σ` over each of `rows` rows of `columns` f32, one behind another.
    ///
    /// # Safety
    /// As [`map_with`](Self::map_with).
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub(crate) unsafe fn row_sum(
        &mut self,
        kernel: &'static str,
        out: View,
        x: View,
        (rows, columns): (usize, usize),
        factor: f32,
    ) -> Result<(), GpuError> {
        let lanes = lanes_of(columns / 4);
        let args = [
            Arg::Ptr(x.at),
            Arg::Ptr(out.at),
            Arg::U32(rows as u32),
            Arg::I32(columns as i32),
            Arg::I32(lanes as i32),
            Arg::F32(factor),
        ];
        let grid = Grid { blocks: ((rows as u32).div_ceil(THREADS / lanes), 1), threads: THREADS, shared: 0 };
        // SAFETY: the caller's promise is the same.
        unsafe { self.launch(kernel, grid, &args, (4 * rows * columns) as u64, 4 * rows as u64) }
    }

    /// `out = Σ` over `rows` rows of `columns` elements, `stride` apart; rounded once. PyTorch has one kernel whose last block
    /// adds up what others left; here the second of two does.
    ///
    /// # Safety
    /// As [`map_with`](Self::map_with).
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub(crate) unsafe fn column_sum(
        &mut self,
        [kernel, finish]: [&'static str; 2],
        out: View,
        x: View,
        (rows, columns, stride): (usize, usize, usize),
    ) -> Result<(), GpuError> {
        let (grid, lanes) = column_grid(rows, columns, self.elem);
        let parts = grid.blocks.1;
        let part = self.take(4 * parts as usize * columns);
        let [g, c, lanes] = [parts, columns as u32, lanes].map(|n| Arg::I32(n as i32));
        let args = [Arg::Ptr(x.at), Arg::I64(stride as i64), Arg::Ptr(part), Arg::U32(rows as u32), c, lanes];
        let (read, partial) = (x.bytes(rows * columns), 4 * u64::from(parts) * columns as u64);
        // SAFETY: the caller's promise is the same, and there is room for a row of partial sums of every block in y.
        unsafe { self.launch(kernel, grid, &args, read, partial)? };
        let threads = (8 * parts).next_multiple_of(32).min(FINISH_THREADS);
        let grid = Grid { blocks: (columns as u32 / 8, 1), threads, shared: 0 };
        let args = [Arg::Ptr(part), Arg::Ptr(out.at), g, c];
        // SAFETY: as above.
        unsafe { self.launch(finish, grid, &args, partial, out.bytes(columns)) }
    }

    /// A kernel that reads and writes so many bytes.
    ///
    /// # Safety
    /// As [`Launcher::launch`].
    ///
    /// # Errors
    /// As [`Launcher::launch`].
    pub(crate) unsafe fn launch(
        &mut self,
        kernel: &'static str,
        grid: Grid,
        args: &[Arg],
        read: u64,
        written: u64,
    ) -> Result<(), GpuError> {
        self.passes.push(Pass { kernel, read, written });
        let unit = self.units.iter().find(|u| u.entries.contains(&kernel)).expect("a kernel of the units");
        let Some(on) = self.on else { return Ok(()) };
        on.costs(Cost::bytes(read + written));
        // SAFETY: the caller's promise is the same.
        unsafe { on.launch(unit.entry(kernel, self.elem), grid, args) }
    }
}

/// Rows of partial sums that [`Operators::column_sum`] leaves.
#[cfg(test)]
pub(crate) fn partial_rows(rows: usize, columns: usize, elem: Elem) -> usize {
    column_grid(rows, columns, elem).0.blocks.1 as usize
}

/// The passes of the table under a heading of a module's documentation, whose columns are kernel, operator, reads, writes and
/// `when`. A cell is a sum of extents and types, `TD elem + T f32`; `extent` gives their elements, and `when` says which rows of
/// the table apply.
#[cfg(test)]
pub(crate) fn documented(
    source: &'static str,
    heading: &str,
    elem: Elem,
    extent: impl Fn(&str) -> usize,
    when: impl Fn(&str) -> bool,
) -> Vec<Pass> {
    let lines = source.lines().skip_while(|line| *line != format!("//! # {heading}"));
    let table = lines.skip_while(|line| !line.starts_with("//! |---")).skip(1);
    let bytes = |cell: &str| -> u64 {
        let term = |term: &str| match term.split_whitespace().collect::<Vec<_>>()[..] {
            [n, "elem"] => extent(n) * elem.bytes(),
            [n, "f32" | "i32" | "u32"] => extent(n) * 4,
            _ => panic!("'{term}' of {heading} is no extent and type"),
        };
        cell.split('+').filter(|t| !t.trim().is_empty()).map(|t| term(t) as u64).sum()
    };
    table
        .take_while(|line| line.starts_with("//! |"))
        .filter_map(|line| {
            let cells: Vec<&'static str> = line.split('|').map(str::trim).collect();
            let [_, kernel, _, reads, writes, condition, _] = cells[..] else { panic!("{heading}: {line}") };
            let pass = Pass { kernel: kernel.trim_matches('`'), read: bytes(reads), written: bytes(writes) };
            condition.split_whitespace().all(&when).then_some(pass)
        })
        .collect()
}
