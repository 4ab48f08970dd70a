//! The largest singular values of a matrix with their vectors, in f64, by iteration of a subspace (Halko, Martinsson and Tropp, arXiv
//! 0909.4061, algorithms 4.4 and 5.1). Deterministic: one thread works on a matrix, and starts from the numbers that it is given.

/// `W ≈ Σ s_i·u_i·v_iᵀ`.
#[derive(Clone, Debug)]
pub struct Largest {
    /// Left vectors, one a row: `[r, N]`.
    pub u: Matrix,
    /// Singular values, falling.
    pub s: Vec<f64>,
    /// Right vectors, one a row: `[r, K]`.
    pub v: Matrix,
}

/// Rows of f64, end to end.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    /// `rows × columns` elements.
    pub data: Vec<f64>,
}

/// Residual of an eigenvector of `W·Wᵀ` over the largest eigenvalue, at which it is taken for one.
const CONVERGED: f64 = 1e-9;

/// Iterations between two looks at the residuals, and the most there are. Vectors that have not come to rest by then are of
/// singular values that are equal to many digits, among which any choice is as good.
const LOOK: usize = 4;
const MOST: usize = 400;

impl Matrix {
    fn zero(rows: usize, columns: usize) -> Self {
        Self { rows, columns, data: vec![0.0; rows * columns] }
    }

    /// Of elements made in order.
    pub fn from_fn(rows: usize, columns: usize, element: impl FnMut(usize) -> f64) -> Self {
        Self { rows, columns, data: (0..rows * columns).map(element).collect() }
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.columns..][..self.columns]
    }

    /// `self · other`, either of them transposed if so marked.
    fn times(&self, transposed: bool, other: &Self, other_transposed: bool) -> Self {
        let sides = |m: &Self, t: bool| if t { (m.columns, m.rows) } else { (m.rows, m.columns) };
        let ((m, k), (inner, n)) = (sides(self, transposed), sides(other, other_transposed));
        assert_eq!(k, inner, "the matrices fit");
        let mut out = Self::zero(m, n);
        let strides = |a: &Self, t: bool| {
            let row = a.columns as isize;
            if t { (row, 1) } else { (1, row) }
        };
        let ((a_cs, a_rs), (b_cs, b_rs)) = (strides(self, transposed), strides(other, other_transposed));
        let (a, b, c) = (self.data.as_ptr(), other.data.as_ptr(), out.data.as_mut_ptr());
        // SAFETY: extents and strides are those of the three buffers, of which `out` is a new one.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c,
                1,
                n as isize,
                false,
                a,
                a_cs,
                a_rs,
                b,
                b_cs,
                b_rs,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        out
    }

    /// Makes the rows orthonormal, by Gram and Schmidt, each twice. Rows that follow from those before become zero.
    fn orthonormalise(&mut self) {
        let columns = self.columns;
        for i in 0..self.rows {
            let (before, row) = self.data.split_at_mut(i * columns);
            let row = &mut row[..columns];
            let whole = dot(row, row).sqrt();
            for _ in 0..2 {
                for other in before.chunks(columns) {
                    let part = dot(row, other);
                    row.iter_mut().zip(other).for_each(|(x, o)| *x -= part * o);
                }
            }
            let norm = dot(row, row).sqrt();
            let factor = if norm > 1e-14 * whole { 1.0 / norm } else { 0.0 };
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// The `r` largest singular values of `w` `[N, K]`. With `niter` as many iterations as `torch.svd_lowrank` makes of that name; without,
/// until they are found. `start` has a row of `K` random numbers for each vector of the subspace, [`subspace`] at least.
///
/// # Panics
/// If `r` exceeds N or K, or `start` does not fit.
pub fn largest(w: &Matrix, r: usize, niter: Option<u32>, start: &Matrix) -> Largest {
    assert!(r <= w.rows.min(w.columns) && start.rows >= r && start.columns == w.columns, "operands fit");
    let mut u = start.times(false, w, true);
    u.orthonormalise();
    for i in 0..niter.map_or(MOST, |n| n as usize) {
        let b = u.times(false, w, false);
        let mut next = b.times(false, w, true);
        if niter.is_none() && i % LOOK == LOOK - 1 && is_found(&u, &b, &next, r) {
            break;
        }
        if niter.is_some() {
            // As torch does: the right side too, so that small values survive many iterations.
            let mut v = b;
            v.orthonormalise();
            next = v.times(false, w, true);
        }
        next.orthonormalise();
        u = next;
    }
    within(w, &u, r)
}

/// Rows of `start` that [`largest`] wants for `r` values of a matrix `[n, k]`.
pub fn subspace(r: usize, niter: Option<u32>, (n, k): (usize, usize)) -> usize {
    if niter.is_some() { r } else { (2 * r + 8).min(n).min(k) }
}

/// Whether the `r` largest eigenvectors of `W·Wᵀ` lie in the span of `u`, where `b = u·W` and `image = b·Wᵀ`.
fn is_found(u: &Matrix, b: &Matrix, image: &Matrix, r: usize) -> bool {
    let (values, vectors) = eigen(b.times(false, b, true));
    let (mapped, own) = (vectors.times(false, image, false), vectors.times(false, u, false));
    (0..r).all(|i| {
        let off = mapped.row(i).iter().zip(own.row(i)).map(|(m, o)| (m - values[i] * o).powi(2));
        off.sum::<f64>().sqrt() <= CONVERGED * values[0]
    })
}

/// The largest singular values of `w` as far as the orthonormal rows of `u` reach.
fn within(w: &Matrix, u: &Matrix, r: usize) -> Largest {
    let b = u.times(false, w, false);
    let (values, vectors) = eigen(b.times(false, &b, true));
    let s: Vec<f64> = values.iter().take(r).map(|v| v.max(0.0).sqrt()).collect();
    let first =
        Matrix { rows: r, columns: vectors.columns, data: vectors.data[..r * vectors.columns].to_vec() };
    let mut v = first.times(false, &b, false);
    for (row, s) in v.data.chunks_mut(w.columns).zip(&s) {
        let factor = if *s > 0.0 { 1.0 / s } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= factor);
    }
    Largest { u: first.times(false, u, false), s, v }
}

/// Eigenvalues of a symmetric matrix, falling, and their vectors, one a row; by Jacobi's rotations.
fn eigen(mut a: Matrix) -> (Vec<f64>, Matrix) {
    let n = a.rows;
    let mut vectors = Matrix::from_fn(n, n, |i| f64::from(u8::from(i / n == i % n)));
    let size = a.data.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    for _ in 0..60 {
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                if a.data[p * n + q].abs() > 1e-16 * size {
                    rotate(&mut a, &mut vectors, p, q);
                    rotated = true;
                }
            }
        }
        if !rotated {
            break;
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| a.data[j * n + j].total_cmp(&a.data[i * n + i]));
    let values = order.iter().map(|i| a.data[i * n + i]).collect();
    let data = order.iter().flat_map(|i| vectors.row(*i).to_vec()).collect();
    (values, Matrix { rows: n, columns: n, data })
}

/// Makes `a[p][q]` zero.
fn rotate(a: &mut Matrix, vectors: &mut Matrix, p: usize, q: usize) {
    let n = a.rows;
    let theta = (a.data[q * n + q] - a.data[p * n + p]) / (2.0 * a.data[p * n + q]);
    let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let t = if theta == 0.0 { 1.0 } else { t };
    let c = 1.0 / t.hypot(1.0);
    let s = t * c;
    let turn = |data: &mut [f64], i: usize, j: usize| {
        let (x, y) = (data[i], data[j]);
        (data[i], data[j]) = (c * x - s * y, s * x + c * y);
    };
    for k in 0..n {
        turn(&mut a.data, k * n + p, k * n + q);
    }
    for k in 0..n {
        turn(&mut a.data, p * n + k, q * n + k);
        turn(&mut vectors.data, p * n + k, q * n + k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random.
    fn noise(seed: u64, rows: usize, columns: usize) -> Matrix {
        let mut state = seed;
        Matrix::from_fn(rows, columns, |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        })
    }

    fn orthonormal(m: &Matrix) -> bool {
        let gram = m.times(false, m, true);
        gram.data
            .iter()
            .enumerate()
            .all(|(i, x)| (x - f64::from(u8::from(i / m.rows == i % m.rows))).abs() < 1e-10)
    }

    /// `W = Σ s·u·vᵀ` with values of choice is taken apart again.
    #[test]
    fn values_and_vectors_are_found() {
        for (n, k) in [(40, 24), (24, 40), (30, 30)] {
            let (mut u, mut v) = (noise(1, 20, n), noise(2, 20, k));
            u.orthonormalise();
            v.orthonormalise();
            let s: Vec<f64> = (0..20).map(|i| 3.0 * 0.9f64.powi(i)).collect();
            let mut scaled = u.clone();
            scaled.data.chunks_mut(n).zip(&s).for_each(|(row, s)| row.iter_mut().for_each(|x| *x *= s));
            let w = scaled.times(true, &v, false);
            let found = largest(&w, 5, None, &noise(3, subspace(5, None, (n, k)), k));
            for (i, (got, s)) in found.s.iter().zip(&s).enumerate() {
                assert!((got - s).abs() < 1e-9, "{n}x{k}: {:?}", found.s);
                assert!((dot(found.u.row(i), u.row(i)).abs() - 1.0).abs() < 1e-7, "{n}x{k} u{i}");
                assert!((dot(found.v.row(i), v.row(i)).abs() - 1.0).abs() < 1e-7, "{n}x{k} v{i}");
            }
            assert!(orthonormal(&found.u) && orthonormal(&found.v));
            // Few iterations come near; none at all is a random guess.
            let near = |niter| {
                let f = largest(&w, 5, Some(niter), &noise(3, 5, k));
                assert!(orthonormal(&f.u));
                f.s.iter().zip(&s).map(|(got, s)| s - got).fold(0.0, f64::max)
            };
            assert!(
                near(16) < 0.1 && near(16) < near(1) && near(1) < near(0),
                "{} {} {}",
                near(16),
                near(1),
                near(0)
            );
        }
    }

    #[test]
    fn a_matrix_of_lower_rank_has_zeros() {
        let (a, b) = (noise(4, 12, 2), noise(5, 2, 9));
        let w = a.times(false, &b, false);
        let found = largest(&w, 4, None, &noise(6, subspace(4, None, (12, 9)), 9));
        assert!(found.s[1] > 1e-3 && found.s[2] < 1e-7 && found.s[3] < 1e-7, "{:?}", found.s);
        assert!(found.u.data.iter().chain(&found.v.data).all(|x| x.is_finite()));
    }

    #[test]
    fn eigenvalues_of_a_known_matrix() {
        let (values, vectors) = eigen(Matrix { rows: 2, columns: 2, data: vec![2.0, 1.0, 1.0, 2.0] });
        assert!((values[0] - 3.0).abs() < 1e-14 && (values[1] - 1.0).abs() < 1e-14, "{values:?}");
        assert!((vectors.data[0].abs() - 0.5f64.sqrt()).abs() < 1e-14);
    }
}
