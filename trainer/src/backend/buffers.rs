//! Buffers of a step, and what they are for.

/// A span of one of the backend's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Which buffer.
    pub buffer: usize,
    /// First element.
    pub offset: usize,
    /// Elements.
    pub len: usize,
}

impl View {
    /// A part of this view.
    pub fn slice(self, offset: usize, len: usize) -> Self {
        assert!(offset + len <= self.len, "a part lies inside its view");
        Self { buffer: self.buffer, offset: self.offset + offset, len }
    }
}

/// A place for a copy of an activation in the host's memory, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPlace(pub usize);

/// What a buffer is for, in memory plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// Model parameters.
    Weights,
    /// LoRA parameters.
    Adapters,
    /// Gradients of whatever trains.
    Gradients,
    /// AdamW's two moments.
    OptimizerStates,
    /// Kept from forward to backward, and gradients of activations.
    Activations,
    /// Sums over a row that the backward pass reads again: f32 whatever the element type.
    Statistics,
    /// Temporaries of the loss.
    Logits,
}

impl Component {
    /// Name in plans and records.
    pub fn name(self) -> &'static str {
        match self {
            Component::Weights => "weights",
            Component::Adapters => "adapters",
            Component::Gradients => "gradients",
            Component::OptimizerStates => "optimizer states",
            Component::Activations => "activations",
            Component::Statistics => "statistics",
            Component::Logits => "logits",
        }
    }
}

/// Hands out buffers, whose element type follows from the component. A backend allocates them; a memory plan only adds
/// them up.
pub trait Allocator {
    /// A buffer of `len` zeros.
    fn alloc(&mut self, component: Component, len: usize) -> View;

    /// Whether the probabilities that unfused attention keeps are a buffer of the model; else they are the backend's own.
    fn keeps_probabilities(&self) -> bool {
        true
    }
}
