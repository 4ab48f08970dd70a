//! Gather and scatter against the f64 equations, whoever runs them.

use chronicals_kernels::{
    cases::values,
    embedding::{
        cuda::{self, Shape},
        reference,
    },
    gpu::{Elem, Ptr, le_bytes},
};

use crate::machine::{Machine, Memory, Operands, assert_close, cases, rounded};

/// Tokens, vocabulary, row length: one token; one id for all, in several pieces; rows longer than a block; ids at the edges
/// of a piece; many ids of few tokens.
const SHAPES: [(usize, usize, usize); 5] =
    [(1, 7, 8), (200, 1, 16), (70, 3, 2056), (390, 4, 64), (700, 300, 24)];

fn each(shapes: &[(usize, usize, usize)], mut check: impl FnMut(Shape, Elem, Vec<u32>, String)) {
    for ((tokens, vocabulary, hidden), elem) in shapes.iter().flat_map(|s| Elem::ALL.map(|e| (*s, e))) {
        let shape = Shape { tokens, vocabulary, hidden };
        // The first id more often than the others; the last row of the table among them.
        let mut ids: Vec<u32> = values(9, tokens)
            .into_iter()
            .map(|v| if v < -0.2 { 0 } else { (v.abs() * vocabulary as f32) as u32 })
            .collect();
        ids[tokens - 1] = vocabulary as u32 - 1;
        check(shape, elem, ids, format!("{shape:?} {}", elem.name()));
    }
}

fn upload(machine: &dyn Machine, ids: &[i32]) -> Memory {
    machine.upload(&le_bytes(ids, i32::to_le_bytes))
}

/// Rows as they are.
pub fn forward(machine: &dyn Machine) {
    forward_of(machine, &cases(machine, &SHAPES, &[1]));
}

pub fn forward_of(machine: &dyn Machine, shapes: &[(usize, usize, usize)]) {
    each(shapes, |shape, elem, ids, what| {
        let on = Operands { machine, elem };
        let table = rounded(elem, values(1, shape.vocabulary * shape.hidden));
        let (table_in, x) = (on.input(&table), on.output(shape.tokens * shape.hidden));
        let ids_in = upload(machine, &cuda::checked(&ids, shape.vocabulary));
        // SAFETY: every operand has the length that its name says, and the ids were checked.
        unsafe {
            let (launcher, ids) = (machine.launcher(), ids_in.ptr());
            cuda::forward(launcher, elem, ids, table_in.ptr(), x.ptr(), shape).unwrap();
        }
        let wide: Vec<f64> = table.iter().map(|v| f64::from(*v)).collect();
        let expected: Vec<f32> =
            reference::forward(&ids, &wide, shape.hidden).into_iter().map(|v| v as f32).collect();
        assert_eq!(on.read(&x), expected, "{what}");
    });
}

/// Sums of rows, onto what is there; twice, to the same bits.
pub fn backward(machine: &dyn Machine) {
    backward_of(machine, &cases(machine, &SHAPES, &[1]));
}

pub fn backward_of(machine: &dyn Machine, shapes: &[(usize, usize, usize)]) {
    each(shapes, |shape, elem, ids, what| {
        let on = Operands { machine, elem };
        let (rows, table) = (shape.tokens * shape.hidden, shape.vocabulary * shape.hidden);
        let (dx, old) = (rounded(elem, values(2, rows)), values(3, table));
        let dx_in = on.input(&dx);
        let index = upload(machine, &cuda::index(&ids, shape.vocabulary));
        let run = || {
            let dtable = on.f32().input(&old);
            let scratch = on.f32().output(cuda::scratch_floats(shape));
            let [index, dx, dtable_at, scratch]: [Ptr; 4] =
                [&index, &dx_in, &dtable, &scratch].map(Memory::ptr);
            // SAFETY: every operand has the length that its name says; the index is that of the ids.
            unsafe {
                cuda::backward(machine.launcher(), elem, index, dx, dtable_at, scratch, shape).unwrap();
            }
            on.f32().read(&dtable)
        };
        let got = run();
        let wide: Vec<f64> = dx.iter().map(|v| f64::from(*v)).collect();
        let mut expected: Vec<f64> = old.iter().map(|v| f64::from(*v)).collect();
        reference::backward(&ids, &wide, &mut expected, shape.hidden);
        // f32 sums of a few hundred terms.
        assert_close(&what, &got, &expected, 1e-5);
        let used: std::collections::HashSet<u32> = ids.iter().copied().collect();
        for id in (0..shape.vocabulary).filter(|id| !used.contains(&(*id as u32))) {
            let row = id * shape.hidden..(id + 1) * shape.hidden;
            assert_eq!(got[row.clone()], old[row], "{what}: row {id}, which has no token");
        }
        assert_eq!(run(), got, "{what}: another run, other bits");
    });
}
