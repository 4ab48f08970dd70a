//! Which settings make two trainings the same work, under one name each.

use serde_json::Value;

/// Settings that every comparison accounts for, beside those of the specification: what an arm's `hello` should say. One that neither
/// side says is named as unobservable, not taken for equal.
pub const KEYS: [&str; 8] = [
    // What is kept from the forward to the backward pass: `none`, `block`, or the program's own name for it.
    "recompute",
    // Attention's implementation: `sdpa`, `flash_attention_2`, `eager`, `xformers`, or a path of our own kernels.
    "attention",
    // Whether a compiler rewrote the model: `false`, or its name.
    "compile",
    // The optimizer: `adamw`, `adamw_8bit`.
    "optimizer",
    // What the gradient of a step is divided by: `step_loss_tokens`, or `micro_batch_mean`.
    "loss_normalization",
    // Global gradient norm above which gradients are scaled down; 0 for none.
    "max_grad_norm",
    // How rows were filled.
    "packing",
    // Of whatever the arm draws itself: dropout, stochastic rounding.
    "seed",
];

/// What an arm's `hello` calls the way in which it rounds updates into weights in bf16: `nearest`, `stochastic`, or
/// `nearest, of masters` where f32 masters are updated and bf16 weights are made of them.
pub const WEIGHT_ROUNDING: &str = "weight_rounding";

/// The same in comparisons: a matter of number formats, which `precision` declares with the others.
pub const ROUNDING: &str = "precision.rounding";

/// A setting under the name that comparisons have for it: Hugging Face's and Chronicals' own names of one thing are one name, and
/// spellings of one AdamW are one.
pub fn canonical(name: &str, value: Value) -> (String, Value) {
    let words = |name: &str, value| (name.to_string(), value);
    match (name, &value) {
        ("gradient_checkpointing", Value::Bool(on)) => {
            words("recompute", if *on { "block" } else { "none" }.into())
        }
        ("gradient_checkpointing", _) => words("recompute", value),
        ("attention_path" | "attn_implementation", _) => words("attention", value),
        (WEIGHT_ROUNDING, _) => words(ROUNDING, value),
        ("torch_compile", _) => words("compile", value),
        ("optim", _) => words("optimizer", optimizer(value)),
        ("optimizer", _) => words("optimizer", optimizer(value)),
        _ => words(name, value),
    }
}

/// Kernels of one AdamW in f32 or bf16 are one optimizer; 8-bit moments are another.
fn optimizer(value: Value) -> Value {
    match value.as_str() {
        Some("adamw_torch" | "adamw_torch_fused" | "adamw_hf") => "adamw".into(),
        Some("adamw_8bit" | "adamw_bnb_8bit") => "adamw_8bit".into(),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_thing_are_one() {
        let same = [
            ("gradient_checkpointing", false.into(), "recompute", Value::from("none")),
            ("gradient_checkpointing", true.into(), "recompute", "block".into()),
            ("gradient_checkpointing", "unsloth".into(), "recompute", "unsloth".into()),
            ("attn_implementation", "sdpa".into(), "attention", "sdpa".into()),
            ("optim", "adamw_torch_fused".into(), "optimizer", "adamw".into()),
            ("optimizer", "adamw_bnb_8bit".into(), "optimizer", "adamw_8bit".into()),
            ("weight_rounding", "nearest".into(), "precision.rounding", "nearest".into()),
            ("learning_rate", 1.0.into(), "learning_rate", 1.0.into()),
        ];
        for (name, value, to, as_value) in same {
            assert_eq!(canonical(name, value), (to.to_string(), as_value), "{name}");
        }
    }
}
