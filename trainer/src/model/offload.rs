//! Blocks' entries in the memory of the host: they leave during the forward pass and come back during the backward pass, beside
//! the work.
//!
//! Blocks take turns on two places of the device. An entry leaves as soon as it is there, and its place is written again two blocks
//! later, when it has left. On the way back it is fetched when the block two above is done with the place, while the block above
//! works. The last two never leave.

use super::Model;
use crate::backend::Backend;

/// Places on the device.
pub(super) const PLACES: usize = 2;

/// What is in the place of a block's entry has left.
pub(super) fn make_room<B: Backend>(b: &mut B, m: &Model, l: usize) {
    if let Some(before) = l.checked_sub(PLACES) {
        arrive(b, m, before);
    }
}

/// A block's entry leaves.
pub(super) fn leave<B: Backend>(b: &mut B, m: &Model, l: usize) {
    let k = &m.blocks[l];
    if let Some(at_host) = k.at_host {
        b.put_aside(k.x, at_host);
    }
}

/// The last copy of a block's entry, there or back, is complete.
pub(super) fn arrive<B: Backend>(b: &mut B, m: &Model, l: usize) {
    if let Some(at_host) = m.blocks[l].at_host {
        b.await_copy(at_host);
    }
}

/// The place of a block's entry is free for the entry that had it before.
pub(super) fn call_back<B: Backend>(b: &mut B, m: &Model, l: usize) {
    if let Some(k) = l.checked_sub(PLACES).map(|before| &m.blocks[before])
        && let Some(at_host) = k.at_host
    {
        b.bring_back(at_host, k.x);
    }
}
