//! How an update is rounded into weights that are kept in bf16: to nearest, where most small updates are lost, or stochastically, where
//! none is lost on average.

use chronibench_protocol::{
    event::Hello,
    parity::{WEIGHT_ROUNDING, canonical},
};
use serde_json::Value;

/// Programs whose AdamW is PyTorch's or that of bitsandbytes, both of which round to nearest.
const TO_NEAREST: [&str; 4] = ["hf-cpu", "liger", "trl", "unsloth"];

/// The arm's weights are in bf16, so that updates are rounded into them.
pub(crate) fn rounds(hello: &Hello) -> bool {
    hello.precision.weights == "bf16"
}

/// How the arm of `runner` rounds: what it tells, else what its optimizer is known to do; `None` where neither is known.
pub(crate) fn rounding(runner: &str, hello: &Hello) -> Option<Value> {
    if let Some(told) = hello.settings.get(WEIGHT_ROUNDING) {
        return Some(told.clone());
    }
    if !rounds(hello) {
        return Some("none".into());
    }
    // Some weights in bf16 beside others in f32, which have the masters' name then, are rounded as all are.
    let masters = hello.precision.master == "f32";
    let adamw = || {
        let told = hello.settings.iter().map(|(name, value)| canonical(name, value.clone()));
        let optimizers: Vec<Value> =
            told.filter(|(name, _)| name == "optimizer").map(|(_, value)| value).collect();
        optimizers.iter().all(|o| ["adamw", "adamw_8bit"].iter().any(|known| o == known))
    };
    match runner {
        _ if masters => Some("nearest, of masters".into()),
        "native" => Some("stochastic".into()),
        rival if TO_NEAREST.contains(&rival) && adamw() => Some("nearest".into()),
        _ => None,
    }
}
