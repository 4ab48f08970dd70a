use super::{cases, *};
use crate::{cases::values, testing::*};

/// Output and lse; the eager variant's probabilities too.
struct Forward {
    out: Vec<f32>,
    lse: Vec<f32>,
    probs: Option<Vec<f32>>,
}

fn run(variant: Variant, qkv: &[f32], layout: Layout, shape: Shape) -> Forward {
    let (tokens, slots) = (layout.tokens(), layout.row_slots);
    let (mut out, mut lse) = (poisoned(tokens * shape.out()), poisoned(tokens * shape.heads));
    let mut probs = (variant == Variant::Eager).then(|| poisoned(tokens * shape.heads * slots));
    forward(variant, qkv, layout, shape, &mut out, &mut lse, probs.as_deref_mut());
    Forward { out, lse, probs }
}

fn gradient(variant: Variant, qkv: &[f32], dout: &[f32], layout: Layout, shape: Shape) -> Vec<f32> {
    let Forward { out, lse, probs } = run(variant, qkv, layout, shape);
    let saved = Saved { qkv_TQ: qkv, out_T: &out, lse_HT: &lse, probs: probs.as_deref() };
    let mut dqkv = poisoned(qkv.len());
    backward(variant, dout, saved, layout, shape, &mut dqkv);
    dqkv
}

/// `(qkv, dout)`; scores spread over several units, so that maxima move.
fn operands(seed: u64, layout: Layout, shape: Shape) -> (Vec<f32>, Vec<f32>) {
    let spread = 4.0 / (shape.head_dim as f32).powf(0.25);
    let mut qkv = values(seed, layout.tokens() * shape.packed());
    for row in qkv.chunks_exact_mut(shape.packed()) {
        row[..shape.value(0)].iter_mut().for_each(|x| *x *= spread);
    }
    (qkv, values(seed + 100, layout.tokens() * shape.out()))
}

fn each(f: impl Fn(Variant, cases::Case, Layout)) {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| cases::TESTS.map(|c| (v, c))) {
        f(variant, case, case.layout(&case.cu_seqlens()));
    }
}

#[test]
fn forward_agrees_with_f64() {
    each(|variant, case, layout| {
        let (qkv, _) = operands(case.seed, layout, case.shape);
        let got = run(variant, &qkv, layout, case.shape);
        let (out, lse) = reference::forward(&wide(&qkv), layout, case.shape);
        assert_close(&format!("{variant} {} out", case.name), &got.out, &out, 4e-6);
        assert_close(&format!("{variant} {} lse", case.name), &got.lse, &lse, 4e-6);
    });
}

#[test]
fn backward_agrees_with_finite_differences() {
    each(|variant, case, layout| {
        let (qkv, dout) = operands(case.seed, layout, case.shape);
        let loss = |x: &[f64]| dot(&reference::forward(x, layout, case.shape).0, &wide(&dout));
        let got = gradient(variant, &qkv, &dout, layout, case.shape);
        assert_gradient(&format!("{variant} {}", case.name), loss, &qkv, &got);
    });
}

#[test]
fn variants_agree() {
    each(|_, case, layout| {
        let (qkv, dout) = operands(case.seed, layout, case.shape);
        let [fused, eager] = Variant::ALL.map(|v| gradient(v, &qkv, &dout, layout, case.shape));
        assert_close(case.name, &fused, &wide(&eager), 2e-5);
    });
}

/// One head; scores of every query are `slope·j`, so the maximum moves with every key.
fn rising(n: usize, slope: f32) -> Vec<f32> {
    let scale = 2.0; // √K
    (0..n)
        .flat_map(|j| [scale, 0.0, 0.0, 0.0, slope * j as f32, 0.0, 0.0, 0.0, 1.0, j as f32, 0.0, -1.0])
        .collect()
}

#[test]
fn rescales_when_the_running_maximum_moves() {
    // Sums of early key blocks were taken under a lower maximum. Left as they are, they would outweigh the late ones.
    let (shape, n) = (Shape { heads: 1, kv_heads: 1, head_dim: 4 }, 400);
    let layout = Layout { cu_seqlens: &[0, n as u32], rows: 1, row_slots: n };
    for slope in [0.01, 0.3, -0.3] {
        let qkv = rising(n, slope);
        let (want, want_lse) = reference::forward(&wide(&qkv), layout, shape);
        for variant in Variant::ALL {
            let got = run(variant, &qkv, layout, shape);
            assert_close(&format!("{variant} slope {slope} out"), &got.out, &want, 2e-5);
            assert_close(&format!("{variant} slope {slope} lse"), &got.lse, &want_lse, 2e-5);
        }
    }
}

#[test]
fn documents_do_not_attend_to_each_other() {
    let shape = Shape { heads: 4, kv_heads: 2, head_dim: 8 };
    let cu = [0, 13, 30, 50, 60, 100];
    let layout = Layout { cu_seqlens: &cu, rows: 2, row_slots: 50 };
    let (qkv, dout) = operands(1, layout, shape);
    let tokens = |data: &[f32], width: usize, from: usize, to: usize| data[from * width..to * width].to_vec();
    for variant in Variant::ALL {
        let (whole, whole_grad) =
            (run(variant, &qkv, layout, shape), gradient(variant, &qkv, &dout, layout, shape));
        for window in cu.windows(2) {
            let (start, len) = (window[0] as usize, (window[1] - window[0]) as usize);
            let alone = Layout { cu_seqlens: &[0, len as u32], rows: 1, row_slots: len };
            let own = tokens(&qkv, shape.packed(), start, start + len);
            let got = run(variant, &own, alone, shape);
            let want = tokens(&whole.out, shape.out(), start, start + len);
            assert_close(&format!("{variant} {start}"), &got.out, &wide(&want), 1e-6);
            let got = gradient(variant, &own, &tokens(&dout, shape.out(), start, start + len), alone, shape);
            let want = tokens(&whole_grad, shape.packed(), start, start + len);
            assert_close(&format!("{variant} {start} gradient"), &got, &wide(&want), 1e-5);
        }
    }
}

#[test]
fn later_tokens_do_not_change_earlier_outputs() {
    let shape = Shape { heads: 2, kv_heads: 1, head_dim: 8 };
    let layout = Layout { cu_seqlens: &[0, 130], rows: 1, row_slots: 130 };
    let (qkv, _) = operands(2, layout, shape);
    for variant in Variant::ALL {
        let before = run(variant, &qkv, layout, shape).out;
        for changed in [1, 6, 16, 95, 96, 129] {
            let mut other = qkv.clone();
            other[changed * shape.packed()..].iter_mut().for_each(|x| *x = -3.0 * *x + 1.0);
            let after = run(variant, &other, layout, shape).out;
            let at = changed * shape.out();
            assert_eq!(before[..at], after[..at], "{variant}: token {changed}");
            assert_ne!(before[at..][..shape.out()], after[at..][..shape.out()], "{variant}: token {changed}");
        }
    }
}

#[test]
fn query_heads_read_their_group() {
    let shape = Shape { heads: 6, kv_heads: 2, head_dim: 4 };
    let layout = Layout { cu_seqlens: &[0, 5], rows: 1, row_slots: 5 };
    let (qkv, _) = operands(3, layout, shape);
    // packed heads: queries 0..6, keys 6 and 7, values 8 and 9; each with the query heads that read it
    let readers: [&[usize]; 10] =
        [&[0], &[1], &[2], &[3], &[4], &[5], &[0, 1, 2], &[3, 4, 5], &[0, 1, 2], &[3, 4, 5]];
    for (variant, (packed, readers)) in
        Variant::ALL.into_iter().flat_map(|v| readers.iter().enumerate().map(move |r| (v, r)))
    {
        let mut other = qkv.clone();
        for row in other.chunks_exact_mut(shape.packed()) {
            row[packed * 4..][..4].iter_mut().for_each(|x| *x *= -2.0);
        }
        let [before, after] = [&qkv, &other].map(|qkv| run(variant, qkv, layout, shape).out);
        let last = 4 * shape.out(); // the last token, which sees more than itself
        let changed = |head: &usize| before[last + head * 4..][..4] != after[last + head * 4..][..4];
        let changed: Vec<usize> = (0..6).filter(changed).collect();
        assert_eq!(changed, *readers, "{variant}: packed head {packed}");
    }
}

#[test]
fn one_token() {
    let shape = Shape { heads: 6, kv_heads: 2, head_dim: 32 };
    let layout = Layout { cu_seqlens: &[0, 1], rows: 1, row_slots: 1 };
    let (qkv, dout) = operands(4, layout, shape);
    for variant in Variant::ALL {
        let dqkv = gradient(variant, &qkv, &dout, layout, shape);
        assert_close("dq and dk", &dqkv[..shape.value(0)], &vec![0.0; shape.value(0)], 1e-5);
        for g in 0..2 {
            let heads = |i: usize| (0..3).map(|h| f64::from(dout[(3 * g + h) * 32 + i])).sum();
            let want: Vec<f64> = (0..32).map(heads).collect();
            assert_close("dv", &dqkv[shape.value(g)..][..32], &want, 1e-6);
        }
    }
}

#[test]
fn large_scores_stay_finite() {
    let shape = Shape { heads: 1, kv_heads: 1, head_dim: 4 };
    let layout = Layout { cu_seqlens: &[0, 120], rows: 1, row_slots: 120 };
    let qkv = rising(120, 1e4);
    for variant in Variant::ALL {
        let got = run(variant, &qkv, layout, shape);
        let (want, _) = reference::forward(&wide(&qkv), layout, shape);
        assert_close(variant.name(), &got.out, &want, 1e-5);
        let dqkv = gradient(variant, &qkv, &values(5, 480), layout, shape);
        assert!(dqkv.iter().all(|g| g.is_finite()), "{variant}");
    }
}

#[test]
fn not_a_number_reaches_its_document_only() {
    let shape = Shape { heads: 1, kv_heads: 1, head_dim: 4 };
    let layout = Layout { cu_seqlens: &[0, 9, 20], rows: 1, row_slots: 20 };
    let (mut qkv, _) = operands(6, layout, shape);
    qkv[12 * shape.packed()] = f32::NAN; // a query of the second document
    for variant in Variant::ALL {
        let out = run(variant, &qkv, layout, shape).out;
        let nan: Vec<usize> = (0..20).filter(|t| out[t * 4..][..4].iter().any(|x| x.is_nan())).collect();
        assert_eq!(nan, [12], "{variant}");
    }
}

#[test]
fn saved_bytes_match_what_is_saved() {
    let shape = Shape { heads: 4, kv_heads: 2, head_dim: 8 };
    let layout = Layout { cu_seqlens: &[0, 10, 20], rows: 2, row_slots: 10 };
    let (qkv, _) = operands(7, layout, shape);
    for variant in Variant::ALL {
        let Forward { lse, probs, .. } = run(variant, &qkv, layout, shape);
        let bytes = 4 * (lse.len() + probs.map_or(0, |p| p.len())) as u64;
        assert_eq!(saved_bytes(variant, 2, 10, shape), bytes, "{variant}");
    }
}

#[test]
#[should_panic(expected = "a document crosses a row")]
fn documents_across_rows_are_refused() {
    let shape = Shape { heads: 1, kv_heads: 1, head_dim: 4 };
    run(Variant::Fused, &[0.0; 48], Layout { cu_seqlens: &[0, 4], rows: 2, row_slots: 2 }, shape);
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let case = cases::TESTS[5];
    let cu = case.cu_seqlens();
    let (qkv, dout) = operands(case.seed, case.layout(&cu), case.shape);
    for variant in Variant::ALL {
        assert_same_for_any_threads(|| gradient(variant, &qkv, &dout, case.layout(&cu), case.shape));
    }
}
