use cudarc::driver::DriverError;

/// What went wrong on the way to the GPU or on it, where, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({at})")]
pub struct GpuError {
    /// What went wrong.
    pub what: String,
    /// Library, kernel or call.
    pub at: String,
    /// How to mend it.
    pub hint: String,
}

impl GpuError {
    pub(crate) fn new(what: impl Into<String>, at: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), at: at.into(), hint: hint.into() }
    }

    pub(crate) fn driver(at: &str, error: DriverError) -> Self {
        let text = error
            .error_string()
            .map_or_else(|_| format!("{:?}", error.0), |s| s.to_string_lossy().into_owned());
        let hint = match error.0 {
            cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                "take a smaller batch, or end other programs on the GPU"
            }
            cudarc::driver::sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS => {
                "a kernel is wrong: run it under compute-sanitizer"
            }
            _ => "`chronibench doctor` shows driver and libraries",
        };
        Self::new(text, at, hint)
    }
}
