//! One micro-batch of the plan as tensors.

use candle_core::{Device, Result, Tensor};
use chronibench_protocol::{BatchDigest, TokenStore, event::TokenCounts, plan::MicroBatch};

use crate::config::Config;

/// A rectangle of `R` rows × `S` slots. A document is one sample, or the padding behind a row's last sample; documents
/// of a row do not see each other, and each starts at position 0.
pub struct Batch {
    /// `R`.
    pub rows: usize,
    /// `S`.
    pub slots: usize,
    /// Token ids, u32 `[N]`.
    pub ids: Tensor,
    /// Id of the next token where there is one to learn, else 0; u32 `[N, 1]`.
    pub targets: Tensor,
    /// 1 where there is a target, else 0; f32 `[N, 1]`.
    pub weights: Tensor,
    /// Rotary tables and attention mask.
    pub geometry: Geometry,
    /// Slots, sample tokens and targets.
    pub counts: TokenCounts,
}

/// What attention needs to know of the documents, with `Q = (H/G)·S`: the query heads that share a key/value head lie
/// one under the other. Everything is already broadcast over `G`, once for all layers.
pub struct Geometry {
    /// `[R, G, Q, K]`.
    pub cos_q: Tensor,
    /// `[R, G, Q, K]`.
    pub sin_q: Tensor,
    /// `[R, G, S, K]`.
    pub cos_k: Tensor,
    /// `[R, G, S, K]`.
    pub sin_k: Tensor,
    /// 0 where the query may see the key, else −∞; `[R, G, Q, S]`.
    pub mask: Tensor,
}

/// A row's slots, document by document.
#[derive(Default)]
struct Slots {
    ids: Vec<u32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
    /// First slot of the slot's document, counted from the start of its row.
    document_start: Vec<usize>,
}

impl Batch {
    /// Lays out a micro-batch and adds its rows to `digest`. The plan must fit the store, which
    /// [`crate::trainer::Trainer::load`] sees to.
    ///
    /// # Errors
    /// candle cannot allocate.
    pub fn new(
        micro: &MicroBatch,
        tokens: &TokenStore,
        pad: u32,
        c: &Config,
        digest: &mut BatchDigest,
    ) -> Result<Self> {
        let (rows, slots) = (micro.rows.len(), micro.row_slots as usize);
        let mut counts = TokenCounts { slots: (rows * slots) as u64, ..Default::default() };
        let mut all = Slots::default();
        for samples in &micro.rows {
            let first = all.ids.len();
            for &sample in samples {
                let (ids, mask) = tokens.sample(sample as usize);
                all.push_sample(ids, mask, first);
                counts.real += ids.len() as u64;
            }
            all.push_padding(pad, first, slots);
            digest.row(&all.ids[first..]);
        }
        counts.loss = all.weights.iter().filter(|&&w| w > 0.0).count() as u64;
        let n = rows * slots;
        let geometry = Geometry::new(&all.document_start, rows, slots, c)?;
        Ok(Self {
            rows,
            slots,
            ids: Tensor::from_vec(all.ids, n, &Device::Cpu)?,
            targets: Tensor::from_vec(all.targets, (n, 1), &Device::Cpu)?,
            weights: Tensor::from_vec(all.weights, (n, 1), &Device::Cpu)?,
            geometry,
            counts,
        })
    }
}

impl Slots {
    fn push_sample(&mut self, ids: &[u32], mask: &[u8], row_start: usize) {
        let start = self.ids.len() - row_start;
        self.ids.extend_from_slice(ids);
        self.document_start.extend(ids.iter().map(|_| start));
        // The label of a position is the next token of its own sample; the last position has none.
        for i in 0..ids.len() {
            let learned = mask.get(i + 1).is_some_and(|&m| m != 0);
            self.targets.push(if learned { ids[i + 1] } else { 0 });
            self.weights.push(f32::from(u8::from(learned)));
        }
    }

    fn push_padding(&mut self, pad: u32, row_start: usize, slots: usize) {
        let start = self.ids.len() - row_start;
        let end = row_start + slots;
        self.ids.resize(end, pad);
        self.document_start.resize(end, start);
        self.targets.resize(end, 0);
        self.weights.resize(end, 0.0);
    }
}

impl Geometry {
    fn new(document_start: &[usize], rows: usize, slots: usize, c: &Config) -> Result<Self> {
        let (g, k, shared) = (c.kv_heads, c.head_dim, c.heads / c.kv_heads);
        let table = |f: fn(f64) -> f64| {
            let mut values = Vec::with_capacity(document_start.len() * k);
            for (i, &start) in document_start.iter().enumerate() {
                let position = (i % slots - start) as f64;
                let half = c.inv_freq.iter().map(|w| f(position * w) as f32);
                values.extend(half.clone().chain(half));
            }
            Tensor::from_vec(values, (rows, 1, slots, k), &Device::Cpu)
        };
        let mut mask = Vec::with_capacity(document_start.len() * slots);
        for (i, &start) in document_start.iter().enumerate() {
            let query = i % slots;
            mask.extend((0..slots).map(|key| {
                let visible = (start..=query).contains(&key);
                if visible { 0.0 } else { f32::NEG_INFINITY }
            }));
        }
        let mask = Tensor::from_vec(mask, (rows, 1, slots, slots), &Device::Cpu)?;
        let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
        let under =
            |t: &Tensor| t.repeat((1, 1, shared, 1))?.broadcast_as((rows, g, shared * slots, t.dim(3)?));
        let once = |t: &Tensor| t.broadcast_as((rows, g, slots, k));
        Ok(Self {
            cos_q: under(&cos)?,
            sin_q: under(&sin)?,
            cos_k: once(&cos)?,
            sin_k: once(&sin)?,
            mask: under(&mask)?,
        })
    }
}
