//! Low-rank adapters under their PEFT names.

use chronibench_protocol::{
    event::TensorInfo,
    spec::{LORA_TARGETS, LoraArgs},
};

use crate::{config::Config, error::ArmError, weights};

/// What PEFT puts before the name of the module it wraps.
pub const PREFIX: &str = "base_model.model.";

/// Names of a projection's two adapter matrices, given its name, e.g. `model.layers.0.self_attn.q_proj`.
pub fn names(projection: &str) -> (String, String) {
    (format!("{PREFIX}{projection}.lora_A.weight"), format!("{PREFIX}{projection}.lora_B.weight"))
}

/// Factor of the adapter's product: `alpha / r`, or `alpha / sqrt(r)` when rank-stabilised (arXiv 2312.03732).
pub fn scaling(args: &LoraArgs) -> f64 {
    let r = args.r as f64;
    args.lora_alpha / if args.use_rslora { r.sqrt() } else { r }
}

/// Every adapter tensor in model order: `A` `[r, in]` and `B` `[out, r]` of each targeted projection.
///
/// # Errors
/// The rank is 0, or `target_modules` is empty or names something that is no projection.
pub fn adapter_tensors(c: &Config, args: &LoraArgs) -> Result<Vec<TensorInfo>, ArmError> {
    let bad =
        |what: String, field: &str, hint: String| ArmError::invalid(what, format!("method.{field}"), hint);
    if args.r == 0 {
        return Err(bad("the rank is 0".into(), "r", "give a positive rank".into()));
    }
    let targets = &args.target_modules;
    let unknown = targets.iter().find(|t| !LORA_TARGETS.contains(&t.as_str()));
    if targets.is_empty() || unknown.is_some() {
        let what =
            unknown.map_or("no projection gets an adapter".into(), |t| format!("'{t}' is no projection"));
        return Err(bad(what, "target_modules", format!("name any of {}", LORA_TARGETS.join(", "))));
    }
    let mut all = Vec::new();
    for t in weights::model_tensors(c) {
        let Some(projection) = t.name.strip_suffix(".weight") else { continue };
        let module = projection.rsplit('.').next().unwrap_or(projection);
        if targets.iter().any(|t| t == module) {
            let (a, b) = names(projection);
            all.push(weights::info(a, [args.r, t.shape[1]]));
            all.push(weights::info(b, [t.shape[0], args.r]));
        }
    }
    Ok(all)
}
