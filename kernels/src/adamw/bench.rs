//! AdamW and the gradient norm on a GPU, for [`crate::gpu::bench`].

use super::{
    Hyper, cases,
    codes::{self, BLOCK},
    cuda::{self, Codes, Grads, Group, State},
    cuda_eager::{self, Layout},
    reference,
};
use crate::{
    cases::{normals, values},
    gpu::{
        Elem, GpuError, Ptr,
        bench::{
            Compared, EAGER, FUSED, Look, Operand, Room, Subject, Taker, Testbed, Variant, Wants, sample,
        },
        eager::traffic,
    },
};

const HYPER: Hyper = Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 100 };

const SEED: u32 = 1;

/// A few roundings of f32, and a root and a quotient of two units in the last place.
const TOLERANCE: f64 = 1e-6;

/// Of the largest of a state in bf16 that eager rounds to nearest: twice where it is written, by 2⁻⁸ at most, and what its change
/// is made of.
const TO_NEAREST: f64 = 1e-2;

/// Calls `f` with the benches of every length and state that is wanted; gradients are f32.
///
/// # Errors
/// Those of `f`, and those of making operands.
pub fn each<B: Testbed>(
    on: &B,
    lengths: &[usize],
    wants: &Wants,
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    for &n in lengths {
        let grads = Operand::normal(on, Elem::F32, 1, n, 1e-3)?;
        if wants("adamw_norm") {
            norm(on, &grads, n, f)?;
        }
        let groups = [Group { end: n / 16 * 8, hyper: HYPER }, Group { end: n, hyper: HYPER }];
        let hyper = Operand::raw(on, &cuda::hyper_bytes(&groups, SEED))?;
        for (op, kind) in [
            ("adamw_master", Kind::Master),
            ("adamw_rounded", Kind::Rounded),
            ("adamw_master_8bit", Kind::Quantised),
        ] {
            if wants(op) {
                let arena = Arena::new(on, kind, n)?;
                arena.bench(on, op, &grads, hyper.ptr(on), f)?;
            }
        }
    }
    Ok(())
}

fn norm<B: Testbed>(
    on: &B,
    grads: &Operand<B::Memory>,
    n: usize,
    f: &mut Taker<'_, B>,
) -> Result<(), GpuError> {
    const MAX_NORM: f32 = 1.0;
    let clip = Operand::output(on, Elem::F32, cuda::CLIP_BYTES / 4)?;
    let norms = Operand::output(on, Elem::F32, 1)?;
    let scratch = Operand::output(on, Elem::F32, cuda::norm_scratch_floats(on.launcher().processors()))?;
    let subject = Subject {
        on,
        work: cases::workload("adamw_norm", n),
        changes: vec![vec![("clip", &clip)]],
        memory_bytes: 0,
        compare: Box::new(|by| {
            let norm = grads.values().square_sum(n).sqrt();
            let want = [norm, (f64::from(MAX_NORM) / (norm + 1e-6)).min(1.0)];
            let now = clip.now(on, 0, 2)?;
            let compare = |i: usize, what: &str| {
                let mut look = Look::default();
                look.add(i, vec![now[i]], vec![want[i]]);
                look.against_largest(what, by.slack * 1e-5)
            };
            Ok(vec![compare(0, "norm"), compare(1, "factor")])
        }),
    };
    // SAFETY: the operands have `n` elements and outlive the measurement.
    subject.variant(f, FUSED, |_| unsafe {
        let g = Grads::F32(grads.ptr(on));
        let [scratch, clip, norms] = [&scratch, &clip, &norms].map(|operand| operand.ptr(on));
        cuda::norm(on.launcher(), Elem::Bf16, g, &[n], MAX_NORM, scratch, clip, norms)
    })
}

/// A way to hold the state.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Master,
    Rounded,
    Quantised,
}

/// Parameters and moments in one of the states.
struct Arena<M> {
    kind: Kind,
    n: usize,
    p: Operand<M>,
    /// Where parameters are f32.
    copy: Option<Operand<M>>,
    moments: [Operand<M>; 2],
    /// Codes, as they are put there, and scales, of `Quantised`.
    codes: Vec<u8>,
    scales: Vec<Operand<M>>,
}

/// First and second moments as training has them after some steps of the benches' gradients.
fn moments() -> [Vec<f32>; 2] {
    let m = normals(2, 1 << 16).into_iter().map(|v| v * 3e-4).collect();
    let v = values(3, 1 << 16).into_iter().map(|v| (1.0 + v / 2.0) * 1e-7).collect();
    [m, v]
}

impl<M> Arena<M> {
    fn new<B: Testbed<Memory = M>>(on: &B, kind: Kind, n: usize) -> Result<Self, GpuError> {
        let elem = if kind == Kind::Rounded { Elem::Bf16 } else { Elem::F32 };
        let p = Operand::normal(on, elem, 4, n, 0.02)?;
        let copy = (kind != Kind::Rounded).then(|| Operand::output(on, Elem::Bf16, n)).transpose()?;
        // Codes of both signs of the first moment, small and large; of the second as large, whatever their first bit.
        let codes: Vec<u8> = values(5, 4093).into_iter().map(|v| (v.abs() * 127.0) as u8 + 1).collect();
        let [m, v] = moments();
        let (moments, scales) = if kind == Kind::Quantised {
            let scale =
                |most: f32| Operand::of(on, Elem::F32, codes::scales(n), &[most, most / 2.0, most / 4.0]);
            let coded = || Operand::bytes_of(on, n, &codes);
            ([coded()?, coded()?], vec![scale(1e-3)?, scale(1e-6)?])
        } else {
            ([Operand::of(on, elem, n, &m)?, Operand::of(on, elem, n, &v)?], Vec::new())
        };
        Ok(Self { kind, n, p, copy, moments, codes, scales })
    }

    fn state<B: Testbed<Memory = M>>(&self, on: &B) -> State {
        let (p, [m, v]) = (self.p.ptr(on), self.moments.each_ref().map(|x| x.ptr(on)));
        let codes = |codes, which: usize| Codes { codes, scales: self.scales[which].ptr(on) };
        let copy = self.copy.as_ref().map_or(Ptr::NULL, |copy| copy.ptr(on));
        match self.kind {
            Kind::Master => State::Master { p, copy, m, v },
            Kind::Rounded => State::Rounded { p, m, v },
            Kind::Quantised => State::MasterQuantised { p, copy, m: codes(m, 0), v: codes(v, 1) },
        }
    }

    fn bench<B: Testbed<Memory = M>>(
        &self,
        on: &B,
        op: &'static str,
        grads: &Operand<M>,
        hyper: Ptr,
        f: &mut Taker<'_, B>,
    ) -> Result<(), GpuError> {
        let [m, v] = self.moments.each_ref();
        let mut changes = vec![("p", &self.p), ("m", m), ("v", v)];
        changes.extend(self.copy.iter().map(|copy| ("copy", copy)));
        changes.extend(["scales of m", "scales of v"].into_iter().zip(&self.scales));
        let subject = Subject {
            on,
            work: cases::workload(op, self.n),
            changes: vec![changes],
            memory_bytes: 0,
            compare: Box::new(|by| self.compare(on, grads, by)),
        };
        let g = Grads::F32(grads.ptr(on));
        // SAFETY: the operands have `n` elements, where the groups end, and outlive the measurement.
        subject.counted(f, FUSED, subject.work.bytes, |_| unsafe {
            cuda::update(on.launcher(), Elem::Bf16, self.state(on), g, self.n, hyper, 2, Ptr::NULL)
        })?;
        // PyTorch has no moments of 8 bits.
        if self.kind == Kind::Quantised {
            return Ok(());
        }
        let master = self.kind == Kind::Master;
        let layout = Layout { master, of_elem: false, copy: master, clip: false };
        let room = Room::new(on, 0, cuda_eager::scratch_bytes(Elem::Bf16, layout, self.n));
        let moved = traffic(&cuda_eager::update_passes(Elem::Bf16, layout, self.n));
        subject.counted(f, EAGER, moved, |_| {
            let (state, scratch) = (self.state(on), room.at(on)?.scratch);
            // SAFETY: as above; without a clip buffer the gradients stay.
            unsafe {
                cuda_eager::update(on.launcher(), Elem::Bf16, state, g, self.n, hyper, 2, Ptr::NULL, scratch)
            }
        })
    }

    /// A moment before the update: the first (0) or the second (1).
    fn moment(&self, which: usize, i: usize) -> f64 {
        match self.kind {
            Kind::Quantised => {
                let (code, scale) =
                    (self.codes[i % self.codes.len()], self.scales[which].values().at(i / BLOCK));
                f64::from(decode(which, code, scale as f32))
            }
            _ => self.moments[which].values().at(i),
        }
    }

    /// Whole blocks of the arena against the equations.
    fn compare<B: Testbed<Memory = M>>(
        &self,
        on: &B,
        grads: &Operand<M>,
        by: Variant,
    ) -> Result<Vec<Compared>, GpuError> {
        let slack = by.slack;
        let mut looks = [0; 3].map(|_| Look::default());
        // Of coded moments what an error is measured by depends on the block.
        let mut coded = Vec::new();
        for block in sample(self.n.div_ceil(BLOCK), 6) {
            let begin = block * BLOCK;
            let len = BLOCK.min(self.n - begin);
            let mut want = [0; 3].map(|_| Vec::with_capacity(len));
            for i in begin..begin + len {
                let [m, v] = [0, 1].map(|which| self.moment(which, i));
                let (p, m, v) =
                    reference::update(self.p.values().at(i), grads.values().at(i), m, v, HYPER, 1.0);
                want.iter_mut().zip([p, m, v]).for_each(|(w, x)| w.push(x));
            }
            let [p, m, v] = want;
            looks[0].add(begin, self.p.now(on, begin, len)?, p);
            for (which, want) in [(0, m), (1, v)] {
                if self.kind == Kind::Quantised {
                    coded.extend(self.compare_coded(on, which, block, want, slack)?);
                } else {
                    looks[1 + which].add(begin, self.moments[which].now(on, begin, len)?, want);
                }
            }
        }
        let looks = looks.into_iter().zip(["p", "m", "v"]).take(if coded.is_empty() { 3 } else { 1 });
        let all = looks.map(|(look, what)| match self.kind {
            Kind::Master | Kind::Quantised => look.against_largest(what, slack * TOLERANCE),
            Kind::Rounded if by == EAGER => look.against_largest(what, TO_NEAREST),
            Kind::Rounded => {
                // One of the two neighbours. What cancels to almost nothing has the error of f32 arithmetic.
                let noise = 1e-7 * look.largest();
                look.against(what, slack * 1.001, |x| {
                    2f64.powi(x.abs().max(1e-37).log2().floor() as i32 - 7).max(noise)
                })
            }
        });
        Ok(all.chain(coded).collect())
    }

    /// Moments of a block in 8 bits, within the error that `cuda.rs` states, and their scale.
    fn compare_coded<B: Testbed<Memory = M>>(
        &self,
        on: &B,
        which: usize,
        block: usize,
        want: Vec<f64>,
        slack: f64,
    ) -> Result<[Compared; 2], GpuError> {
        let floor = [2f64.powi(-17), 2f64.powi(-33)][which];
        let (name, begin) = (["m", "v"][which], block * BLOCK);
        let scale = self.scales[which].now(on, block, 1)?;
        let codes = self.moments[which].bytes_now(on, begin, want.len())?;
        let got = codes.into_iter().map(|code| decode(which, code, scale[0])).collect();
        let largest = want.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        let mut scales = Look::default();
        scales.add(block, scale, vec![largest]);
        let mut look = Look::default();
        look.add(begin, got, want);
        Ok([
            scales.against_largest(&format!("scale of {name}"), slack * TOLERANCE),
            look.against(name, slack * 1.001, |x| (x.abs() / 8.0).max(floor * largest) + 1e-30),
        ])
    }
}

fn decode(which: usize, code: u8, scale: f32) -> f32 {
    if which == 0 { codes::decode_first(code, scale) } else { codes::decode_second(code, scale) }
}
