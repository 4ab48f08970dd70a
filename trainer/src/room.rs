//! Which [level of recomputation](Level) a training gets: the one that was asked for, or the first that memory has room for.

use std::collections::BTreeMap;

use chronibench_protocol::spec::Recompute;

use crate::{
    backend::Backend,
    error::Error,
    memory::gigabytes,
    model::{Level, Setup},
};

/// What settings say of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Asked {
    /// What the backward pass makes again.
    pub recompute: Recompute,
    /// Blocks' entries wait for the backward pass on the host.
    pub offload: bool,
    /// Most that the plan may come to, GB (10⁹ bytes).
    pub limit_gb: Option<f64>,
}

/// What a training gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// What the backward pass makes again.
    pub level: Level,
    /// Blocks' entries wait for the backward pass on the host.
    pub offload: bool,
    /// Why, for people.
    pub why: String,
}

/// The level that a setting names; None for the first that fits.
pub fn level(asked: Recompute) -> Option<Level> {
    match asked {
        Recompute::Auto => None,
        Recompute::None => Some(Level::None),
        Recompute::Swiglu => Some(Level::Swiglu),
        Recompute::Norm => Some(Level::Norm),
        Recompute::Ffn => Some(Level::Ffn),
        Recompute::Block => Some(Level::Block),
    }
}

/// Chooses for a backend that has taken nothing yet. A limit holds whatever is asked for; what is free decides where nothing is.
///
/// # Errors
/// The limit is no number of GB, the plan exceeds it, or nothing fits; and whatever is wrong with the method's settings.
pub fn choose<B: Backend>(backend: &B, setup: &Setup<'_>, asked: Asked) -> Result<Choice, Error> {
    check_offload::<B>(asked.offload)?;
    let limit = asked.limit_gb.map(limit_bytes).transpose()?;
    let plan = |recompute| backend.plan(&Setup { recompute, offload: asked.offload, ..*setup });
    let host = match plan(Level::Block)?.host_bytes {
        0 => String::new(),
        bytes => format!(", and {} of page-locked host memory", gigabytes(bytes)),
    };
    let choice = |level, why: String| Choice { level, offload: asked.offload, why: why + &host };
    if let Some(level) = level(asked.recompute) {
        let planned = plan(level)?.total();
        return match limit.filter(|limit| planned > *limit) {
            Some(limit) => Err(too_much(&BTreeMap::from([(level, planned)]), limit, true)),
            None => Ok(choice(level, format!("asked for; {} planned", gigabytes(planned)))),
        };
    }
    let most = match limit {
        Some(limit) => limit,
        None => backend.room(setup)?,
    };
    let mut tried = BTreeMap::new();
    for level in Level::ALL {
        let planned = plan(level)?.total();
        tried.insert(level, planned);
        if planned <= most {
            return Ok(choice(level, why(&tried, level, most, limit.is_some())));
        }
    }
    Err(too_much(&tried, most, limit.is_some()))
}

/// Whether a backend can keep activations on the host.
///
/// # Errors
/// It is asked to, and cannot.
pub fn check_offload<B: Backend>(offload: bool) -> Result<(), Error> {
    if !offload || B::OFFLOADS {
        return Ok(());
    }
    Err(Error::new("a processor has no other memory to move activations to", "offload")
        .hint("leave offload out, or use device: cuda; recompute: block keeps least"))
}

fn limit_bytes(gb: f64) -> Result<u64, Error> {
    if gb.is_finite() && gb > 0.0 {
        return Ok((gb * 1e9) as u64);
    }
    Err(Error::new(format!("memory_limit_gb is {gb}"), "memory_limit_gb")
        .hint("give a number of GB above 0, or leave it out to take what is free"))
}

fn of(most: u64, limited: bool) -> String {
    format!("{} {}", gigabytes(most), if limited { "allowed (memory_limit_gb)" } else { "free" })
}

fn why(tried: &BTreeMap<Level, u64>, level: Level, most: u64, limited: bool) -> String {
    let fits = format!("{} planned of {}", gigabytes(tried[&level]), of(most, limited));
    match tried.range(..level).next_back() {
        Some((before, bytes)) => format!("{fits}; {before} would take {}", gigabytes(*bytes)),
        None => fits,
    }
}

fn too_much(tried: &BTreeMap<Level, u64>, most: u64, limited: bool) -> Error {
    let (level, planned) = tried.last_key_value().expect("at least one level was tried");
    let what =
        format!("training takes {} with recompute: {level}, of {}", gigabytes(*planned), of(most, limited));
    let level_is_last = *level == Level::Block;
    let mend = [
        if level_is_last { "" } else { "recompute: block or auto, " },
        "a smaller per_device_train_batch_size (with more gradient_accumulation_steps), a smaller max_length, ",
        "method lora, precision: {states: 8bit}, on a GPU {states: bf16} and offload: true",
        if limited { ", or raise memory_limit_gb" } else { ", or a device with more memory" },
        "; `chronicals memory` prints the plan",
    ];
    let e = Error::new(what, "memory").hint(format!("try {}", mend.concat()));
    if limited { e } else { e.environment() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_remedies_are_told() {
        let tried = BTreeMap::from([(Level::None, 9_000_000_000), (Level::Swiglu, 7_500_000_000)]);
        let text = why(&tried, Level::Swiglu, 8_000_000_000, true);
        assert_eq!(text, "7.50 GB planned of 8.00 GB allowed (memory_limit_gb); none would take 9.00 GB");
        assert_eq!(why(&tried, Level::None, 10_000_000_000, false), "9.00 GB planned of 10.00 GB free");
        let e = too_much(&tried, 1_000_000_000, false);
        let text = e.to_string();
        for part in ["7.50 GB", "1.00 GB free", "recompute: block", "gradient_accumulation_steps"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(e.is_environment() && !too_much(&tried, 1, true).is_environment());
    }

    #[test]
    fn limits_are_numbers_above_zero() {
        for gb in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(limit_bytes(gb).unwrap_err().to_string().contains("memory_limit_gb"));
        }
        assert_eq!(limit_bytes(1.5).unwrap(), 1_500_000_000);
    }
}
