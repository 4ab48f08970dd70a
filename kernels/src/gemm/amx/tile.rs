//! The tile unit: its configuration, and the product of two packed strips.

use std::{arch::asm, sync::OnceLock};

/// Rows of a tile, and pairs of k in one.
pub(super) const TILE: usize = 16;

/// Rows (columns) of a strip: two tiles.
pub(super) const STRIP: usize = 2 * TILE;

/// Terms of a step: the pairs of a tile.
pub(super) const STEP: usize = 2 * TILE;

/// Bytes of a tile.
pub(super) const TILE_BYTES: usize = 1024;

/// bf16 parts of an f32.
pub(super) const PLANES: usize = 3;

/// Bytes of a step of a strip: two tiles of each plane.
pub(super) const STEP_BYTES: usize = PLANES * 2 * TILE_BYTES;

/// Sums of a strip of A with a strip of B, row-major.
#[repr(align(64))]
pub(super) struct Block(pub [f32; STRIP * STRIP]);

/// Whether this processor has the unit, the system lets this process use it, and the environment does not say otherwise.
pub(in crate::gemm) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    let wanted = || std::env::var_os("CHRONICALS_AMX").is_none_or(|word| word != "off");
    *AVAILABLE.get_or_init(|| wanted() && has_instructions() && permitted())
}

/// AMX-TILE and AMX-BF16, and AVX-512 to pack with.
fn has_instructions() -> bool {
    let vectors = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    vectors && leaf.edx >> 22 & 1 == 1 && leaf.edx >> 24 & 1 == 1
}

/// Asks Linux for room for the tiles in this process's state, which it gives to who asks (Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call changes nothing but what this process may execute.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Other systems are not known to.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Tiles of this thread, configured as [`Unit::multiply`] needs them until this is dropped.
pub(super) struct Unit(());

/// The operand of LDTILECFG.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_row: [u16; 16],
    rows: [u8; 16],
}

impl Unit {
    /// Configures all eight tiles as 16 rows of 64 bytes.
    ///
    /// # Safety
    /// The unit is [available](is_available).
    pub(super) unsafe fn configure() -> Self {
        let first_eight = |i: usize, of: u8| if i < 8 { of } else { 0 };
        let configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_of_row: std::array::from_fn(|i| first_eight(i, 64).into()),
            rows: std::array::from_fn(|i| first_eight(i, TILE as u8)),
        };
        // SAFETY: the operand is 64 bytes in the format of palette 1; the unit is there.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly)) };
        Self(())
    }

    /// `out = Σ aᵢ·bᵢ` over `steps` steps of two strips: the six largest products of their parts, small ones first.
    ///
    /// # Safety
    /// `a` and `b` point at `steps` times [`STEP_BYTES`].
    pub(super) unsafe fn multiply(&self, a: *const u8, b: *const u8, steps: usize, out: &mut Block) {
        debug_assert!(steps > 0);
        // Tiles 0 to 3 are sums, 4 and 5 of A, 6 and 7 of B. A step has the planes of the high, middle and low parts, two tiles each.
        // SAFETY: reads stay inside of the strips, writes inside of the block; the tiles are configured and nobody else's.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                // low·high
                "tileloadd tmm6, [{b} + {row}]", "tileloadd tmm4, [{a} + {row} + 4096]", "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {row} + 1024]", "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a} + {row} + 5120]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                // middle·high
                "tileloadd tmm4, [{a} + {row} + 2048]", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a} + {row} + 3072]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                // high·high
                "tileloadd tmm4, [{a} + {row}]", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a} + {row} + 1024]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                // high·low
                "tileloadd tmm6, [{b} + {row} + 4096]", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{b} + {row} + 5120]", "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
                // high·middle
                "tileloadd tmm6, [{b} + {row} + 2048]", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{b} + {row} + 3072]", "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
                // middle·middle
                "tileloadd tmm4, [{a} + {row} + 2048]", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a} + {row} + 3072]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 6144", "add {b}, 6144", "dec {steps}", "jnz 2b",
                "tilestored [{out} + {line}], tmm0", "tilestored [{out} + {line} + 64], tmm1",
                "tilestored [{out} + {line} + 2048], tmm2", "tilestored [{out} + {line} + 2112], tmm3",
                a = inout(reg) a => _,
                b = inout(reg) b => _,
                steps = inout(reg) steps => _,
                out = in(reg) out.0.as_mut_ptr(),
                row = in(reg) 64usize,
                line = in(reg) 4 * STRIP,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // SAFETY: the unit was configured by this thread. Without it every switch of threads would save the tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
