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

/// Most bf16 FLOP/s with f32 sums, without sparsity, of a GPU by its name: from the makers' data sheets. `None` for a variant that is
/// not in the list, such as a laptop's, or a part of a GPU.
pub fn peak_flops(device: &str) -> Option<f64> {
    const TFLOPS: [(&str, f64); 12] = [
        ("GH200", 989.4),
        ("H200 NVL", 835.5),
        ("H200", 989.4),
        ("H100 PCIe", 756.5),
        ("H100 NVL", 835.5),
        ("H100", 989.4),
        ("A100", 312.0),
        ("L40S", 362.05),
        ("L40", 181.05),
        ("L4", 121.0),
        ("RTX 4090", 165.2),
        ("RTX 3090", 71.0),
    ];
    let words = |name: &'static str| name.split(' ');
    let has = |word: &str| parts(device).any(|part| part.eq_ignore_ascii_case(word));
    let is = |name| {
        words(name).all(has)
            && parts(device)
                .all(|part| says_nothing(part) || words(name).any(|w| w.eq_ignore_ascii_case(part)))
    };
    TFLOPS.iter().find(|(name, _)| is(name)).map(|(_, tflops)| tflops * 1e12)
}

/// Words of a device's name.
fn parts(device: &str) -> impl Iterator<Item = &str> {
    device.split([' ', '-']).filter(|part| !part.is_empty())
}

/// A word that does not change how fast a GPU computes: its maker, its memory, its socket.
fn says_nothing(part: &str) -> bool {
    let part = part.to_ascii_uppercase();
    let size = part.trim_end_matches('B').strip_suffix('G');
    ["NVIDIA", "GEFORCE", "PCIE"].contains(&part.as_str())
        || part.starts_with("HBM")
        || part.starts_with("SXM")
        || size.is_some_and(|n| n.parse::<u32>().is_ok())
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

    #[test]
    fn a_peak_is_that_of_the_whole_name() {
        let known = [
            ("NVIDIA H100 80GB HBM3", 989.4),
            ("NVIDIA H100 PCIe", 756.5),
            ("NVIDIA H200 NVL", 835.5),
            ("NVIDIA GH200 144G HBM3e", 989.4),
            ("NVIDIA A100-SXM4-80GB", 312.0),
            ("NVIDIA A100-PCIE-40GB", 312.0),
            ("NVIDIA L40S", 362.05),
            ("NVIDIA L40", 181.05),
            ("NVIDIA L4", 121.0),
            ("NVIDIA GeForce RTX 4090", 165.2),
        ];
        for (name, tflops) in known {
            assert_eq!(peak_flops(name), Some(tflops * 1e12), "{name}");
        }
        for name in [
            "cpu",
            "NVIDIA",
            "NVIDIA H20",
            "NVIDIA L400",
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA GeForce RTX 4090 D",
            "NVIDIA GeForce RTX 3090 Ti",
            "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
            "GRID A100-10C",
        ] {
            assert_eq!(peak_flops(name), None, "{name}");
        }
    }
}
