//! Settings for a device of some size: micro-batch, what is recomputed and what the optimizer keeps, found by the plan of memory.

use std::{fmt, str::FromStr};

use chronibench_protocol::spec::{Dtype, Method, PrecisionArgs, States};
use nvml_wrapper::Nvml;

use crate::{
    backend::cuda::{
        Formats,
        plan::{self, Gpu},
    },
    config::ModelConfig,
    device::shown,
    error::Error,
    memory::{self, Accounting, elements_for, gigabytes},
    model::{Capacity, Level, Setup},
};

/// Rows that one optimizer step learns from.
pub const BATCH_ROWS: u32 = 16;

/// Tokens of a micro-batch from which on a GPU is busy.
const BUSY: u32 = 4096;

/// A device, by its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Size {
    /// The processor of this machine.
    Cpu,
    /// A GPU.
    Gpu {
        /// Its name, or its size as sold.
        name: String,
        /// Bytes that a training can have, driver and libraries aside.
        bytes: u64,
    },
}

impl Size {
    /// Sizes of the GPUs in common use.
    pub const NAMES: [&'static str; 5] = ["cpu", "24GB", "40GB", "80GB", "141GB"];

    /// The first GPU that CUDA shows, by NVML, or the processor where there is none.
    pub fn found() -> Self {
        let gpu = || {
            let nvml = Nvml::init().ok()?;
            let device = shown(&nvml)?;
            // What the driver has for itself.
            let bytes = device.memory_info().ok()?.total / 100 * 97;
            Some(Self::Gpu { name: device.name().ok()?, bytes })
        };
        gpu().unwrap_or(Self::Cpu)
    }

    /// Bytes that a plan may take.
    fn room(&self) -> Result<u64, Error> {
        match self {
            Self::Gpu { bytes, .. } => Ok(*bytes),
            Self::Cpu => memory::available_bytes().map(|free| free / 10 * 9).ok_or_else(|| {
                Error::new("the system does not tell how much memory is free", "memory")
                    .hint("write the settings by hand, see `chronicals train --help`")
            }),
        }
    }
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let name = text.to_ascii_uppercase();
        let gb = name.strip_suffix("GB").and_then(|n| n.parse::<u64>().ok());
        let gb = gb.filter(|n| (1..10_000).contains(n));
        match (name.as_str(), gb) {
            ("CPU", _) => Ok(Self::Cpu),
            // GB as sold are GiB but for error correction and the driver, which take up to a twelfth.
            (_, Some(gb)) => Ok(Self::Gpu { name, bytes: gb * ((1u64 << 30) / 100 * 92) }),
            _ => Err(Error::new(format!("'{text}' is no size of a GPU"), "--gpu")
                .hint(format!("give the GB that it is sold with, or cpu: {}", Self::NAMES.join(", ")))),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("the processor"),
            Self::Gpu { name, .. } => f.write_str(name),
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
    /// Bytes that there are for it.
    pub room: u64,
}

/// The first that fits, of what is best first: states in f32 before 8-bit ones before bf16, large enough micro-batches before less
/// work for each, and last whatever fits at all. `max_length` is the slots of a row.
///
/// # Errors
/// Nothing fits, or the method's settings make no sense.
pub fn find(c: &ModelConfig, method: &Method, max_length: u32, size: &Size) -> Result<Preset, Error> {
    let room = size.room()?;
    let mut least = u64::MAX;
    for (states, level, rows) in candidates(size, max_length) {
        let (planned, outside) = planned(c, method, (rows, max_length), level, states)?;
        if planned + outside <= room {
            let accumulation = BATCH_ROWS.div_ceil(rows);
            return Ok(Preset { rows, accumulation, level, states, planned, room: room - outside });
        }
        least = least.min(planned + outside);
    }
    let what = format!("training takes {} at least, {size} has {} for it", gigabytes(least), gigabytes(room));
    Err(Error::new(what, "memory").hint("choose --method lora, a smaller --max-length, or a larger device"))
}

/// In the order of preference.
fn candidates(size: &Size, max_length: u32) -> Vec<(Option<States>, Level, u32)> {
    let on_cpu = *size == Size::Cpu;
    let states = match on_cpu {
        true => vec![None],
        false => [States::F32, States::Eight, States::Bf16].map(Some).to_vec(),
    };
    let rows = || [16, 8, 4, 2, 1].into_iter();
    let busy = |rows: &u32| !on_cpu && rows.saturating_mul(max_length) >= BUSY;
    let mut all = Vec::new();
    for states in states {
        for level in Level::ALL {
            all.extend(rows().filter(busy).map(|rows| (states, level, rows)));
        }
        // A processor is as busy with one row as with many.
        let few = rows().filter(|n| !busy(n) && (!on_cpu || *n <= 2));
        all.extend(few.flat_map(|rows| Level::ALL.map(|level| (states, level, rows))));
    }
    all
}

/// Bytes of the plan, and those that a GPU needs outside of it.
fn planned(
    c: &ModelConfig,
    method: &Method,
    (rows, slots): (u32, u32),
    recompute: Level,
    states: Option<States>,
) -> Result<(u64, u64), Error> {
    let (rows, row_slots) = (rows as usize, slots as usize);
    if states.is_none() {
        let elements = elements_for(c, method, rows, row_slots, recompute)?;
        return Ok((Accounting::CPU.bytes(&elements).values().sum(), 0));
    }
    let capacity = Capacity { tokens: rows.saturating_mul(row_slots), row_slots };
    let setup = Setup { config: c, method, capacity, plan: Default::default(), recompute, offload: false };
    let formats = Formats::from(PrecisionArgs { dtype: Some(Dtype::Bf16), states });
    let bytes = plan::bytes(&setup, Default::default(), formats, Gpu::HOPPER)?.total();
    Ok((bytes, plan::outside_bytes(&setup, Default::default(), formats, Gpu::HOPPER)))
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

    fn size(gb: u32) -> Size {
        format!("{gb}GB").parse().unwrap()
    }

    #[test]
    fn sizes_are_cpu_or_gigabytes() {
        for name in Size::NAMES {
            assert_eq!(name.parse::<Size>().unwrap(), name.to_lowercase().parse().unwrap());
        }
        assert!(
            matches!(size(80), Size::Gpu { bytes: 79_000_000_000..=79_100_000_000, .. }),
            "{:?}",
            size(80)
        );
        for bad in ["", "gpu", "80", "0GB", "80GB!", "-1GB", "99999GB"] {
            assert!(bad.parse::<Size>().unwrap_err().to_string().contains("141GB"), "{bad}");
        }
    }

    /// More memory never means a smaller micro-batch of the same states and level, and what is found is within it.
    #[test]
    fn what_is_found_fits_and_grows_with_the_device() {
        let c = model(896, 24);
        let found = [24, 40, 80, 141].map(|gb| find(&c, &Method::Full {}, 2048, &size(gb)).unwrap());
        for preset in &found {
            assert!(preset.planned <= preset.room, "{preset:?}");
            assert_eq!(preset.rows * preset.accumulation, BATCH_ROWS);
        }
        let better = |a: &Preset, b: &Preset| b.level < a.level || (b.level == a.level && b.rows >= a.rows);
        assert!(found.windows(2).all(|w| better(&w[0], &w[1])), "{found:?}");
        assert!(found[3].rows > found[0].rows || found[3].level < found[0].level, "{found:?}");
    }

    #[test]
    fn what_does_not_fit_is_told_with_a_way_out() {
        let c = model(4096, 32);
        let error = find(&c, &Method::Full {}, 2048, &size(24)).unwrap_err().to_string();
        assert!(error.contains("24GB has 23.71 GB") && error.contains("--method lora"), "{error}");
        let lora = serde_json::json!({"type": "lora", "r": 16, "lora_alpha": 32});
        let lora: Method = serde_json::from_value(lora).unwrap();
        assert!(find(&c, &lora, 2048, &size(80)).is_ok());
    }
}
