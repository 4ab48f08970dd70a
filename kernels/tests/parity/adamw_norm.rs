//! The norm of the gradients that AdamW clips by, against f64, whoever runs it.

use chronicals_kernels::{adamw::cuda, cases::values, gpu::Elem};

use crate::{
    adamw::{LENGTHS, grads},
    machine::{self, Machine, Operands, assert_close, cases, wide},
};

/// Norm and factor, and the norms of the groups that end at `ends`, as they lie in memory.
fn norms(
    machine: &dyn Machine,
    elem: Elem,
    of_elem: bool,
    g: &[f32],
    ends: &[usize],
    max_norm: f32,
) -> ([f32; 2], Vec<f32>) {
    let on = Operands { machine, elem };
    let typed = Operands { machine, elem: if of_elem { elem } else { Elem::F32 } };
    let (g_in, clip, norms) = (typed.input(g), on.f32().output(2), on.f32().output(ends.len()));
    let scratch = on.f32().output(cuda::norm_scratch_floats(machine.launcher().processors()));
    let g_in = grads(of_elem, g_in.ptr());
    // SAFETY: every operand has the length that its name says.
    unsafe {
        let launcher = machine.launcher();
        cuda::norm(launcher, elem, g_in, ends, max_norm, scratch.ptr(), clip.ptr(), norms.ptr()).unwrap();
    }
    (on.f32().read(&clip).try_into().unwrap(), on.f32().read(&norms))
}

/// Ends of one group, and of as many as there are kernels for, one of which may be empty.
fn ends(n: usize) -> [Vec<usize>; 2] {
    [vec![n], vec![n / 3 / 8 * 8, n / 2 / 8 * 8, n].into_iter().filter(|end| *end > 0).collect()]
}

/// The norm at magnitudes from tiny to large, by group and of all, the factor of clipping, and NaN.
pub fn norm(machine: &dyn Machine) {
    for (n, elem) in cases(machine, &LENGTHS, &[2]).into_iter().flat_map(|n| Elem::ALL.map(|e| (n, e))) {
        for (of_elem, magnitude) in
            [false, true].into_iter().flat_map(|o| [1e-12f32, 1.0, 1e9].map(|m| (o, m)))
        {
            let g: Vec<f32> = values(1, n).into_iter().map(|v| v * magnitude).collect();
            let g = if of_elem { machine::rounded(elem, g) } else { g };
            for ends in ends(n) {
                norm_of(machine, elem, of_elem, &g, &ends, &format!("×{magnitude}"));
            }
        }
    }
}

fn norm_of(machine: &dyn Machine, elem: Elem, of_elem: bool, g: &[f32], ends: &[usize], scale: &str) {
    let what = format!("{ends:?} {} {of_elem} {scale}", elem.name());
    let run = |g: &[f32], max_norm| norms(machine, elem, of_elem, g, ends, max_norm);
    let root = |g: &[f32]| wide(g).iter().map(|x| x * x).sum::<f64>().sqrt();
    let begins = std::iter::once(&0).chain(ends);
    let by_group: Vec<f64> = begins.zip(ends).map(|(begin, end)| root(&g[*begin..*end])).collect();
    let (expected, first) = (root(g), run(g, 0.5));
    assert_close(&format!("norm {what}"), &first.0[..1], &[expected], 2e-6);
    assert_close(&format!("factor {what}"), &first.0[1..], &[(0.5 / (expected + 1e-6)).min(1.0)], 2e-6);
    assert_close(&format!("norms {what}"), &first.1, &by_group, 2e-6);
    assert_eq!(run(g, 0.5), first, "{what}: again");
    assert_eq!(run(g, 0.0).0[1], 1.0, "{what}: no clipping");
    let mut broken = g.to_vec();
    *broken.last_mut().unwrap() = f32::NAN;
    let ([norm, factor], by_group) = run(&broken, 0.5);
    assert!(norm.is_nan() && factor == 1.0, "{what}: NaN gives {norm} and {factor}");
    let broken: Vec<bool> = by_group.iter().map(|n| n.is_nan()).collect();
    assert_eq!(broken, [vec![false; ends.len() - 1], vec![true]].concat(), "{what}: NaN of one group");
}
