//! Floating-point operations of the model, for MFU (arXiv 2204.02311, appendix B): what the mathematics asks for of the tokens that
//! samples have, not what is made again or spent on padding.

use chronibench_protocol::{TokenStore, plan::StepPlan, spec::Method};

use crate::{
    config::ModelConfig,
    error::Error,
    params::{Layout, PROJECTION_GROUPS, projection_shape},
};

/// Operations of forward and backward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flops {
    /// For each token: products with weights.
    pub per_token: f64,
    /// For each pair of a query and a key that it sees: scores and their mean of values, in all layers.
    pub per_pair: f64,
}

impl Flops {
    /// Of a model and what trains of it. A product takes two operations a weight and token; its backward pass two for the gradient of
    /// the input and, if the weight trains, two for that of the weight.
    ///
    /// # Errors
    /// The method's settings make no sense.
    pub fn of(c: &ModelConfig, method: &Method) -> Result<Self, Error> {
        let projections: usize = PROJECTION_GROUPS
            .iter()
            .copied()
            .flatten()
            .map(|p| projection_shape(c, p))
            .map(|(n, k)| n * k)
            .sum();
        let weights = (c.layers * projections + c.vocab_size * c.hidden_size) as f64;
        let per_token = match method {
            Method::Full {} => 6.0 * weights,
            Method::Lora(lora) => 4.0 * weights + 6.0 * Layout::adapters(c, lora)?.len() as f64,
        };
        Ok(Self { per_token, per_pair: 3.0 * 4.0 * (c.layers * c.attention_width()) as f64 })
    }

    /// Of one step of a plan.
    pub fn of_step(&self, step: &StepPlan, tokens: &TokenStore) -> f64 {
        let rows = step.micro_batches.iter().flat_map(|m| &m.rows);
        rows.flatten().map(|&s| self.of_document(tokens.sample(s as usize).0.len() as f64)).sum()
    }

    fn of_document(&self, length: f64) -> f64 {
        self.per_token * length + self.per_pair * length * (length + 1.0) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn operations_are_counted_by_hand() {
        let text = r#"{"model_type":"llama","vocab_size":10,"hidden_size":4,"intermediate_size":6,
            "num_hidden_layers":2,"num_attention_heads":2,"num_key_value_heads":1}"#;
        let c = ModelConfig::parse(text, Path::new("config.json")).unwrap();
        // q 4·4, k and v 2·4 each, o 4·4, gate, up and down 6·4 each; the head 10·4.
        let weights = 2.0 * (16.0 + 16.0 + 16.0 + 72.0) + 40.0;
        let full = Flops::of(&c, &Method::Full {}).unwrap();
        assert_eq!(full, Flops { per_token: 6.0 * weights, per_pair: 12.0 * 2.0 * 4.0 });
        let lora: Method =
            serde_json::from_str(r#"{"type":"lora","r":2,"lora_alpha":2,"target_modules":["q_proj"]}"#)
                .unwrap();
        let lora = Flops::of(&c, &lora).unwrap();
        assert_eq!(lora.per_token, 4.0 * weights + 6.0 * 2.0 * (2.0 * 4.0 + 4.0 * 2.0));
        assert_eq!(full.of_document(3.0), full.per_token * 3.0 + full.per_pair * 6.0);
    }
}
