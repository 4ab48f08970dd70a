//! GPU readings through NVML; on a machine without one, nothing.

use chronibench_protocol::record::GpuSample;
use nvml_wrapper::{
    Device, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, TemperatureSensor},
    enums::device::UsedGpuMemory,
    error::NvmlError,
};
use serde_json::{Value, json};

/// Above this use by somebody unseen a GPU is not idle.
const BUSY_PERCENT: u32 = 5;
/// Above this temperature the next trial waits: clocks fall at 85 to 90 °C.
const HOT_C: u32 = 75;
/// Reasons of throttling that are no choice of the administrator's and no mere idleness.
const SLOWED: ThrottleReasons = ThrottleReasons::HW_SLOWDOWN
    .union(ThrottleReasons::SW_THERMAL_SLOWDOWN)
    .union(ThrottleReasons::HW_THERMAL_SLOWDOWN)
    .union(ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN);

/// The GPU that arms run on: the first that CUDA shows.
pub struct Gpu {
    nvml: Nvml,
    index: u32,
}

/// NVML counts all GPUs of a machine, CUDA those alone that `CUDA_VISIBLE_DEVICES` lists, by number or by the beginning of a UUID.
/// Numbers are NVML's where GPUs are of one kind, or `CUDA_DEVICE_ORDER` is `PCI_BUS_ID`; else CUDA counts from the fastest.
fn first_shown(listed: Option<&str>, uuids: &[String]) -> u32 {
    let first = listed.and_then(|l| l.split(',').next()).map_or("", str::trim);
    let numbered = first.parse().ok().filter(|i| *i < uuids.len());
    let named = || uuids.iter().position(|uuid| !first.is_empty() && uuid.starts_with(first));
    numbered.or_else(named).unwrap_or(0) as u32
}

/// Whether a GPU is divided among tenants (MIG): an arm on a slice of one has a part of its speed. `None` where NVML does not tell.
fn mig(mode: Result<u32, NvmlError>) -> Option<&'static str> {
    match mode {
        Ok(0) => Some("disabled"),
        Ok(_) => Some("enabled"),
        Err(NvmlError::NotSupported) => Some("unsupported"),
        Err(_) => None,
    }
}

impl Gpu {
    /// Opens NVML and checks that there is a device.
    ///
    /// # Errors
    /// Why there is none, in NVML's words.
    pub fn open() -> Result<Self, NvmlError> {
        let nvml = Nvml::init()?;
        let uuid = |i| nvml.device_by_index(i).and_then(|d| d.uuid()).unwrap_or_default();
        let uuids: Vec<String> = (0..nvml.device_count()?).map(uuid).collect();
        let index = first_shown(std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref(), &uuids);
        nvml.device_by_index(index)?;
        Ok(Self { nvml, index })
    }

    fn device(&self) -> Result<Device<'_>, NvmlError> {
        self.nvml.device_by_index(self.index)
    }

    /// One look; `None` when the device cannot be read at this moment. A counter that this GPU lacks reads 0.
    pub fn look(&self, pids: &[u32]) -> Option<GpuSample> {
        let d = self.device().ok()?;
        let used = |m: &UsedGpuMemory| match m {
            UsedGpuMemory::Used(bytes) => *bytes,
            UsedGpuMemory::Unavailable => 0,
        };
        let processes = d.running_compute_processes().unwrap_or_default();
        Some(GpuSample {
            process_bytes: processes
                .iter()
                .filter(|p| pids.contains(&p.pid))
                .map(|p| used(&p.used_gpu_memory))
                .sum(),
            device_bytes: d.memory_info().ok()?.used,
            power_mw: d.power_usage().unwrap_or(0),
            energy_mj: d.total_energy_consumption().unwrap_or(0),
            sm_mhz: d.clock_info(Clock::SM).unwrap_or(0),
            temp_c: d.temperature(TemperatureSensor::Gpu).unwrap_or(0),
            throttle_mask: d.current_throttle_reasons().map_or(0, |r| r.bits()),
        })
    }

    /// What keeps it from being idle, if anything does. A program of another container may be seen by its use of the GPU alone.
    pub fn busy(&self) -> Option<String> {
        let d = self.device().ok()?;
        let others = d.running_compute_processes().unwrap_or_default();
        if !others.is_empty() {
            let pids: Vec<String> = others.iter().map(|p| p.pid.to_string()).collect();
            return Some(format!("other programs are on it (process {})", pids.join(", ")));
        }
        let used = d.utilization_rates().map_or(0, |u| u.gpu);
        if used > BUSY_PERCENT {
            return Some(format!("it is in use ({used} %)"));
        }
        let temp = d.temperature(TemperatureSensor::Gpu).unwrap_or(0);
        if temp > HOT_C {
            return Some(format!("it is hot ({temp} °C, {HOT_C} °C at most)"));
        }
        let throttled = d.current_throttle_reasons().ok()?.intersection(SLOWED);
        (!throttled.is_empty()).then(|| format!("it is throttled (reasons {:#x})", throttled.bits()))
    }

    /// Facts for the record.
    pub fn facts(&self) -> Value {
        let count = self.nvml.device_count().unwrap_or(0);
        // The one that is used comes first.
        let devices: Vec<Value> = std::iter::once(self.index)
            .chain((0..count).filter(|i| *i != self.index))
            .filter_map(|i| self.nvml.device_by_index(i).ok())
            .map(|d| {
                json!({
                    "name": d.name().ok(),
                    "uuid": d.uuid().ok(),
                    "memory_bytes": d.memory_info().ok().map(|m| m.total),
                    "compute_capability": d.cuda_compute_capability().ok().map(|c| format!("{}.{}", c.major, c.minor)),
                    "power_limit_mw": d.enforced_power_limit().ok(),
                    "max_sm_mhz": d.max_clock_info(Clock::SM).ok(),
                    "ecc": d.is_ecc_enabled().ok().map(|e| e.currently_enabled),
                    "mig": mig(d.mig_mode().map(|m| m.current)),
                })
            })
            .collect();
        json!({ "driver": self.nvml.sys_driver_version().ok(), "devices": devices })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_of_mig_is_not_told() {
        assert_eq!([mig(Ok(0)), mig(Ok(1))], [Some("disabled"), Some("enabled")]);
        assert_eq!(mig(Err(NvmlError::NotSupported)), Some("unsupported"));
        assert_eq!(mig(Err(NvmlError::GpuLost)), None);
    }

    #[test]
    fn the_first_gpu_that_is_listed_is_looked_at() {
        let uuids = ["GPU-aa01", "GPU-bb02", "GPU-bc03"].map(String::from);
        let cases = [
            (None, 0),
            (Some("2,0"), 2),
            (Some(" 1"), 1),
            (Some("GPU-bc,GPU-aa"), 2),
            (Some(""), 0),
            (Some("-1"), 0),
            (Some("7"), 0),
        ];
        for (listed, index) in cases {
            assert_eq!(first_shown(listed, &uuids), index, "{listed:?}");
        }
    }
}
