//! Batches that are prepared and copied while the device works: the same bits as step by step, whatever their shapes, and whenever
//! copies arrive.

use chronibench_protocol::{
    BatchPlan, TokenStore,
    plan::{MicroBatch, StepPlan},
    spec::{Dtype, PrecisionArgs},
};
use chronicals::{
    Error, KernelPlan, Seam, Trainer, Variant,
    backend::{
        Backend,
        cuda::{Buckets, CudaBackend},
    },
    fit::{Batches, fit},
};
use chronicals_emulator::{Arrival, Training};
use chronicals_kernels::gpu::Machine;
use chronicals_tests::{golden::Case, synthetic::Model};

/// Numbers from 0 to below `n`, the same ones every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// Steps of one to three micro-batches of one to three rows, of documents and slots of any length.
fn batches(model: &Model, steps: usize, seed: u64) -> Batches {
    let (mut tokens, mut numbers) = (TokenStore::new(), Numbers(seed));
    for _ in 0..24 {
        let ids: Vec<u32> = (0..2 + numbers.below(7)).map(|_| numbers.below(96) as u32).collect();
        tokens.push(&ids, &vec![1; ids.len()]);
    }
    let lengths = tokens.lengths();
    let mut micro_batch = |_| {
        let rows: Vec<Vec<u32>> = (0..1 + numbers.below(3))
            .map(|_| (0..1 + numbers.below(3)).map(|_| numbers.below(lengths.len()) as u32).collect())
            .collect();
        let used = |row: &Vec<u32>| row.iter().map(|s| lengths[*s as usize]).sum::<usize>();
        let longest = rows.iter().map(used).max().expect("a row");
        MicroBatch { row_slots: (longest + numbers.below(4)) as u32, rows }
    };
    let counts = (0..steps).map(|s| if s % 4 == 3 { 1 } else { 1 + s % 3 });
    let plan = counts.map(|n| StepPlan { micro_batches: (0..n).map(&mut micro_batch).collect() });
    let plan = BatchPlan { packing: "none".into(), max_length: 64, pad_token_id: 0, steps: plan.collect() };
    Batches::new(tokens, plan, &model.config, "drawn").unwrap()
}

fn case(of: Case, graph: Variant) -> Case {
    let mut case = Case {
        precision: PrecisionArgs { dtype: Some(Dtype::F32), states: None },
        kernels: KernelPlan::default().with(Seam::Graph, graph),
        buckets: Some(Buckets { tokens: 16, rows: 16 }),
        ..of
    };
    case.args.learning_rate = 1e-3;
    case
}

fn trainer<D: Machine>(model: &Model, case: &Case, batches: &Batches, on: D) -> Trainer<CudaBackend<D>> {
    model.trainer_on(case, batches, case.on(on, &model.config, batches))
}

/// Loss, norm and digest of every step, and what trains, to the bit.
type Run = (Vec<([u64; 2], String)>, Vec<u32>);

fn weights<B: Backend>(trainer: &Trainer<B>) -> Vec<u32> {
    let m = trainer.model();
    let values = trainer.backend().read(m.adapters.unwrap_or(m.weights)).unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

fn step_by_step<B: Backend>(mut trainer: Trainer<B>, batches: &Batches) -> Run {
    let steps = (0..batches.steps()).map(|s| {
        let r = trainer.train_step(&batches.step(s).unwrap()).unwrap();
        ([r.loss, r.grad_norm].map(f64::to_bits), batches.step(s).unwrap().digest)
    });
    (steps.collect(), weights(&trainer))
}

fn fitted<B: Backend>(mut trainer: Trainer<B>, batches: &Batches) -> Run {
    let mut steps = Vec::new();
    fit(&mut trainer, batches, batches.steps(), |step, r| {
        assert_eq!(step as usize, steps.len(), "reports come in order");
        steps.push(([r.loss, r.grad_norm].map(f64::to_bits), r.digest));
        Ok(())
    })
    .unwrap();
    (steps, weights(&trainer))
}

/// Twice as many steps as shapes need to be captured and replayed.
fn compare<D: Machine>(machines: &[&dyn Fn() -> D]) {
    let model = Model::new("qwen2", 16);
    for (seed, of) in [(1, Case::full()), (2, Case::lora())] {
        let batches = batches(&model, 16, seed);
        let launched = case(of.clone(), Variant::Eager);
        let expected = step_by_step(trainer(&model, &launched, &batches, machines[0]()), &batches);
        for (machine, variant) in machines.iter().flat_map(|m| Variant::ALL.map(|v| (m, v))) {
            let case = case(of.clone(), variant);
            let run = fitted(trainer(&model, &case, &batches, machine()), &batches);
            assert!(run.0 == expected.0, "seed {seed}, graphs {variant}: {:?}\n{:?}", run.0, expected.0);
            assert!(run.1 == expected.1, "seed {seed}, graphs {variant}: other weights");
        }
    }
}

pub fn as_step_by_step<D: Machine>(machine: &dyn Fn() -> D) {
    compare(&[machine]);
}

/// Copies that come as late and as early as marks let them.
pub fn whenever_copies_arrive(_: &dyn Fn() -> Training) {
    compare(&[&|| Training::arriving(Arrival::Late), &|| Training::arriving(Arrival::Early)]);
}

/// Every seam's eager variant, whose batches are not rounded up.
pub fn eager_whenever_copies_arrive(_: &dyn Fn() -> Training) {
    let model = Model::new("qwen3", 16);
    let batches = batches(&model, 12, 4);
    let case = case(Case::full(), Variant::Fused);
    let case =
        Case { kernels: KernelPlan::uniform(Variant::Eager).with(Seam::Graph, Variant::Fused), ..case };
    let of = |arrival| trainer(&model, &case, &batches, Training::arriving(arrival));
    let expected = step_by_step(of(Arrival::Late), &batches);
    assert!([Arrival::Late, Arrival::Early].iter().all(|a| fitted(of(*a), &batches) == expected));
}

/// Another thread encodes; and the next step is handed over before the numbers of the last are read.
pub fn ahead(_: &dyn Fn() -> Training) {
    let model = Model::new("qwen2", 16);
    let batches = batches(&model, 8, 5);
    let case = case(Case::full(), Variant::Fused);
    let this = std::thread::current().id();
    let mut trainer = trainer(&model, &case, &batches, Training::new());
    trainer.train_step(&batches.step(0).unwrap()).unwrap();
    let device = trainer.backend().device();
    assert!(device.writers().into_iter().eq([this]), "step by step, one thread does all");

    let micro_batches =
        |steps: u32| -> usize { (0..steps).map(|s| batches.step(s).unwrap().micro_batches.len()).sum() };
    // What a report cannot see of the trainer while it trains: the machine's own count.
    let counter = device.counter();
    let before = counter.sent();
    fit(&mut trainer, &batches, 8, |step, _| {
        // The first step was taken above.
        let behind = micro_batches((step + 2).min(8)) - micro_batches(1);
        assert_eq!(counter.sent() - before, behind, "step {step}");
        Ok(())
    })
    .unwrap();
    let writers = trainer.backend().device().writers();
    assert_eq!(writers.len(), 2, "the preparer encodes, and the trainer adds the step's numbers");
}

/// What goes wrong on either side ends both, and is told.
pub fn failures<D: Machine>(machine: &dyn Fn() -> D) {
    let model = Model::new("qwen2", 16);
    let good = batches(&model, 8, 6);
    let run = |batches: &Batches, case: &Case, ends: Option<u32>| -> (u32, Error) {
        let mut reported = 0;
        let e = fit(&mut trainer(&model, case, batches, machine()), batches, 8, |step, _| {
            reported = step + 1;
            if ends == Some(step) { Err(Error::new("enough", "the test")) } else { Ok(()) }
        });
        (reported, e.unwrap_err())
    };
    let case = case(Case::full(), Variant::Fused);
    let (reported, e) = run(&good, &case, Some(2));
    assert_eq!((reported, e.to_string().contains("enough")), (3, true), "{e}");

    let mut plan = good.plan().clone();
    plan.steps[5].micro_batches[0].rows[0][0] = 99;
    let bad = Batches::new(good.tokens().clone(), plan, &model.config, "drawn").unwrap();
    let (reported, e) = run(&bad, &case, None);
    assert!(e.to_string().contains("step 5 of the batch plan"), "{e}");
    assert!(reported >= 4, "{reported} were reported");

    let mut wild = case.clone();
    (wild.args.learning_rate, wild.args.max_grad_norm) = (1e30, 0.0);
    let (_, e) = run(&good, &wild, None);
    assert!(e.to_string().contains("training diverged"), "{e}");
}

/// The processor, too, has its batches from the preparer.
#[test]
fn on_the_processor() {
    let model = Model::new("llama", 16);
    let batches = batches(&model, 8, 7);
    let case = case(Case::full(), Variant::Fused);
    let of = || model.trainer(&case, &batches);
    assert!(fitted(of(), &batches) == step_by_step(of(), &batches));
}
