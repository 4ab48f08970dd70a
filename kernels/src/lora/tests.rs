use super::{cases::*, *};
use crate::{cases::values, testing::*};

const SCALE: f32 = 0.75;

struct Operands {
    x: Vec<f32>,
    a: Vec<f32>,
    /// Not zero, as it is only before the first update: with B = 0, dA and dx would be too.
    b: Vec<f32>,
    y: Vec<f32>,
    dy: Vec<f32>,
}

fn operands(case: Case) -> Operands {
    let Shape { tokens, inputs, outputs } = case.shape;
    Operands {
        x: values(case.seed, tokens * inputs),
        a: values(case.seed + 100, stacked_rank(case.segments) * inputs),
        b: values(case.seed + 200, b_len(case.segments)),
        y: values(case.seed + 300, tokens * outputs),
        dy: values(case.seed + 400, tokens * outputs),
    }
}

/// `(y, xa)`
fn run_forward(variant: Variant, case: Case, op: &Operands) -> (Vec<f32>, Vec<f32>) {
    let mut xa = poisoned(case.shape.tokens * stacked_rank(case.segments));
    let mut y = op.y.clone();
    forward(variant, &op.x, &op.a, &op.b, SCALE, case.segments, &mut xa, &mut y, case.shape);
    (y, xa)
}

/// `[da, db, dx]`, each added to `prior`'s values times `amount`.
fn run_backward(variant: Variant, case: Case, op: &Operands, amount: f32) -> [Vec<f32>; 3] {
    let (_, xa) = run_forward(variant, case, op);
    let mut dxa = poisoned(xa.len());
    let mut grads = [&op.a, &op.b, &op.x].map(|x| x.iter().map(|x| amount * x).collect::<Vec<_>>());
    let [da, db, dx] = &mut grads;
    backward(
        variant,
        &op.dy,
        &op.x,
        &xa,
        &op.a,
        &op.b,
        SCALE,
        case.segments,
        da,
        db,
        Some(dx),
        &mut dxa,
        case.shape,
    );
    assert!(dxa.iter().all(|x| x.is_finite()), "{variant} {}: dxa is overwritten", case.name);
    grads
}

fn each(f: impl Fn(Variant, Case, Operands)) {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| TESTS.map(|c| (v, c))) {
        f(variant, case, operands(case));
    }
}

#[test]
fn forward_adds_the_adapters_to_y() {
    each(|variant, case, op| {
        let want = reference::forward(
            &wide(&op.x),
            &wide(&op.a),
            &wide(&op.b),
            f64::from(SCALE),
            case.segments,
            &wide(&op.y),
            case.shape,
        );
        let (y, xa) = run_forward(variant, case, &op);
        assert_close(&format!("{variant} {} y", case.name), &y, &want, 1e-5);
        assert!(xa.iter().all(|x| x.is_finite()), "{variant} {}: xa is overwritten", case.name);
    });
}

#[test]
fn columns_outside_the_segments_are_left_alone() {
    each(|variant, case, op| {
        let (y, _) = run_forward(variant, case, &op);
        let inside = |column| case.segments.iter().any(|s| (s.offset..s.offset + s.width).contains(&column));
        for (i, (got, before)) in y.iter().zip(&op.y).enumerate() {
            assert!(inside(i % case.shape.outputs) || got == before, "{variant} {} y[{i}]", case.name);
        }
    });
}

#[test]
fn backward_agrees_with_finite_differences() {
    each(|variant, case, op| {
        let loss = |x: &[f64], a: &[f64], b: &[f64]| {
            let y = wide(&op.y);
            dot(&reference::forward(x, a, b, f64::from(SCALE), case.segments, &y, case.shape), &wide(&op.dy))
        };
        let (x, a, b) = (wide(&op.x), wide(&op.a), wide(&op.b));
        let [da, db, dx] = run_backward(variant, case, &op, 0.0);
        let name = |of: &str| format!("{variant} {} {of}", case.name);
        assert_gradient(&name("da"), |a| loss(&x, a, &b), &op.a, &da);
        assert_gradient(&name("db"), |b| loss(&x, &a, b), &op.b, &db);
        assert_gradient(&name("dx"), |x| loss(x, &a, &b), &op.x, &dx);
    });
}

#[test]
fn gradients_are_added() {
    each(|variant, case, op| {
        let [fresh, added] = [0.0, 1.0].map(|amount| run_backward(variant, case, &op, amount));
        for ((fresh, added), prior) in fresh.iter().zip(&added).zip([&op.a, &op.b, &op.x]) {
            let want: Vec<f64> =
                fresh.iter().zip(prior).map(|(f, p)| f64::from(*f) + f64::from(*p)).collect();
            assert_close(&format!("{variant} {}", case.name), added, &want, 1e-5);
        }
    });
}

#[test]
fn without_dx_the_other_gradients_are_the_same() {
    each(|variant, case, op| {
        let (_, xa) = run_forward(variant, case, &op);
        let (mut da, mut db) = (vec![0.0; op.a.len()], vec![0.0; op.b.len()]);
        let (dy, x, a, b, segments) = (&op.dy, &op.x, &op.a, &op.b, case.segments);
        let mut dxa = poisoned(xa.len());
        backward(variant, dy, x, &xa, a, b, SCALE, segments, &mut da, &mut db, None, &mut dxa, case.shape);
        let [want_da, want_db, _] = run_backward(variant, case, &op, 0.0);
        assert_eq!((da, db), (want_da, want_db), "{variant} {}", case.name);
    });
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    each(|variant, case, op| {
        assert_same_for_any_threads(|| {
            let (y, xa) = run_forward(variant, case, &op);
            [y, xa, run_backward(variant, case, &op, 1.0).concat()].concat()
        });
    });
}
