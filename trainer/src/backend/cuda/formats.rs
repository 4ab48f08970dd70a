//! Number formats on a GPU.

use chronibench_protocol::{
    event::Precision,
    spec::{Dtype, PrecisionArgs, States},
};
use chronicals_kernels::{adamw, gpu::Elem};

use crate::backend::Component;

/// Element type of activations and working weights, and what AdamW keeps. Gradients of parameters and statistics are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// Element type.
    pub elem: Elem,
    /// Optimizer states.
    pub states: States,
}

impl From<PrecisionArgs> for Formats {
    /// bf16 with f32 states, unless something else is asked for.
    fn from(asked: PrecisionArgs) -> Self {
        let elem = match asked.dtype.unwrap_or(Dtype::Bf16) {
            Dtype::Bf16 => Elem::Bf16,
            Dtype::F32 => Elem::F32,
        };
        Self { elem, states: asked.states.unwrap_or(States::F32) }
    }
}

impl Formats {
    /// Whether what trains has f32 masters beside its working copy.
    pub fn has_masters(self) -> bool {
        self.elem == Elem::Bf16 && self.states != States::Bf16
    }

    /// Bytes of a buffer of `len` elements.
    pub fn bytes(self, component: Component, len: usize) -> usize {
        match component {
            Component::OptimizerStates => self.moment_bytes(len),
            _ => self.elem(component).bytes() * len,
        }
    }

    /// Element type of a component; moments of 8 bits have none, and their codes and scales are not read as elements.
    pub(super) fn elem(self, component: Component) -> Elem {
        match component {
            Component::Gradients | Component::Statistics => Elem::F32,
            Component::OptimizerStates if self.states != States::Bf16 => Elem::F32,
            _ => self.elem,
        }
    }

    fn moment_bytes(self, len: usize) -> usize {
        match self.states {
            States::Eight => scales_at(len) + 4 * adamw::codes::scales(len),
            _ => self.elem(Component::OptimizerStates).bytes() * len,
        }
    }

    /// As recorded.
    pub fn record(self) -> Precision {
        let elem = self.elem.name();
        let moments = match self.states {
            States::F32 => "f32",
            States::Bf16 => elem,
            States::Eight => "8bit",
        };
        Precision {
            weights: elem.into(),
            master: if self.has_masters() { "f32" } else { "none" }.into(),
            moments: moments.into(),
            grads: "f32".into(),
        }
    }
}

/// Where the scales of `len` 8-bit moments begin: behind the codes.
pub(super) fn scales_at(len: usize) -> usize {
    len.next_multiple_of(256)
}
