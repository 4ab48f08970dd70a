//! The emulator as a machine of these tests, and tests of the emulator.

mod faults;
mod probes;

use chronicals_kernels::gpu::{Launcher, Needs, Products};

pub use chronicals_emulator::{Block, Emulator};

use crate::machine::{Machine, Memory};

impl Machine for Emulator {
    fn launcher(&self) -> &dyn Launcher {
        self
    }

    fn meets(&self, needs: Needs) -> bool {
        needs == Needs::Ampere
    }

    fn upload(&self, bytes: &[u8]) -> Memory {
        Memory::Host(Block::new(bytes))
    }

    fn products(&self) -> &dyn Products {
        self
    }

    fn download(&self, memory: &Memory) -> Vec<u8> {
        let Memory::Host(block) = memory else { panic!("memory of another machine") };
        block.bytes()
    }
}
