//! Where a training runs, and in which number formats.

use std::{fmt, str::FromStr};

use chronicals_kernels::{
    KernelPlan, Target,
    gpu::{Gpu, GpuError, Tracer, compile::Cache, device::first_uuid, library, machine::Cuda},
};
use nvml_wrapper::{Nvml, enums::device::UsedGpuMemory};

use crate::error::Error;

/// NVML's view of the first GPU that CUDA shows.
pub(crate) fn shown(nvml: &Nvml) -> Option<nvml_wrapper::Device<'_>> {
    let by_uuid = first_uuid().and_then(|uuid| nvml.device_by_uuid(uuid).ok());
    by_uuid.or_else(|| nvml.device_by_index(0).ok())
}

/// What this process has of that GPU, bytes; none where NVML does not tell. Once a GPU is open and before anything is taken, that is
/// the driver's context and its code.
pub(crate) fn process_bytes() -> Option<u64> {
    let nvml = Nvml::init().ok()?;
    let processes = shown(&nvml)?.running_compute_processes().ok()?;
    let own = processes.iter().find(|p| p.pid == std::process::id())?;
    match own.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    }
}

/// A device as settings name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// A GPU, by its number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        let gpu = |word: &str| match word.strip_prefix("cuda")? {
            "" => Some(0),
            number => number.strip_prefix(':')?.parse().ok(),
        };
        match word {
            "cpu" => Ok(Device::Cpu),
            _ => gpu(word).map(Device::Cuda).ok_or_else(|| {
                Error::new(format!("'{word}' is no device"), "device").hint("use cpu, cuda or cuda:N")
            }),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl Device {
    /// What its kernels run on.
    pub fn target(self) -> Target {
        match self {
            Device::Cpu => Target::Cpu,
            Device::Cuda(_) => Target::Cuda,
        }
    }

    /// Reads `seam → variant` for this device; `at` is the setting's name.
    ///
    /// # Errors
    /// A seam or a variant is not known.
    pub fn kernels(
        self,
        settings: &std::collections::BTreeMap<String, String>,
        at: &str,
    ) -> Result<KernelPlan, Error> {
        KernelPlan::resolve(settings, self.target())
            .map_err(|e| Error::new(e.to_string(), at).hint("see `chronicals describe`"))
    }
}

/// Looks for a device and what it needs.
///
/// # Errors
/// There is no such device, or a library is missing.
pub fn check(device: &str) -> Result<(), Error> {
    match device.parse()? {
        Device::Cpu => Ok(()),
        Device::Cuda(n) => {
            Gpu::open(n, Cache::of_user()).map_err(lacking)?;
            library::require(&["libcublasLt"]).map_err(lacking)
        }
    }
}

/// The fastest matrix product of a GPU, GFLOP/s, in bf16.
///
/// # Errors
/// It is no GPU, or not there.
pub fn peak_gflops(device: &str) -> Result<f64, Error> {
    match device.parse()? {
        Device::Cpu => Err(Error::new("the processor's products are measured by the harness", "device")),
        Device::Cuda(n) => {
            let machine = Cuda::open(n).map_err(lacking)?;
            Ok(machine.limits().map_err(lacking)?.flops_a_second / 1e9)
        }
    }
}

/// What the machine does not give.
pub fn lacking(e: GpuError) -> Error {
    Error::new(e.what, e.at).hint(e.hint).environment()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_name() {
        for (word, device) in [("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(word.parse::<Device>().unwrap(), device);
        }
        for word in ["gpu", "cuda:", "cuda:x", "cuda3", ""] {
            let e = word.parse::<Device>().unwrap_err();
            assert!(e.to_string().contains("cuda:N"), "{e}");
        }
    }
}
