//! Small models with drawn weights, of widths that goldens do not have, to compare one backend with another.

use std::path::PathBuf;

use chronicals::{
    KernelPlan, Trainer,
    backend::{Allocator, Backend, Component, cpu::CpuBackend},
    config::ModelConfig,
    fit::Batches,
    init,
    model::Capacity,
    params::Layout,
    weights,
};
use chronicals_kernels::cases::values;

use crate::golden::Case;

/// A model on disk, with the vocabulary of the goldens.
pub struct Model {
    dir: tempfile::TempDir,
    /// The architecture.
    pub config: ModelConfig,
}

impl Model {
    /// Two layers, four heads of `head_dim` with two of keys, weights rounded to bf16. Norms and biases are drawn too.
    pub fn new(family: &str, head_dim: usize) -> Self {
        Self::deep(family, head_dim, 2)
    }

    /// The same with so many layers.
    pub fn deep(family: &str, head_dim: usize, layers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let tied = family != "llama";
        std::fs::write(
            &path,
            format!(
                r#"{{"model_type":"{family}","vocab_size":96,"hidden_size":64,"intermediate_size":48,
                   "num_hidden_layers":{layers},"num_attention_heads":4,"num_key_value_heads":2,"head_dim":{head_dim},
                   "tie_word_embeddings":{tied},"initializer_range":0.1}}"#
            ),
        )
        .unwrap();
        let config = ModelConfig::load(&path).unwrap();
        let model = Self { dir, config };
        model.draw();
        weights::round_to_bf16(&model.weights()).unwrap();
        model
    }

    fn draw(&self) {
        let (c, layout) = (&self.config, Layout::model(&self.config));
        let capacity = Capacity { tokens: 1, row_slots: 1 };
        let mut b = CpuBackend::new(c, capacity, KernelPlan::default(), Default::default());
        let all = b.alloc(Component::Weights, layout.len());
        init::fill(&mut b, c, &layout, all, 1).unwrap();
        for (i, t) in layout.tensors.iter().enumerate().filter(|(_, t)| t.shape.len() == 1) {
            let view = all.slice(t.offset, t.len());
            let drawn = values(i as u64, t.len()).into_iter().zip(b.read(view).unwrap());
            let moved: Vec<f32> = drawn.map(|(noise, mean)| mean + 0.2 * noise).collect();
            b.write(view, &moved).unwrap();
        }
        weights::save(&b, &[(&layout, all)], &self.weights()).unwrap();
    }

    /// The config on disk.
    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("config.json")
    }

    /// The weights on disk.
    pub fn weights(&self) -> PathBuf {
        self.dir.path().join("model.safetensors")
    }

    /// A trainer on these weights; under LoRA with adapters whose B is not 0.
    pub fn trainer_on<B: Backend>(&self, case: &Case, batches: &Batches, backend: B) -> Trainer<B> {
        let setup = case.setup(&self.config, batches);
        let mut trainer = Trainer::new(backend, &setup, &case.args, batches.steps()).unwrap();
        trainer.load_weights(&self.weights()).unwrap();
        if trainer.model().adapters.is_some() {
            let file = self.dir.path().join("adapter.safetensors");
            self.draw_adapters(trainer.trainable(), &file);
            trainer.load_adapters(&file).unwrap();
        }
        trainer
    }

    fn draw_adapters(&self, layout: &Layout, file: &std::path::Path) {
        let capacity = Capacity { tokens: 1, row_slots: 1 };
        let mut b = CpuBackend::new(&self.config, capacity, KernelPlan::default(), Default::default());
        let all = b.alloc(Component::Adapters, layout.len());
        let drawn: Vec<f32> = values(9, layout.len()).into_iter().map(|v| 0.1 * v).collect();
        b.write(all, &drawn).unwrap();
        weights::save(&b, &[(layout, all)], file).unwrap();
    }

    /// The same on the processor.
    pub fn trainer(&self, case: &Case, batches: &Batches) -> Trainer<CpuBackend> {
        let backend = CpuBackend::new(&self.config, batches.capacity(), case.kernels, case.loss);
        self.trainer_on(case, batches, backend)
    }
}
