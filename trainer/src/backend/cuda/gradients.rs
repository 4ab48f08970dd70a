//! Gradients of a step's first micro-batch. Products write those of matrices, so that only the others are cleared: a pass over
//! all gradients less, and another where the products would read them.

use chronicals_kernels::gpu::{GpuError, Machine};

use super::{CudaBackend, extents::linears, submit::Logged};
use crate::{backend::View, model::Model};

/// Gradients that are written whole in every micro-batch before anything is added to them.
pub(super) struct Written {
    projections: Vec<View>,
    /// By the loss, if any row has one.
    head: Option<View>,
}

impl Written {
    pub(super) fn of(model: &Model) -> Self {
        Self { projections: linears(model).filter_map(|l| l.weight.grad).collect(), head: model.head.grad }
    }
}

/// What is left of a view without some views of the same buffer, which do not overlap.
fn without(all: View, mut some: Vec<View>) -> Vec<View> {
    some.sort_by_key(|v| v.offset);
    let (mut left, mut begin, end) = (Vec::new(), all.offset, all.offset + all.len);
    for v in some {
        left.push(View { offset: begin, len: v.offset - begin, ..all });
        begin = v.offset + v.len;
    }
    left.push(View { offset: begin, len: end - begin, ..all });
    left.retain(|v| v.len > 0);
    left
}

impl<D: Machine> CudaBackend<D> {
    /// Whatever of a view has to be cleared in the work at hand.
    pub(super) fn cleared(&self, view: View) -> Vec<View> {
        if !self.first {
            return vec![view];
        }
        let Written { projections, head } = &self.own().written;
        let head = head.filter(|_| self.loss_plan().rows > 0);
        without(view, projections.iter().copied().chain(head).collect())
    }

    pub(super) fn clear(&self, on: &Logged<'_>, view: View) -> Result<(), GpuError> {
        let bytes = self.buffers[view.buffer].elem.bytes();
        let memory = self.memory(view.buffer).expect("no failure, no lack of memory");
        on.fill(bytes * view.len, || self.device.zero(memory, bytes * view.offset, bytes * view.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_written_is_left() {
        let view = |offset, len| View { buffer: 3, offset, len };
        let left = |some: &[View]| {
            without(view(0, 100), some.to_vec()).iter().map(|v| (v.offset, v.len)).collect::<Vec<_>>()
        };
        assert_eq!(left(&[]), [(0, 100)]);
        assert_eq!(left(&[view(10, 20), view(0, 10)]), [(30, 70)]);
        assert_eq!(left(&[view(60, 40), view(8, 2)]), [(0, 8), (10, 50)]);
        assert_eq!(left(&[view(0, 100)]), []);
    }
}
