//! Memory of the CPU backend.

use std::cell::{Ref, RefCell, RefMut};

use chronicals_kernels::adamw::{codes, eight_bit::Moments};

use crate::{
    backend::{check_stored, no_values},
    error::Error,
};

/// What one allocation is. It is borrowed at run time: two views of one buffer may be read together, and a kernel that would read
/// what it writes is a panic, not a race.
pub(super) enum Buffer {
    /// f32.
    Values(RefCell<Vec<f32>>),
    /// Moments of 8 bits.
    Coded(RefCell<Coded>),
}

/// Codes and their scales.
pub(super) struct Coded {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Coded {
    /// As the kernel takes them.
    pub(super) fn moments(&mut self) -> Moments<'_> {
        Moments { codes: &mut self.codes, scales: &mut self.scales }
    }
}

impl Buffer {
    pub(super) fn of(len: usize) -> Self {
        Self::Values(RefCell::new(vec![0.0; len]))
    }

    pub(super) fn coded(len: usize) -> Self {
        Self::Coded(RefCell::new(Coded { codes: vec![0; len], scales: vec![0.0; codes::scales(len)] }))
    }

    /// That it takes.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Values(values) => size_of_val(&values.borrow()[..]) as u64,
            Self::Coded(coded) => codes::bytes(coded.borrow().codes.len()) as u64,
        }
    }

    fn f32(&self) -> &RefCell<Vec<f32>> {
        match self {
            Self::Values(values) => values,
            Self::Coded(_) => unreachable!("moments of 8 bits are updated as a whole"),
        }
    }

    pub(super) fn values(&self) -> Ref<'_, Vec<f32>> {
        self.f32().borrow()
    }

    pub(super) fn values_mut(&self) -> RefMut<'_, Vec<f32>> {
        self.f32().borrow_mut()
    }

    pub(super) fn coded_mut(&self) -> RefMut<'_, Coded> {
        match self {
            Self::Coded(coded) => coded.borrow_mut(),
            Self::Values(_) => unreachable!("moments in f32 are updated by group"),
        }
    }

    /// What is not kept as f32 cannot be read or written one by one.
    pub(super) fn check_values(&self) -> Result<(), Error> {
        match self {
            Self::Values(_) => Ok(()),
            Self::Coded(_) => Err(no_values()),
        }
    }

    /// Codes, then scales; values otherwise.
    pub(super) fn stored(&self) -> Vec<u8> {
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        match self {
            Self::Values(values) => bytes(&values.borrow()),
            Self::Coded(coded) => [coded.borrow().codes.clone(), bytes(&coded.borrow().scales)].concat(),
        }
    }

    /// What [`stored`](Self::stored) gave.
    pub(super) fn restore(&mut self, bytes: &[u8]) -> Result<(), Error> {
        check_stored(bytes.len(), self.bytes() as usize)?;
        let fill = |to: &mut [f32], bytes: &[u8]| {
            let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            to.iter_mut().zip(values).for_each(|(to, x)| *to = x);
        };
        match self {
            Self::Values(values) => fill(values.get_mut(), bytes),
            Self::Coded(coded) => {
                let Coded { codes, scales } = coded.get_mut();
                let (first, rest) = bytes.split_at(codes.len());
                codes.copy_from_slice(first);
                fill(scales, rest);
            }
        }
        Ok(())
    }
}
