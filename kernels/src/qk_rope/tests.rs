use super::{cases, *};
use crate::{cases::values, testing::*};

const EPS: f32 = 1e-5;

/// Everything the operation reads, and what a run with given options yields.
struct Operands {
    qkv: Vec<f32>,
    bias: Vec<f32>,
    q_weight: Vec<f32>,
    k_weight: Vec<f32>,
    positions: Vec<u32>,
    frequencies: Vec<f64>,
    dy: Vec<f32>,
    shape: Shape,
}

#[derive(Default)]
struct Gradients {
    qkv: Vec<f32>,
    bias: Vec<f32>,
    q_weight: Vec<f32>,
    k_weight: Vec<f32>,
}

fn operands(case: cases::Case) -> Operands {
    let (shape, n) = (case.shape, case.shape.tokens * case.shape.packed());
    let near_one = |seed, n| values(seed, n).iter().map(|w| 1.2 + 0.5 * w).collect();
    Operands {
        qkv: values(case.seed, n),
        bias: values(case.seed + 100, shape.packed()),
        q_weight: near_one(case.seed + 200, shape.head_dim),
        k_weight: near_one(case.seed + 300, shape.head_dim),
        positions: (0..shape.tokens as u32).map(|t| t * 7 % 50).collect(),
        frequencies: Tables::inverse_frequencies(10_000.0, shape.head_dim),
        dy: values(case.seed + 400, n),
        shape,
    }
}

impl Operands {
    fn tables(&self) -> Tables {
        Tables::new(&self.frequencies, 50)
    }

    /// Result, `pre_norm` and `rstd`.
    fn forward(&self, variant: Variant, with_bias: bool, with_norm: bool) -> [Vec<f32>; 3] {
        let (shape, tables) = (self.shape, self.tables());
        let (mut y, mut pre_norm, mut rstd) = (
            self.qkv.clone(),
            poisoned(shape.tokens * shape.rotated()),
            poisoned(shape.tokens * shape.rotated_heads()),
        );
        let norm = with_norm.then_some(NormForward {
            q_weight_K: &self.q_weight,
            k_weight_K: &self.k_weight,
            eps: EPS,
            pre_norm: &mut pre_norm,
            rstd: &mut rstd,
        });
        let rotation = Rotation { tables: &tables, positions: &self.positions };
        forward(variant, &mut y, with_bias.then_some(&self.bias), norm, rotation, shape);
        [y, pre_norm, rstd]
    }

    /// Gradients added to `start` everywhere but in `qkv`.
    fn gradients(&self, variant: Variant, with_bias: bool, with_norm: bool, start: f32) -> Gradients {
        let (shape, tables) = (self.shape, self.tables());
        let [_, pre_norm, rstd] = self.forward(variant, with_bias, with_norm);
        let mut g = Gradients {
            qkv: self.dy.clone(),
            bias: vec![start; shape.packed()],
            q_weight: vec![start; shape.head_dim],
            k_weight: vec![start; shape.head_dim],
        };
        let norm = with_norm.then_some(NormBackward {
            q_weight_K: &self.q_weight,
            k_weight_K: &self.k_weight,
            pre_norm: &pre_norm,
            rstd: &rstd,
            dq_weight_K: Some(&mut g.q_weight),
            dk_weight_K: Some(&mut g.k_weight),
        });
        let rotation = Rotation { tables: &tables, positions: &self.positions };
        backward(variant, &mut g.qkv, with_bias.then_some(&mut g.bias), norm, rotation, shape);
        g
    }

    fn reference(&self, qkv: &[f64], bias: Option<&[f64]>, weights: Option<[&[f64]; 2]>) -> Vec<f64> {
        let norm = weights.map(|[q, k]| (q, k, f64::from(EPS)));
        reference::forward(qkv, bias, norm, &self.frequencies, &self.positions, self.shape)
    }
}

const OPTIONS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

fn each(f: impl Fn(Variant, cases::Case, bool, bool, &str)) {
    for (variant, case) in Variant::ALL.into_iter().flat_map(|v| cases::TESTS.map(|c| (v, c))) {
        for (bias, norm) in OPTIONS {
            f(variant, case, bias, norm, &format!("{variant} {} bias={bias} norm={norm}", case.name));
        }
    }
}

#[test]
fn forward_agrees_with_f64() {
    each(|variant, case, with_bias, with_norm, name| {
        let op = operands(case);
        let [y, pre_norm, _] = op.forward(variant, with_bias, with_norm);
        let (bias, q_weight, k_weight) = (wide(&op.bias), wide(&op.q_weight), wide(&op.k_weight));
        let weights = with_norm.then_some([&q_weight[..], &k_weight[..]]);
        let want = op.reference(&wide(&op.qkv), with_bias.then_some(&bias[..]), weights);
        assert_close(name, &y, &want, 3e-6);
        assert_eq!(pre_norm.iter().any(|x| x.is_nan()), !with_norm, "{name}: what is saved");
    });
}

#[test]
fn backward_agrees_with_finite_differences() {
    each(|variant, case, with_bias, with_norm, name| {
        let op = operands(case);
        let got = op.gradients(variant, with_bias, with_norm, 0.0);
        let [qkv, bias, q, k, dy] = [&op.qkv, &op.bias, &op.q_weight, &op.k_weight, &op.dy].map(|x| wide(x));
        let loss = |qkv: &[f64], bias: &[f64], q: &[f64], k: &[f64]| {
            dot(&op.reference(qkv, with_bias.then_some(bias), with_norm.then_some([q, k])), &dy)
        };
        assert_gradient(&format!("{name} dqkv"), |x| loss(x, &bias, &q, &k), &op.qkv, &got.qkv);
        if with_bias {
            assert_gradient(&format!("{name} dbias"), |x| loss(&qkv, x, &q, &k), &op.bias, &got.bias);
        }
        if with_norm {
            assert_gradient(
                &format!("{name} dq_weight"),
                |x| loss(&qkv, &bias, x, &k),
                &op.q_weight,
                &got.q_weight,
            );
            assert_gradient(
                &format!("{name} dk_weight"),
                |x| loss(&qkv, &bias, &q, x),
                &op.k_weight,
                &got.k_weight,
            );
        }
    });
}

#[test]
fn backward_adds_to_parameter_gradients() {
    each(|variant, case, with_bias, with_norm, name| {
        let op = operands(case);
        let (zero, some) = (
            op.gradients(variant, with_bias, with_norm, 0.0),
            op.gradients(variant, with_bias, with_norm, 3.0),
        );
        assert_eq!(zero.qkv, some.qkv, "{name}");
        for (from, on) in
            [(&zero.bias, &some.bias), (&zero.q_weight, &some.q_weight), (&zero.k_weight, &some.k_weight)]
        {
            let want: Vec<f64> = from.iter().map(|&g| 3.0 + f64::from(g)).collect();
            assert_close(name, on, &want, 1e-5);
        }
    });
}

#[test]
fn positions_restart_with_documents() {
    // The same document twice in one row of slots: equal inputs at equal positions must rotate equally.
    let shape = Shape { tokens: 6, heads: 2, kv_heads: 1, head_dim: 8 };
    let document = values(1, 3 * shape.packed());
    let tables = Tables::new(&Tables::inverse_frequencies(10_000.0, 8), 6);
    for variant in Variant::ALL {
        let rotate = |positions: &[u32]| {
            let mut qkv = [&document[..], &document[..]].concat();
            forward(variant, &mut qkv, None, None, Rotation { tables: &tables, positions }, shape);
            qkv
        };
        let restarted = rotate(&[0, 1, 2, 0, 1, 2]);
        let (first, second) = restarted.split_at(document.len());
        assert_eq!(first, second, "{variant}");
        let running = rotate(&[0, 1, 2, 3, 4, 5]);
        assert_ne!(running[..document.len()], running[document.len()..], "{variant}: positions are not read");
    }
}

#[test]
fn halves_are_paired_not_neighbours() {
    // At an angle of 90°, x₁ takes −x₂ and x₂ takes x₁ across the halves of a head.
    let shape = Shape { tokens: 1, heads: 1, kv_heads: 1, head_dim: 4 };
    let tables = Tables::new(&[std::f64::consts::FRAC_PI_2, 0.0], 2);
    for variant in Variant::ALL {
        let mut qkv = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0];
        forward(variant, &mut qkv, None, None, Rotation { tables: &tables, positions: &[1] }, shape);
        let want = [-3.0, 2.0, 1.0, 4.0, -7.0, 6.0, 5.0, 8.0, 9.0, 10.0, 11.0, 12.0];
        assert_close(variant.name(), &qkv, &want, 1e-6);
    }
}

#[test]
fn scores_depend_on_distance_alone() {
    let shape = Shape { tokens: 2, heads: 1, kv_heads: 1, head_dim: 16 };
    let tables = Tables::new(&Tables::inverse_frequencies(10_000.0, 16), 2048);
    for variant in Variant::ALL {
        let score = |positions: [u32; 2]| {
            let mut qkv = values(3, 2 * shape.packed());
            forward(
                variant,
                &mut qkv,
                None,
                None,
                Rotation { tables: &tables, positions: &positions },
                shape,
            );
            dot(&wide(&qkv[shape.packed()..][..16]), &wide(&qkv[16..32]))
        };
        assert!((score([3, 10]) - score([2003, 2010])).abs() < 1e-5, "{variant}");
        assert!((score([3, 10]) - score([3, 11])).abs() > 1e-3, "{variant}");
    }
}

#[test]
#[should_panic(expected = "position 2 is outside the tables")]
fn positions_outside_the_tables_are_refused() {
    let shape = Shape { tokens: 1, heads: 1, kv_heads: 1, head_dim: 4 };
    let tables = Tables::new(&[1.0, 0.1], 2);
    forward(Variant::Fused, &mut [0.0; 12], None, None, Rotation { tables: &tables, positions: &[2] }, shape);
}

#[test]
fn same_bits_for_any_number_of_threads() {
    for variant in Variant::ALL {
        assert_same_for_any_threads(|| {
            let Gradients { qkv, bias, q_weight, k_weight } =
                operands(cases::TESTS[4]).gradients(variant, true, true, 0.0);
            [qkv, bias, q_weight, k_weight].concat()
        });
    }
}
