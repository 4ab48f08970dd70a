//! What a model makes of batches without training on them: loss, gradients, and how likely each token is.

use std::collections::BTreeMap;

use chronicals_data::batch::Batch;
use chronicals_kernels::gemm::linear_forward;

use super::{Trainer, accumulate};
use crate::{
    backend::{Backend, Stager, StepStats, Work},
    error::Error,
    fit::Evaluation,
    model::step,
};

/// Rows whose logits exist at a time on the host.
const ROWS: usize = 32;

impl<B: Backend> Trainer<B> {
    /// Gradients of the mean loss over `batches` without an update, by parameter name; and that loss.
    ///
    /// # Errors
    /// The device fails.
    pub fn gradients(&mut self, batches: &[Batch]) -> Result<(f64, BTreeMap<String, Vec<f32>>), Error> {
        let count = batches.iter().map(|b| b.counts.loss).sum::<u64>().max(1);
        let stager = self.backend.stager();
        let Self { backend: b, model: m, .. } = &mut *self;
        b.begin(1.0 / count as f32);
        accumulate(b, m, batches.len(), |i| stager.stage(batches[i].clone()))?;
        let ended = b.end();
        let stats = b.stats(ended)?;
        let grads = self.backend.read(self.model.grads)?;
        let named = self.trainable().tensors.iter();
        let named = named.map(|t| (t.name.clone(), grads[t.offset..t.offset + t.len()].to_vec())).collect();
        Ok((stats.loss_sum / count as f64, named))
    }

    /// Mean loss over the loss tokens of `batches`, without training.
    ///
    /// # Errors
    /// The device fails.
    pub fn evaluate(&mut self, batches: &[Batch]) -> Result<f64, Error> {
        self.evaluate_each(batches.iter().cloned().map(Ok)).map(|e| e.loss())
    }

    /// Loss of batches that are made one after the other, without training.
    ///
    /// # Errors
    /// A batch cannot be made, or the device fails.
    pub fn evaluate_each(
        &mut self,
        batches: impl Iterator<Item = Result<Batch, Error>>,
    ) -> Result<Evaluation, Error> {
        let stager = self.backend.stager();
        let Self { backend: b, model: m, .. } = self;
        b.begin(1.0);
        for batch in batches {
            b.feed(stager.stage(batch?)?);
            b.submit(Work::Evaluate, |b| {
                step::forward(b, m, step::Purpose::Evaluation);
                b.loss_forward(&m.head, m.y);
            });
        }
        let ended = b.end();
        let StepStats { loss_sum, loss_tokens, .. } = b.stats(ended)?;
        Ok(Evaluation { loss_sum, loss_tokens })
    }

    /// The LM head on the host, `[V, D]`, for [`log_probabilities`](Self::log_probabilities) of many batches.
    ///
    /// # Errors
    /// The device fails.
    pub fn head(&self) -> Result<Vec<f32>, Error> {
        self.backend.read(self.model.head.value)
    }

    /// Loss of a batch, and the logarithm of the probability that the model gives each of its tokens after those before it in its
    /// document, nats: `[T]`, `None` for the first of a document. Whether a token is learned makes no difference to that. Logits are made
    /// on the host, in f32, from the rows that are on the device and its [head](Self::head).
    ///
    /// # Errors
    /// The device fails.
    pub fn log_probabilities(
        &mut self,
        batch: &Batch,
        head: &[f32],
    ) -> Result<(Evaluation, Vec<Option<f64>>), Error> {
        let loss = self.evaluate_each(std::iter::once(Ok(batch.clone())))?;
        let y = self.backend.read(self.model.y)?;
        let hidden = self.layout.get("model.norm.weight").expect("every model has one").len();
        let vocab = head.len() / hidden;
        let mut all = vec![None; batch.ids.len()];
        for document in batch.cu_seqlens.array_windows().map(|[a, b]| *a as usize..*b as usize) {
            let slots: Vec<usize> = document.collect();
            // The last row of a document is about no token of it.
            for rows in slots[..slots.len() - 1].chunks(ROWS) {
                let (from, n) = (rows[0], rows.len());
                let mut logits = vec![0.0; n * vocab];
                let x = &y[from * hidden..(from + n) * hidden];
                linear_forward(&mut logits, x, head, n, vocab, hidden, 0.0);
                for (slot, row) in rows.iter().zip(logits.chunks(vocab)) {
                    all[slot + 1] = Some(log_softmax(row, batch.ids[slot + 1] as usize));
                }
            }
        }
        Ok((loss, all))
    }
}

/// `z_i − log Σ e^z`.
fn log_softmax(z: &[f32], i: usize) -> f64 {
    let most = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = z.iter().map(|z| f64::from(z - most).exp()).sum();
    f64::from(z[i] - most) - sum.ln()
}
