//! What the backward pass makes again changes memory and work, and not a bit of any gradient: on the processor.

use std::collections::BTreeMap;

use chronicals::{
    KernelPlan, Seam, Variant,
    backend::Backend,
    memory::{Accounting, elements},
    model::Level,
};
use chronicals_tests::golden::{Case, FAMILIES, Geometry, Golden};

type Gradients = (f64, BTreeMap<String, Vec<f32>>);

fn cases() -> Vec<Case> {
    let eager = KernelPlan::uniform(Variant::Eager);
    let probs = KernelPlan::default().with(Seam::Attention, Variant::Eager);
    let of = |case: Case| [case.clone(), case.clone().with(eager), case.with(probs)];
    [Case::full(), Case::lora()].into_iter().flat_map(of).collect()
}

/// Of two steps' batches, so that nothing of the first is left that the second needs.
fn gradients(golden: &Golden, case: &Case, geometry: Geometry) -> [Gradients; 2] {
    let batches = golden.batches(geometry, 1);
    let mut trainer = golden.trainer(case, &batches);
    let micro_batches = batches.step(0).unwrap().micro_batches;
    [(); 2].map(|()| trainer.gradients(&micro_batches).unwrap())
}

#[test]
fn every_level_gives_the_same_gradients_to_the_bit() {
    for family in FAMILIES {
        let golden = Golden::load(family);
        for case in cases() {
            for geometry in [Geometry::Packed, Geometry::Padded, Geometry::Accumulated] {
                let kept = gradients(&golden, &case, geometry);
                assert!(kept[0].1.values().flatten().any(|g| *g != 0.0));
                for recompute in Level::ALL {
                    let made = gradients(&golden, &Case { recompute, ..case.clone() }, geometry);
                    assert!(made == kept, "{family} {geometry:?} {recompute} {}", case.prefix());
                }
            }
        }
    }
}

#[test]
fn every_level_takes_less_memory_than_the_one_before_and_what_its_plan_says() {
    let golden = Golden::load("qwen3");
    let batches = golden.batches(Geometry::Packed, 1);
    for case in cases() {
        let planned = Level::ALL.map(|recompute| {
            let case = Case { recompute, ..case.clone() };
            let setup = case.setup(&golden.config, &batches);
            let planned = Accounting::CPU.bytes(&elements(&setup, Default::default()).unwrap());
            let trainer = golden.trainer(&case, &batches);
            assert_eq!(trainer.backend().planned_bytes(), planned, "{recompute}");
            planned.values().sum::<u64>()
        });
        assert!(planned.is_sorted_by(|more, less| more > less), "{planned:?}");
    }
}

#[test]
fn what_is_made_again_is_logged() {
    let golden = Golden::load("llama");
    let batches = golden.batches(Geometry::Packed, 1);
    let (case, layers) = (Case::full(), golden.config.layers as u64);
    let runs = Level::ALL.map(|recompute| {
        let mut trainer = golden.trainer(&Case { recompute, ..case.clone() }, &batches);
        trainer.gradients(&batches.step(0).unwrap().micro_batches).unwrap();
        let log = trainer.backend().launches();
        let of = |name: &str| log[&format!("{name}.fused.{}", "forward")];
        [of("mlp"), of("norm"), of("attention")]
    });
    // Forward passes of SwiGLU, of norms without a sum (the first alone), and of attention.
    let expected = [
        [layers, 1, layers],
        [2 * layers, 1, layers],
        [2 * layers, 1 + 2 * layers, layers],
        [2 * layers, 1 + 2 * layers, layers],
        [2 * layers, 1 + 2 * layers, 2 * layers],
    ];
    assert_eq!(runs, expected);
}
