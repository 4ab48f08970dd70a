//! Number formats on the processor.

use chronibench_protocol::{
    event::Precision,
    spec::{Dtype, PrecisionArgs, States},
};

use crate::error::Error;

/// All is f32, but for moments of AdamW where they are to have 8 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Formats {
    /// Moments have [8 bits](chronicals_kernels::adamw::codes).
    pub eight_bit: bool,
}

impl Formats {
    /// f32, unless something else is asked for; `at` is the setting's name.
    ///
    /// # Errors
    /// The processor does not have it.
    pub fn new(asked: PrecisionArgs, at: &str) -> Result<Self, Error> {
        match (asked.dtype, asked.states) {
            (None | Some(Dtype::F32), None | Some(States::F32)) => Ok(Self { eight_bit: false }),
            (None | Some(Dtype::F32), Some(States::Eight)) => Ok(Self { eight_bit: true }),
            (Some(Dtype::Bf16), _) | (_, Some(States::Bf16)) => {
                Err(Error::new("the processor has no bf16", at)
                    .hint("leave dtype out, and states at f32 or 8bit, or take a GPU"))
            }
        }
    }

    /// As recorded.
    pub fn record(self) -> Precision {
        let mut record = Precision::f32();
        if self.eight_bit {
            record.moments = "8bit".into();
        }
        record
    }
}
