//! The checks of the benches: they pass what is right and refuse what is not, at shapes that the emulator has time for.

use std::{cell::Cell, collections::BTreeMap};

use chronicals_kernels::{
    adamw, attention, embedding, gemm,
    gpu::{
        Arg, Cost, Entry, GpuError, Grid, Launcher, Needs, Products, Ptr,
        bench::{Bench, Checked, EAGER, Taker, Testbed, Wants},
        digest::digest,
    },
    linear_ce, lora, qk_rope, rmsnorm, swiglu,
};

use crate::{
    emulator::{Block, Emulator},
    machine::Machine,
};

/// What goes wrong with the launches of one entry point.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// They do nothing.
    Lost,
    /// Their last float is another.
    Wrong,
    /// As `Wrong`, from the second launch on.
    Unsteady,
}

/// The emulator as a test bed, in or out of order.
struct Bed {
    machine: Emulator,
    fault: Option<(&'static str, Fault)>,
    launches: Cell<usize>,
    /// Bytes that launches said they move.
    said: Cell<u64>,
}

impl Bed {
    fn new(fault: Option<(&'static str, Fault)>) -> Self {
        Self { machine: Emulator::new(), fault, launches: Cell::new(0), said: Cell::new(0) }
    }
}

impl Launcher for Bed {
    unsafe fn launch(&self, entry: Entry, grid: Grid, args: &[Arg]) -> Result<(), GpuError> {
        let mut args = args.to_vec();
        if let Some((_, fault)) = self.fault.filter(|(name, _)| *name == entry.name) {
            let before = self.launches.replace(self.launches.get() + 1);
            if fault == Fault::Lost {
                return Ok(());
            }
            if fault == Fault::Wrong || before > 0 {
                args.iter_mut().filter(|a| matches!(a, Arg::F32(_))).for_each(|a| *a = Arg::F32(0.5));
            }
        }
        // SAFETY: the caller's promise; floats are no addresses.
        unsafe { self.machine.launch(entry, grid, &args) }
    }

    fn costs(&self, next: Cost) {
        self.said.set(self.said.get() + next.bytes);
    }

    fn processors(&self) -> u32 {
        self.machine.processors()
    }

    fn shared_bytes(&self) -> usize {
        self.machine.shared_bytes()
    }
}

impl Testbed for Bed {
    type Memory = Block;

    fn launcher(&self) -> &dyn Launcher {
        self
    }

    fn products(&self) -> Result<&dyn Products, GpuError> {
        Ok(&self.machine)
    }

    fn alloc(&self, bytes: usize) -> Result<Block, GpuError> {
        Ok(Block::new(&vec![0; bytes]))
    }

    fn ptr(&self, memory: &Block) -> Ptr {
        memory.ptr()
    }

    fn fill(&self, memory: &Block, byte: u8) -> Result<(), GpuError> {
        self.repeat(memory, &[byte])
    }

    fn repeat(&self, memory: &Block, block: &[u8]) -> Result<(), GpuError> {
        let len = memory.bytes().len();
        let bytes: Vec<u8> = block.iter().copied().cycle().take(len).collect();
        let at = std::ptr::with_exposed_provenance_mut::<u8>(memory.ptr().0 as usize);
        // SAFETY: the block has that many bytes, and nobody else looks at them.
        unsafe { at.copy_from(bytes.as_ptr(), len) };
        Ok(())
    }

    fn read(&self, memory: &Block, at: usize, len: usize) -> Result<Vec<u8>, GpuError> {
        Ok(memory.bytes()[at..at + len].to_vec())
    }

    fn l2_bytes(&self) -> usize {
        4096
    }

    fn meets(&self, needs: Needs) -> bool {
        self.machine.meets(needs)
    }
}

const ALL: &Wants = &|_| true;

/// Checks of every bench that a group offers, by operation and case.
type Outcomes = Vec<(String, Checked)>;

fn outcome(bench: Bench<Bed>, all: &mut Outcomes) -> Result<(), GpuError> {
    let work = bench.work();
    all.push((format!("{} {} {}", work.op, bench.variant.name, work.case), bench.check()?));
    Ok(())
}

fn all_hold(outcomes: Outcomes, fewest: usize) {
    assert!(outcomes.len() >= fewest, "{} benches", outcomes.len());
    for (what, checked) in outcomes {
        assert_eq!(checked.failure, None, "{what}");
        assert!(!checked.compared.is_empty(), "{what}: nothing was compared");
    }
}

/// Every bench, at a small shape.
fn each_small(bed: &Bed, take: &mut Taker<'_, Bed>) {
    let shape = |tokens, hidden| rmsnorm::Shape { tokens, hidden };
    rmsnorm::bench::each(bed, &[shape(37, 64), shape(3, 1032)], take).unwrap();
    swiglu::bench::each(bed, &[(21, 72)], take).unwrap();
    let shape = swiglu::cases::Adapted { tokens: 21, ffn: 72, r: 8 };
    swiglu::bench_adapted::each(bed, &[shape], take).unwrap();
    let shape = qk_rope::Shape { tokens: 50, heads: 4, kv_heads: 2, head_dim: 32 };
    qk_rope::bench::each(bed, &[shape], take).unwrap();
    let shape = embedding::cuda::Shape { tokens: 390, vocabulary: 300, hidden: 24 };
    embedding::bench::each(bed, &[shape], take).unwrap();
    adamw::bench::each(bed, &[10_008], ALL, take).unwrap();
    let shape = linear_ce::Shape { tokens: 40, hidden: 16, vocab: 1000 };
    linear_ce::bench::each(bed, &[shape], ALL, take).unwrap();
    let case = |name, heads, kv_heads, head_dim, lengths| attention::bench::GpuCase {
        name,
        shape: attention::Shape { heads, kv_heads, head_dim },
        lengths,
    };
    // Of two that are dense, one has several rows.
    let ragged = [case("ragged", 4, 2, 64, vec![130, 1, 31]), case("ragged", 2, 1, 128, vec![20, 9])];
    let cases =
        [&ragged[..], &[case("rows", 4, 2, 64, vec![40; 3]), case("row", 2, 2, 64, vec![33])]].concat();
    attention::bench::each(bed, &cases, ALL, take).unwrap();
    let layer = gemm::cases::Layer { name: "small", outputs: 40, inputs: 24 };
    gemm::bench::each(bed, &[(50, layer)], take).unwrap();
    let shape = lora::Shape { tokens: 50, inputs: 24, outputs: 40 };
    const SEGMENTS: [lora::Segment; 2] =
        [lora::Segment { offset: 0, width: 24, r: 8 }, lora::Segment { offset: 24, width: 16, r: 8 }];
    let case = lora::cases::Case { name: "small", shape, segments: &SEGMENTS, seed: 1 };
    lora::bench::each(bed, &[case], take).unwrap();
}

#[test]
fn every_bench_holds() {
    let (bed, mut all) = (Bed::new(None), Outcomes::new());
    each_small(&bed, &mut |b| outcome(b, &mut all));
    all_hold(all, 60);
}

/// Bytes that are moved at every operation and shape: by the fused variant that moves least, and by eager.
fn moved() -> BTreeMap<(&'static str, String), [Option<u64>; 2]> {
    let (bed, mut all) = (Bed::new(None), BTreeMap::new());
    each_small(&bed, &mut |b| {
        let work = b.work();
        // Chunks are the fused variant's own.
        let case = work.case.split(" by ").next().unwrap().to_string();
        let of: &mut [Option<u64>; 2] = all.entry((work.op, case)).or_default();
        let of = &mut of[usize::from(b.variant == EAGER)];
        *of = [*of, b.moved_bytes].into_iter().flatten().min();
        Ok(())
    });
    all
}

#[test]
fn whatever_has_an_eager_variant_says_what_both_move() {
    const WITHOUT: [&str; 6] = [
        "adamw_norm",
        "adamw_master_8bit",
        "embedding_forward",
        "embedding_backward",
        "linear_ce_products",
        "linear_ce_rows",
    ];
    for ((op, case), [fused, eager]) in moved() {
        let without = WITHOUT.contains(&op)
            || ["gemm_", "swiglu_adapted"].iter().any(|of| op.starts_with(of))
            || case.ends_with("ragged");
        match (fused, eager) {
            (Some(fused), Some(eager)) => {
                assert!(fused < eager, "{op} {case}: {fused} bytes fused, {eager} unfused");
            }
            (_, None) => assert!(without, "{op} {case} has no eager variant"),
            (None, Some(_)) => panic!("{op} {case}: nobody knows what the fused variant moves"),
        }
    }
}

#[test]
fn moved_bytes_are_those_of_passes_and_products() {
    let all = moved();
    // Gate, up and act; silu's pass, then the product's.
    let n = 21 * 72;
    assert_eq!(all[&("swiglu_forward", "21x72".into())], [Some(2 * 3 * n), Some(2 * 5 * n)]);
    // LoRA: down and up with what they add to, and B made wide.
    let (t, d, out, s) = (50, 24, 40, 16);
    let products = (t * d + s * d + t * s) + (t * s + s * out + 2 * t * out);
    let b = (24 + 16) * 8;
    let fused = 2 * (products + b + s * out);
    // For each adapter its down and its up; then two passes over its columns, of which one reads two.
    let adapter = |width| (t * d + 8 * d + t * 8) + (t * 8 + 8 * width + t * width) + 5 * t * width;
    let eager = 2 * (adapter(24) + adapter(16));
    let found = all.iter().find(|((op, _), _)| *op == "lora_forward").unwrap();
    assert_eq!(*found.1, [Some(fused), Some(eager)]);
}

/// What launches say they move is what the benches count for one pass, and a little for partial sums. The operations of one kernel;
/// what others say is held by what both variants move.
#[test]
fn launches_say_the_bytes_of_their_workload() {
    const ONE_KERNEL: [&str; 4] = ["rmsnorm", "swiglu", "qk_rope", "adamw"];
    let (bed, mut seen) = (Bed::new(None), 0);
    each_small(&bed, &mut |b| {
        let work = b.work();
        let of_one = ONE_KERNEL.iter().any(|name| work.op.starts_with(name));
        // The sums of a norm's weight or of a bias are as much as all else, of so few rows.
        let sums =
            ["norm_backward", "norm_add_backward", "bias_backward"].iter().any(|op| work.op.ends_with(op));
        if of_one && !sums && b.variant != EAGER {
            bed.said.set(0);
            b.run(0)?;
            let (said, bytes) = (bed.said.get(), work.bytes);
            assert!(
                bytes <= said && said < bytes + bytes / 4,
                "{} {}: {said} of {bytes}",
                work.op,
                work.case
            );
            seen += 1;
        }
        Ok(())
    });
    assert!(seen >= 12, "{seen} benches");
}

/// What the check of the first RMSNorm says when `entry` has a fault.
fn faulty(entry: &'static str, fault: Fault) -> Checked {
    let (bed, mut all) = (Bed::new(Some((entry, fault))), Outcomes::new());
    let shape = rmsnorm::Shape { tokens: 9, hidden: 64 };
    rmsnorm::bench::each(&bed, &[shape], &mut |b| outcome(b, &mut all)).unwrap();
    all.into_iter().next().unwrap().1
}

#[test]
fn what_is_not_written_is_refused() {
    let failure = faulty("rmsnorm_forward", Fault::Lost).failure.unwrap();
    assert_eq!(failure, "288 words of y were not written");
}

#[test]
fn what_is_wrong_is_refused_with_place_and_values() {
    let checked = faulty("rmsnorm_forward", Fault::Wrong);
    let y = &checked.compared[0];
    assert!(y.error > 0.1 && y.error < 0.9, "{y}");
    assert_eq!(checked.failure, Some(y.to_string()));
    assert!(checked.failure.unwrap().starts_with("y["));
}

#[test]
fn what_an_eager_operator_does_not_write_is_refused() {
    let (bed, mut all) = (Bed::new(Some(("swiglu_eager_mul", Fault::Lost))), Outcomes::new());
    swiglu::bench::each(&bed, &[(21, 72)], &mut |b| outcome(b, &mut all)).unwrap();
    let failures: Vec<Option<String>> = all.into_iter().map(|(_, checked)| checked.failure).collect();
    let said = failures[1].as_ref().unwrap();
    assert!(failures[0].is_none() && failures[2].is_none() && failures[3].is_some(), "{failures:?}");
    assert_eq!(said, "756 words of act were not written");
}

#[test]
fn other_bits_the_second_time_are_refused() {
    let failure = faulty("rmsnorm_forward", Fault::Unsteady).failure.unwrap();
    assert_eq!(failure, "a second run left other bits in y");
}

#[test]
fn a_digest_sees_a_changed_and_an_exchanged_word() {
    use chronicals_kernels::gpu::{Elem, bench::Operand};
    let bed = Bed::new(None);
    let of =
        |values: &[f32]| digest(&bed, &Operand::of(&bed, Elem::F32, values.len(), values).unwrap()).unwrap();
    let values: Vec<f32> = (0..9001).map(|i| i as f32).collect();
    let first = of(&values);
    assert_eq!((first, first.ones), (of(&values), 0));
    let (mut changed, mut exchanged) = (values.clone(), values);
    changed[9000] += 1.0;
    exchanged.swap(3, 8000);
    assert!(of(&changed) != first && of(&exchanged) != first);
    let poisoned = digest(&bed, &Operand::output(&bed, Elem::F32, 77).unwrap()).unwrap();
    assert_eq!(poisoned.ones, 77);
}

#[test]
fn small_operands_rotate() {
    let bed = Bed::new(None);
    let mut sets = Vec::new();
    for shape in [rmsnorm::Shape { tokens: 4, hidden: 64 }, rmsnorm::Shape { tokens: 40, hidden: 64 }] {
        rmsnorm::bench::each(&bed, &[shape], &mut |b| {
            sets.push(b.sets());
            Ok(())
        })
        .unwrap();
    }
    // 1 KiB moves at the first shape, 10 at the second, and the bed's L2 cache holds 4.
    assert_eq!((sets[0], sets[sets.len() / 2]), ((8, 1024), (1, 10_240)));
}

#[test]
fn every_workload_is_offered_and_says_what_it_moves() {
    use chronicals_kernels::gpu::bench::workloads;
    let all = workloads();
    assert!(all.len() > 40);
    for (i, w) in all.iter().enumerate() {
        assert!(w.bytes > 0 && !w.dims.is_empty() && !w.case.is_empty(), "{w:?}");
        assert!(!all[..i].iter().any(|o| o.op == w.op && o.case == w.case), "{} {} twice", w.op, w.case);
    }
}
