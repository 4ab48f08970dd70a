//! Work that is kept and run again: launches, and copies beside them with what waits for them.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use chronicals_kernels::gpu::GpuError;

use crate::{clock::Origin, streams::Step};

/// A piece of captured work.
#[derive(Clone)]
pub(super) enum Piece {
    /// In order.
    Launches(Arc<[Step]>),
    /// Beside the launches, behind those so far; it reads or writes host memory.
    Beside(Step, Range<usize>),
    /// Launches from here on wait for a copy of this work, by its number.
    Follow(usize),
}

/// What is being captured.
#[derive(Default)]
pub(super) struct Capture {
    pieces: Vec<Piece>,
    launches: Vec<Step>,
    copies: usize,
    followed: usize,
}

impl Capture {
    pub(super) fn launch(&mut self, step: Step) {
        self.launches.push(step);
    }

    /// The number of the copy.
    pub(super) fn beside(&mut self, step: Step, host: Range<usize>) -> usize {
        self.cut();
        self.pieces.push(Piece::Beside(step, host));
        self.copies += 1;
        self.copies - 1
    }

    pub(super) fn follow(&mut self, copy: usize) {
        self.cut();
        self.pieces.push(Piece::Follow(copy));
        self.followed = self.followed.max(copy + 1);
    }

    fn cut(&mut self) {
        if !self.launches.is_empty() {
            self.pieces.push(Piece::Launches(std::mem::take(&mut self.launches).into()));
        }
    }

    /// Ends it. As on a GPU, whatever runs beside the launches must be back in them.
    pub(super) fn end(mut self, watched: bool) -> Result<Replay, GpuError> {
        self.cut();
        if self.followed < self.copies {
            return Err(GpuError {
                what: format!("{} copies, and nothing waits for the last", self.copies),
                at: "emulated capture".into(),
                hint: "follow the last mark before the end".into(),
            });
        }
        let mut kernels = BTreeMap::new();
        for step in self.pieces.iter().flat_map(Piece::launches) {
            let name = match step {
                Step::Launch(entry, ..) => entry.name,
                Step::Product(..) => "product",
                Step::Zero(..) | Step::Copy(..) | Step::Stamp => continue,
            };
            *kernels.entry(name.to_string()).or_default() += 1;
        }
        Ok(Replay { pieces: self.pieces, origin: Origin::Graph { watched }, kernels })
    }
}

impl Piece {
    fn launches(&self) -> &[Step] {
        if let Piece::Launches(steps) = self { steps } else { &[] }
    }
}

/// Captured work.
pub struct Replay {
    pub(super) pieces: Vec<Piece>,
    /// Whether a watch was kept when it was captured.
    pub(super) origin: Origin,
    pub(super) kernels: BTreeMap<String, u64>,
}
