//! What is seen of a trial from outside while it runs.

use serde::{Deserialize, Serialize};

/// One look at a running trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Nanoseconds since the spawn.
    pub t_ns: u64,
    /// Resident set of the arm's process tree, bytes.
    pub rss_bytes: u64,
    /// Processor use of the arm's process tree, percent of one core.
    pub cpu_percent: f32,
    /// Processor use of the whole machine, percent of all cores.
    pub machine_cpu_percent: f32,
    /// GPU readings where a GPU exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuSample>,
}

/// One look at a GPU through NVML.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuSample {
    /// Memory used by the arm's processes, bytes.
    pub process_bytes: u64,
    /// Memory used on the device, bytes.
    pub device_bytes: u64,
    /// Board power, milliwatts.
    pub power_mw: u32,
    /// Energy counter, millijoules.
    pub energy_mj: u64,
    /// SM clock, MHz.
    pub sm_mhz: u32,
    /// Temperature, °C.
    pub temp_c: u32,
    /// NVML's throttle-reason bits.
    pub throttle_mask: u64,
}
