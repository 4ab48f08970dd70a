//! Text from a model, token by token: a forward pass over the prompt, then one for each token, with keys and values kept.
//!
//! It is the step of training (`model::step`) without its second half, on the CPU, in f32; adapters are not merged.

mod sampler;
mod text;

use std::path::Path;

use chronibench_protocol::{
    event::TokenCounts,
    spec::{Method, TrainArgs},
};
use chronicals_data::batch::{Batch, IGNORE_INDEX};
use chronicals_kernels::KernelPlan;

pub use self::{
    sampler::{Sampler, Sampling},
    text::Text,
};
use crate::{
    backend::{Backend, Work, cpu::CpuBackend},
    config::ModelConfig,
    error::Error,
    formats::peft::AdapterConfig,
    lora,
    model::{Capacity, Level, Setup, step},
    trainer::Trainer,
};

/// Most tokens of a forward pass: longer prompts are read in pieces.
const PIECE: usize = 512;

/// A model that reads one text.
pub struct Decoder {
    trainer: Trainer<CpuBackend>,
    piece: usize,
    vocab: usize,
    context: usize,
    taken: usize,
}

impl Decoder {
    /// Loads the model in a folder, with the adapter in another, to read up to `context` tokens.
    ///
    /// # Errors
    /// Weights or adapter are damaged or do not belong to the config, or the model has fewer positions.
    pub fn open(
        config: &ModelConfig,
        folder: &Path,
        adapter: Option<&Path>,
        context: usize,
    ) -> Result<Self, Error> {
        if context > config.max_positions {
            let what =
                format!("{context} tokens are wanted, the model has {} positions", config.max_positions);
            return Err(Error::new(what, "the prompt and max_new_tokens")
                .hint("give a shorter prompt or fewer new tokens"));
        }
        let method = Method::Lora(match adapter {
            None => lora::no_adapters(),
            Some(dir) => AdapterConfig::load(dir)?.lora(dir)?,
        });
        let piece = context.clamp(1, PIECE);
        let capacity = Capacity { tokens: piece, row_slots: context.max(1) };
        let plan = KernelPlan::default();
        // Nothing is kept for a backward pass.
        let setup =
            Setup { config, method: &method, capacity, plan, recompute: Level::Block, offload: false };
        let backend = CpuBackend::new(config, capacity, plan, Default::default());
        let mut trainer = Trainer::new(backend, &setup, &TrainArgs::default(), 1)?;
        trainer.load_weights(folder)?;
        match adapter {
            Some(dir) => trainer.load_adapters(dir)?,
            None => trainer.init_adapters(config, 0)?,
        }
        trainer.parts().0.keep_keys_and_values(config.layers, context);
        Ok(Self { trainer, piece, vocab: config.vocab_size, context, taken: 0 })
    }

    /// Reads the tokens that follow, and gives the logits `[V]` of the one behind them.
    ///
    /// # Errors
    /// There are none, an id is outside the vocabulary, or there is no room for them in the context.
    pub fn read(&mut self, ids: &[u32]) -> Result<Vec<f32>, Error> {
        let vocab = self.vocab;
        if ids.is_empty() || self.taken + ids.len() > self.context {
            let what =
                format!("{} tokens behind {}, in a context of {}", ids.len(), self.taken, self.context);
            return Err(Error::new(what, "generation").hint("give a prompt of at least one token"));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::new(
                format!("token id {id} is outside the vocabulary of {vocab}"),
                "the prompt",
            )
            .hint("use the tokenizer that belongs to the model"));
        }
        for piece in ids.chunks(self.piece) {
            let batch = batch(piece, self.taken);
            self.taken += piece.len();
            let (b, m) = self.trainer.parts();
            b.feed(batch);
            b.submit(Work::Evaluate, |b| step::forward(b, m, step::Purpose::Evaluation));
        }
        let model = self.trainer.model();
        self.trainer.backend().last_logits(&model.head, model.y)
    }
}

/// A row of tokens of one document, behind `before` others.
fn batch(ids: &[u32], before: usize) -> Batch {
    let n = ids.len();
    Batch {
        ids: ids.to_vec(),
        labels: vec![IGNORE_INDEX; n],
        positions: (before..before + n).map(|p| p as u32).collect(),
        cu_seqlens: vec![0, n as u32],
        rows: 1,
        row_slots: n,
        counts: TokenCounts { slots: n as u64, real: n as u64, loss: 0 },
    }
}

/// What ends an answer.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most tokens of it.
    pub max_new_tokens: usize,
    /// Ids that end it; they are not part of it.
    pub eos: Vec<u32>,
}

/// Continues `prompt`, and hands each token on as it comes.
///
/// # Errors
/// As [`Decoder::read`], and whatever `token` says.
pub fn generate(
    decoder: &mut Decoder,
    prompt: &[u32],
    sampler: &mut Sampler,
    limits: &Limits,
    mut token: impl FnMut(u32) -> Result<(), Error>,
) -> Result<Vec<u32>, Error> {
    let (mut ids, mut unread) = (prompt.to_vec(), prompt.len());
    for _ in 0..limits.max_new_tokens {
        let logits = decoder.read(&ids[ids.len() - unread..])?;
        let next = sampler.pick(logits, &ids);
        if limits.eos.contains(&next) {
            break;
        }
        ids.push(next);
        unread = 1;
        token(next)?;
    }
    Ok(ids.split_off(prompt.len()))
}
