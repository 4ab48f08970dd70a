//! Settings for a device of some size: the micro-batch, what is recomputed and what the optimizer keeps, found by the plan of memory.

use std::{fmt, str::FromStr};

use chronibench_protocol::spec::{Dtype, Method, PrecisionArgs, States};

use crate::{
    backend::cuda::{
        Formats,
        plan::{self, Gpu},
    },
    config::ModelConfig,
    error::Error,
    memory::{self, Accounting, elements_for, gigabytes},
    model::{Capacity, Level, Setup},
};

/// Rows that one optimizer step learns from.
pub const BATCH_ROWS: u32 = 16;

/// Tokens of a micro-batch from which on a GPU is busy.
const BUSY: u32 = 4096;

/// A device, by its memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// The processor of this machine.
    Cpu,
    /// A GPU with so many GB, as sold.
    Gpu(u32),
}

impl Size {
    /// Names of the GPUs in common use.
    pub const NAMES: [&'static str; 5] = ["cpu", "24gb", "40gb", "80gb", "141gb"];

    /// Bytes that a plan may take: the rest is for driver, machine code and graphs, or other programs.
    ///
    /// # Errors
    /// The system does not tell how much memory is free.
    pub fn room(self) -> Result<u64, Error> {
        match self {
            Self::Gpu(gb) => Ok(u64::from(gb) * 900_000_000),
            Self::Cpu => memory::available_bytes().map(|free| free / 10 * 9).ok_or_else(|| {
                Error::new("the system does not tell how much memory is free", "memory")
                    .hint("write the settings by hand, see `chronicals train --help`")
            }),
        }
    }
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let gb = name.strip_suffix("gb").and_then(|n| n.parse().ok()).filter(|n| (1..10_000).contains(n));
        match (name, gb) {
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(gb)) => Ok(Self::Gpu(gb)),
            _ => Err(Error::new(format!("'{name}' is not a size"), "--preset")
                .hint(format!("give the memory of a GPU in GB, or cpu: {}", Self::NAMES.join(", ")))),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(gb) => write!(f, "{gb}gb"),
        }
    }
}

/// What a device has room for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// Rows of a micro-batch.
    pub rows: u32,
    /// Micro-batches of a step.
    pub accumulation: u32,
    /// What the backward pass makes again.
    pub level: Level,
    /// What the optimizer keeps; the device's own where there is no choice.
    pub states: Option<States>,
    /// Bytes planned.
    pub planned: u64,
}

/// The first that fits, of what is best first: states in f32 before 8-bit ones, large enough micro-batches before less work for each,
/// and last whatever fits at all.
///
/// # Errors
/// Nothing fits, or the method's settings make no sense.
pub fn find(c: &ModelConfig, method: &Method, max_length: u32, size: Size) -> Result<Preset, Error> {
    let room = size.room()?;
    let mut least = u64::MAX;
    for (states, level, rows) in candidates(size, max_length) {
        let planned = planned(c, method, (rows, max_length), level, states)?;
        if planned <= room {
            let accumulation = BATCH_ROWS.div_ceil(rows);
            return Ok(Preset { rows, accumulation, level, states, planned });
        }
        least = least.min(planned);
    }
    let what = format!("training takes {} at least, {size} has {} for it", gigabytes(least), gigabytes(room));
    Err(Error::new(what, "--preset").hint("choose --method lora, a smaller --max-length, or a larger device"))
}

/// In the order of preference.
fn candidates(size: Size, max_length: u32) -> Vec<(Option<States>, Level, u32)> {
    let states = match size {
        Size::Cpu => vec![None],
        Size::Gpu(_) => vec![Some(States::F32), Some(States::Eight)],
    };
    let rows = || [16, 8, 4, 2, 1].into_iter();
    let busy = |rows: &u32| size != Size::Cpu && rows * max_length >= BUSY;
    let mut all = Vec::new();
    for states in states {
        for level in Level::ALL {
            all.extend(rows().filter(busy).map(|rows| (states, level, rows)));
        }
        // A processor is as busy with one row as with many.
        let few = rows().filter(|n| !busy(n) && (size != Size::Cpu || *n <= 2));
        all.extend(few.flat_map(|rows| Level::ALL.map(|level| (states, level, rows))));
    }
    all
}

fn planned(
    c: &ModelConfig,
    method: &Method,
    (rows, slots): (u32, u32),
    recompute: Level,
    states: Option<States>,
) -> Result<u64, Error> {
    let (rows, row_slots) = (rows as usize, slots as usize);
    if states.is_none() {
        let elements = elements_for(c, method, rows, row_slots, recompute)?;
        return Ok(Accounting::CPU.bytes(&elements).values().sum());
    }
    let capacity = Capacity { tokens: rows * row_slots, row_slots };
    let setup = Setup { config: c, method, capacity, plan: Default::default(), recompute, offload: false };
    let formats = Formats::from(PrecisionArgs { dtype: Some(Dtype::Bf16), states });
    Ok(plan::bytes(&setup, Default::default(), formats, Gpu::HOPPER)?.total())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn model(hidden: usize, layers: usize) -> ModelConfig {
        let text = format!(
            r#"{{"model_type":"qwen2","vocab_size":151936,"hidden_size":{hidden},"intermediate_size":{},
            "num_hidden_layers":{layers},"num_attention_heads":{},"num_key_value_heads":2,"tie_word_embeddings":true}}"#,
            hidden * 4,
            hidden / 64
        );
        ModelConfig::parse(&text, Path::new("config.json")).unwrap()
    }

    #[test]
    fn sizes_are_cpu_or_gigabytes() {
        for name in Size::NAMES {
            assert_eq!(name.parse::<Size>().unwrap().to_string(), name);
        }
        for bad in ["", "gpu", "80", "0gb", "80GB!", "-1gb"] {
            assert!(bad.parse::<Size>().unwrap_err().to_string().contains("141gb"), "{bad}");
        }
    }

    /// More memory never means a smaller micro-batch of the same states and level, and what is found is within it.
    #[test]
    fn what_is_found_fits_and_grows_with_the_device() {
        let c = model(896, 24);
        let found = [24, 40, 80, 141].map(|gb| find(&c, &Method::Full {}, 2048, Size::Gpu(gb)).unwrap());
        for (preset, gb) in found.iter().zip([24, 40, 80, 141]) {
            assert!(preset.planned <= Size::Gpu(gb).room().unwrap(), "{preset:?}");
            assert_eq!(preset.rows * preset.accumulation, BATCH_ROWS);
        }
        assert!(found.windows(2).all(|w| (w[0].level, w[1].rows) >= (w[1].level, 0)), "{found:?}");
        assert!(found[3].rows > found[0].rows || found[3].level < found[0].level, "{found:?}");
    }

    #[test]
    fn what_does_not_fit_is_told_with_a_way_out() {
        let (c, lora) = (model(4096, 32), serde_json::json!({"type": "lora", "r": 16, "lora_alpha": 32}));
        let error = find(&c, &Method::Full {}, 2048, Size::Gpu(24)).unwrap_err().to_string();
        assert!(error.contains("24gb has 21.60 GB") && error.contains("--method lora"), "{error}");
        let lora: Method = serde_json::from_value(lora).unwrap();
        assert!(find(&c, &lora, 2048, Size::Gpu(80)).is_ok());
    }
}
