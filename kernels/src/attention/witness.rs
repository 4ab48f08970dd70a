//! What attention should leave at sampled tokens, by the equations of the contract in f64.

use rayon::prelude::*;

use super::Shape;
use crate::gpu::{
    GpuError,
    bench::{Compared, Look, Operand, Testbed, Values, sample},
};

/// Rounding of probabilities and outputs to bf16; means over many values are small, what they are rounded to is as small.
const TOLERANCE: f64 = 2e-2;

/// f32 sums of exponentials.
const LSE_TOLERANCE: f64 = 1e-5;

/// Queries of a key that is looked at, at most: each costs a whole row of scores.
const MOST_QUERIES: usize = 512;

/// A batch in f64.
pub(super) struct Witness<'a> {
    /// Heads.
    pub shape: Shape,
    /// Document boundaries.
    pub cu_seqlens: &'a [u32],
    /// Packed rows.
    pub qkv: &'a Values,
    /// Gradient of the output.
    pub dout: &'a Values,
}

/// Keys, values and the rest of one head up to a query.
struct Query {
    out: Vec<f64>,
    lse: f64,
    p: Vec<f64>,
    /// Gradients of the scores.
    ds: Vec<f64>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Witness<'_> {
    fn tokens(&self) -> usize {
        *self.cu_seqlens.last().expect("boundaries") as usize
    }

    /// First token and end of a token's document.
    fn document(&self, t: usize) -> (usize, usize) {
        let after = self.cu_seqlens.partition_point(|b| *b as usize <= t);
        (self.cu_seqlens[after - 1] as usize, self.cu_seqlens[after] as usize)
    }

    /// Columns of one head of a packed row.
    fn columns(&self, t: usize, head: usize) -> Vec<f64> {
        let k = self.shape.head_dim;
        self.qkv.elements(t * self.shape.packed() + head * k, k)
    }

    fn query(&self, t: usize, h: usize) -> Query {
        let (s, k) = (self.shape, self.shape.head_dim);
        let (begin, _) = self.document(t);
        let (q, g, scale) = (self.columns(t, h), h / s.group(), 1.0 / (k as f64).sqrt());
        let at = |j: usize, head: usize| j * s.packed() + head * k;
        let keys = begin..t + 1;
        let scores: Vec<f64> = keys.clone().map(|j| self.qkv.dot(at(j, s.heads + g), &q) * scale).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + scores.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
        let p: Vec<f64> = scores.iter().map(|x| (x - lse).exp()).collect();
        let d = self.dout.elements(t * s.out() + h * k, k);
        let (mut out, mut dp) = (vec![0.0; k], Vec::with_capacity(p.len()));
        for (j, p) in keys.zip(&p) {
            let v = self.columns(j, s.heads + s.kv_heads + g);
            out.iter_mut().zip(&v).for_each(|(o, v)| *o += p * v);
            dp.push(dot(&d, &v));
        }
        // Of the output as it is stored: where one key takes nearly all, δ is most of what it is subtracted from.
        let stored: Vec<f64> = out.iter().map(|o| f64::from(half::bf16::from_f64(*o))).collect();
        let delta = dot(&d, &stored);
        let ds = p.iter().zip(dp).map(|(p, dp)| p * (dp - delta) * scale).collect();
        Query { out, lse, p, ds }
    }

    /// out, and lse where it is kept, of sampled tokens, all heads.
    pub(super) fn forward<B: Testbed>(
        &self,
        on: &B,
        out: &Operand<B::Memory>,
        lse: Option<&Operand<B::Memory>>,
        slack: f64,
    ) -> Result<Vec<Compared>, GpuError> {
        let (s, tokens) = (self.shape, self.tokens());
        let [mut outs, mut sums] = [0; 2].map(|_| Look::default());
        for t in sample(tokens, 6) {
            let heads: Vec<Query> = (0..s.heads).into_par_iter().map(|h| self.query(t, h)).collect();
            let row = heads.iter().flat_map(|q| q.out.clone()).collect();
            outs.add(t * s.out(), out.now(on, t * s.out(), s.out())?, row);
            for (h, q) in heads.iter().enumerate() {
                if let Some(lse) = lse {
                    sums.add(h * tokens + t, lse.now(on, h * tokens + t, 1)?, vec![q.lse]);
                }
            }
        }
        let mut all = vec![outs.against_rows("out", slack * TOLERANCE)];
        all.extend(lse.map(|_| sums.against_largest("lse", slack * LSE_TOLERANCE)));
        Ok(all)
    }

    /// dq of sampled tokens, all heads; dk and dv of sampled keys, of the first and the last of their heads.
    pub(super) fn backward<B: Testbed>(
        &self,
        on: &B,
        dqkv: &Operand<B::Memory>,
        slack: f64,
    ) -> Result<Vec<Compared>, GpuError> {
        let (s, k, tokens) = (self.shape, self.shape.head_dim, self.tokens());
        let [mut dq, mut dk, mut dv] = [0; 3].map(|_| Look::default());
        for t in sample(tokens, 6) {
            let (begin, _) = self.document(t);
            let of_head = |h: usize| -> Vec<f64> {
                let mut sum = vec![0.0; k];
                for (j, ds) in self.query(t, h).ds.iter().enumerate() {
                    let key = self.columns(begin + j, s.heads + h / s.group());
                    sum.iter_mut().zip(key).for_each(|(sum, x)| *sum += ds * x);
                }
                sum
            };
            let row: Vec<f64> = (0..s.heads).into_par_iter().flat_map_iter(of_head).collect();
            dq.add(t * s.packed(), dqkv.now(on, t * s.packed(), s.out())?, row);
        }
        for (j, g) in sample(tokens, 3).into_iter().flat_map(|j| [(j, 0), (j, s.kv_heads - 1)]) {
            let (_, end) = self.document(j);
            let j = j.max(end.saturating_sub(MOST_QUERIES));
            let [of_k, of_v] = self.key(j, g);
            let at = |head: usize| j * s.packed() + head * k;
            let (at_k, at_v) = (at(s.heads + g), at(s.heads + s.kv_heads + g));
            dk.add(at_k, dqkv.now(on, at_k, k)?, of_k);
            dv.add(at_v, dqkv.now(on, at_v, k)?, of_v);
        }
        Ok([("dq", dq), ("dk", dk), ("dv", dv)]
            .map(|(what, look)| look.against_rows(what, slack * TOLERANCE))
            .to_vec())
    }

    /// dk and dv of a key: sums over the queries of its document that see it, and over the heads that share it.
    fn key(&self, j: usize, g: usize) -> [Vec<f64>; 2] {
        let (s, k) = (self.shape, self.shape.head_dim);
        let (begin, end) = self.document(j);
        let heads = g * s.group()..(g + 1) * s.group();
        let queries: Vec<(usize, usize)> =
            (j..end).flat_map(|t| heads.clone().map(move |h| (t, h))).collect();
        let terms: Vec<[Vec<f64>; 2]> = queries
            .into_par_iter()
            .map(|(t, h)| {
                let query = self.query(t, h);
                let (ds, p) = (query.ds[j - begin], query.p[j - begin]);
                let q = self.columns(t, h).into_iter().map(|q| ds * q).collect();
                let d = self.dout.elements(t * s.out() + h * k, k).into_iter().map(|d| p * d).collect();
                [q, d]
            })
            .collect();
        terms.into_iter().fold([0; 2].map(|_| vec![0.0; k]), |mut sums, terms| {
            for (sum, term) in sums.iter_mut().zip(terms) {
                sum.iter_mut().zip(term).for_each(|(s, x)| *s += x);
            }
            sums
        })
    }
}
