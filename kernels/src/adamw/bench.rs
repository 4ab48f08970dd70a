//! AdamW and the gradient norm on a GPU, for [`crate::gpu::bench`].

use super::{
    Hyper,
    cuda::{self, Codes, Grads, Group, State},
};
use crate::{
    cases::values,
    gpu::{
        Buffer, Elem, Gpu, GpuError, Launcher, Ptr,
        bench::{Bench, Taker},
    },
};

/// Operations that [`each`] times.
pub const OPS: &[&str] = &["adamw_master", "adamw_rounded", "adamw_rounded_8bit", "adamw_norm"];

/// Parameters of Qwen2.5-0.5B and of Qwen2.5-1.5B.
const LENGTHS: [usize; 2] = [494_032_768, 1_543_714_304];

/// Random floats below 1, again and again.
fn floats(on: &Gpu, n: usize, elem: Elem) -> Result<Buffer, GpuError> {
    // No negative ones: they may stand for second moments.
    let block: Vec<f32> = values(1, 1 << 20).into_iter().map(f32::abs).collect();
    on.repeat(&elem.encode(&block), n * elem.bytes())
}

/// A way to hold the state, with its name and its bytes a parameter, read and written.
type Variant<'a> = (&'static str, u64, Box<dyn Fn(&Gpu) -> Result<(Vec<Buffer>, State), GpuError> + 'a>);

fn variants<'a>(n: usize) -> [Variant<'a>; 3] {
    let (f32s, bf16s) = (move |on: &Gpu| floats(on, n, Elem::F32), move |on: &Gpu| floats(on, n, Elem::Bf16));
    let codes = move |on: &Gpu| on.repeat(&[0x35], n);
    let scales = move |on: &Gpu| floats(on, cuda::scales(n), Elem::F32);
    [
        (
            "adamw_master",
            30,
            Box::new(move |on| {
                let all = vec![f32s(on)?, bf16s(on)?, f32s(on)?, f32s(on)?];
                let [p, copy, m, v] = [0, 1, 2, 3].map(|i: usize| all[i].ptr());
                Ok((all, State::Master { p, copy, m, v }))
            }),
        ),
        (
            "adamw_rounded",
            16,
            Box::new(move |on| {
                let all = vec![bf16s(on)?, bf16s(on)?, bf16s(on)?];
                let [p, m, v] = [0, 1, 2].map(|i: usize| all[i].ptr());
                Ok((all, State::Rounded { p, m, v }))
            }),
        ),
        (
            "adamw_rounded_8bit",
            12,
            Box::new(move |on| {
                let all = vec![bf16s(on)?, codes(on)?, codes(on)?, scales(on)?, scales(on)?];
                let [p, m, v, ms, vs] = [0, 1, 2, 3, 4].map(|i: usize| all[i].ptr());
                let (m, v) = (Codes { codes: m, scales: ms }, Codes { codes: v, scales: vs });
                Ok((all, State::RoundedQuantised { p, m, v }))
            }),
        ),
    ]
}

/// Calls `f` with the benches of every length and state; gradients are f32.
pub fn each(on: &Gpu, f: &mut Taker) -> Result<(), GpuError> {
    let hyper = Hyper { lr: 1e-5, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 100 };
    for n in LENGTHS {
        let grads = floats(on, n, Elem::F32)?;
        let groups = [Group { end: n / 16 * 8, hyper }, Group { end: n, hyper }];
        let hypers = on.upload(&cuda::hyper_bytes(&groups, 1))?;
        let clip = on.alloc(cuda::CLIP_BYTES)?;
        let scratch = on.alloc(4 * cuda::norm_scratch_floats(on.processors()))?;
        let g = Grads::F32(grads.ptr());
        let bench = |op, bytes: u64, run| Bench { op, case: n.to_string(), bytes, flops: 0, run };
        f(bench(
            "adamw_norm",
            4 * n as u64,
            // SAFETY: the operands have `n` elements and outlive the measurement.
            Box::new(|| unsafe { cuda::norm(on, Elem::Bf16, g, n, 1.0, scratch.ptr(), clip.ptr()) }),
        ))?;
        for (op, bytes, state) in variants(n) {
            let (_held, state) = state(on)?;
            let hyper: Ptr = hypers.ptr();
            f(bench(
                op,
                bytes * n as u64,
                // SAFETY: as above.
                Box::new(move || unsafe { cuda::update(on, Elem::Bf16, state, g, n, hyper, 2, Ptr::NULL) }),
            ))?;
        }
    }
    Ok(())
}
