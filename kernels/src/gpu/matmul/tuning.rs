//! The search for a product's algorithm: candidates of the library by their times, of which the first is taken that is proved.

use std::ffi::c_void;

use cudarc::cublaslt::sys::{self, cublasStatus_t::CUBLAS_STATUS_SUCCESS};

use super::{Matmul, Plan, WORKSPACE_BYTES, check};
use crate::gpu::{
    Buffer, Elem, GpuError, Product, digest,
    proof::{Proof, block},
};

/// Algorithms that are timed for a shape.
const CANDIDATES: usize = 24;

/// Timed runs of each candidate; the median counts.
const TUNING_RUNS: usize = 5;

/// Runs of the fastest that must leave the same bits.
const PROOF_RUNS: usize = 3;

/// What an algorithm is tried on.
struct Trial<'a> {
    proof: Proof,
    c: &'a Buffer,
    /// What C is filled with.
    block: &'a [u8],
    /// Room for the parts of a digest.
    parts: Buffer,
}

impl Matmul<'_> {
    /// The fastest candidate that multiplies random operands right.
    pub(super) fn fastest(&self, plan: &Plan) -> Result<sys::cublasLtMatmulAlgo_t, GpuError> {
        let p = &plan.product;
        let extents = extents(p);
        let blocks = [0, 1, 2, 3].map(|i| block(i as u64, extents[i].0, extents[i].1));
        let mut operands = Vec::new();
        for ((len, elem), block) in extents.iter().zip(&blocks) {
            operands.push(self.on.repeat(block, len * elem.bytes())?);
        }
        let [a, b, c, bias] = [0, 1, 2, 3].map(|i| operands[i].ptr());
        let mut timed: Vec<(f64, sys::cublasLtMatmulAlgo_t)> = Vec::new();
        for candidate in self.candidates(plan)? {
            // SAFETY: the operands have the extents of the product and live until the GPU is synchronised below.
            let run = || unsafe { self.launch(plan, &candidate, a, b, bias, c) };
            // A candidate that the library offers and then refuses is none.
            if run().is_err() {
                continue;
            }
            let mut times = Vec::new();
            for _ in 0..TUNING_RUNS {
                times.push(self.on.time(run)?);
            }
            times.sort_by(f64::total_cmp);
            timed.push((times[TUNING_RUNS / 2], candidate));
        }
        self.on.synchronise()?;
        let none = |what: &str, hint: &str| GpuError::new(what, p.name(), hint);
        if timed.is_empty() {
            return Err(none("no algorithm runs this product", "make its extents multiples of 8"));
        }
        timed.sort_by(|one, other| one.0.total_cmp(&other.0));
        let numbers = [0, 1, 2, 3].map(|i| extents[i].1.decode(&blocks[i]));
        let proof = Proof::new(p, numbers.each_ref().map(Vec::as_slice));
        let parts = self.on.alloc(digest::parts_bytes(self.on))?;
        let trial = Trial { proof, c: &operands[2], block: &blocks[2], parts };
        for (_, candidate) in timed {
            // SAFETY: as above; what is read of C waits for it.
            let run = || unsafe { self.launch(plan, &candidate, a, b, bias, c) };
            if self.holds(p, &trial, run)? {
                return Ok(candidate);
            }
        }
        Err(none(
            "no algorithm multiplies right, and to the same bits again",
            "take another version of cuBLASLt",
        ))
    }

    /// Whether runs of an algorithm on the same C leave the same bits, and those of the product.
    fn holds(
        &self,
        p: &Product,
        trial: &Trial<'_>,
        run: impl Fn() -> Result<(), GpuError>,
    ) -> Result<bool, GpuError> {
        let Trial { proof, c, block, parts } = trial;
        let mut digests = Vec::new();
        for _ in 0..PROOF_RUNS {
            self.on.refill(c, block)?;
            run()?;
            // SAFETY: C has whole words, and both live until the download, which waits for the launch.
            unsafe { digest::launch(self.on, c.ptr(), c.bytes() / 4, parts.ptr())? };
            digests.push(digest::sum(&self.on.download(parts)?));
        }
        let read = |at: usize| {
            let bytes = self.on.read(c, at * p.out.bytes(), p.out.bytes())?;
            Ok(p.out.decode(&bytes)[0])
        };
        Ok(digests.iter().all(|d| *d == digests[0]) && proof.holds(read)?)
    }

    fn candidates(&self, plan: &Plan) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, GpuError> {
        let mut preference = std::ptr::null_mut();
        // SAFETY: `preference` outlives the call.
        check("preference", unsafe { sys::cublasLtMatmulPreferenceCreate(&mut preference) })?;
        let bytes = WORKSPACE_BYTES as u64;
        // Parts of a sum are added in f32, never in the type of the output, which would round each of them.
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let settings: [(_, *const c_void, usize); 2] = [
            (
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                size_of_val(&bytes),
            ),
            (
                Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                (&raw const reduction).cast(),
                size_of_val(&reduction),
            ),
        ];
        let [left, right, out] = plan.layouts;
        // SAFETY: the library's own plain struct; zeros are valid, and it is only written.
        let mut results: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
        let mut found = 0;
        // SAFETY: all handles are alive, and the array has as many places as are asked for.
        let status = unsafe {
            let set = settings.map(|(attribute, value, size)| {
                sys::cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, size)
            });
            let got = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                plan.descriptor,
                left,
                right,
                out,
                out,
                preference,
                CANDIDATES as i32,
                results.as_mut_ptr(),
                &mut found,
            );
            sys::cublasLtMatmulPreferenceDestroy(preference);
            set.into_iter().find(|s| *s != CUBLAS_STATUS_SUCCESS).unwrap_or(got)
        };
        check(&plan.product.name(), status)?;
        let usable = results[..found as usize].iter().filter(|r| r.state == CUBLAS_STATUS_SUCCESS);
        Ok(usable.map(|r| r.algo).collect())
    }
}

/// Elements that A, B, C and the bias take, and of which type: whole packs, as algorithms read the pack in which a row ends.
pub(super) fn extents(p: &Product) -> [(usize, Elem); 4] {
    let [a, b, c] = p.spans();
    let lengths = [(a, p.elem), (b, p.elem), (c, p.out), (p.n, p.out)];
    lengths.map(|(len, elem)| (len.max(1).next_multiple_of(8), elem))
}
