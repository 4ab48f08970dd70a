//! A trial of the protocol on a GPU: what its events say, and the weights that it leaves.

use std::collections::BTreeMap;

use chronibench_protocol::{
    Event, Spec,
    event::{Done, Hello, Phase, Ready, Step, Window},
    spec::{DataSpec, Measure, Method, ModelSpec, PROTOCOL, PrecisionArgs, Recompute, States},
};
use chronicals::worker;
use chronicals_kernels::gpu::Machine;
use chronicals_tests::{
    golden::{Case, Geometry, Golden},
    synthetic::Model,
};
use safetensors::SafeTensors;

struct Told {
    hello: Hello,
    ready: Ready,
    done: Done,
    losses: Vec<f64>,
}

fn run<D: Machine>(machine: D, spec: &Spec) -> Told {
    let mut events = Vec::new();
    worker::run_on(spec, machine, &mut |e| {
        events.push(e);
        Ok(())
    })
    .unwrap();
    let steps: Vec<&Step> =
        events.iter().filter_map(|e| if let Event::Step(s) = e { Some(s) } else { None }).collect();
    check_steps(&steps, &events);
    let losses = steps.iter().map(|s| s.loss).collect();
    let mut events = events.into_iter();
    let (Some(Event::Hello(hello)), Some(Event::Ready(ready))) = (events.next(), events.next()) else {
        panic!("hello and ready come first")
    };
    let Some(Event::Done(done)) = events.next_back() else { panic!("done comes last") };
    Told { hello, ready, done, losses }
}

/// What ran is what was planned, and no time lies between steps, nor between windows.
fn check_steps(steps: &[&Step], events: &[Event]) {
    let batches = Golden::load("qwen3").batches(Geometry::Accumulated, 6);
    for (i, s) in steps.iter().enumerate() {
        let planned = batches.step(i as u32).unwrap();
        assert_eq!((s.step as usize, &s.digest, s.tokens), (i, &planned.digest, planned.counts));
        assert_eq!(s.phase == Phase::Timed, i >= 2);
    }
    assert!(steps.windows(2).all(|w| w[0].end_ns == w[1].start_ns && w[1].start_ns < w[1].end_ns));
    let windows = events.iter().filter_map(|e| if let Event::Window(w) = e { Some(w) } else { None });
    let of = |w: &Window| [w.index, w.first_step, w.last_step];
    let windows: Vec<_> = windows.map(|w| (of(w), [w.start_ns, w.end_ns])).collect();
    let edges = |first: usize| [steps[first].start_ns, steps[first + 1].end_ns];
    assert_eq!(windows, [([0, 2, 3], edges(2)), ([1, 4, 5], edges(4))]);
}

fn spec(model: &Model, dir: &std::path::Path, of: &Case, states: States, kernels: &[(&str, &str)]) -> Spec {
    let batches = Golden::load("qwen3").batches(Geometry::Accumulated, 6);
    let [tokens, plan] = ["tokens.safetensors", "plan.json"].map(|name| dir.join(name));
    batches.tokens().save(&tokens).unwrap();
    std::fs::write(&plan, serde_json::to_vec(batches.plan()).unwrap()).unwrap();
    let mut method = of.method.clone();
    if let Method::Lora(lora) = &mut method {
        let path = dir.join("adapter.safetensors");
        chronicals::init::write_initial_adapter(&model.config_path(), lora, 1, false, &path).unwrap();
        lora.adapter_weights = Some(path);
    }
    Spec {
        protocol: PROTOCOL.into(),
        trial_id: "trial".into(),
        arm: "chronicals".into(),
        model: ModelSpec { config: model.config_path(), weights: model.weights() },
        data: DataSpec { tokens, plan },
        method,
        train: of.args.clone(),
        measure: Measure { untimed_steps: 2, timed_steps: 4, window_steps: 2 },
        kernels: kernels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        threads: None,
        device: "cuda".into(),
        options: Default::default(),
        precision: PrecisionArgs { dtype: None, states: Some(states) },
        recompute: Recompute::Auto,
        offload: false,
        memory_limit_gb: None,
        save_weights: Some(dir.join("saved.safetensors")),
        audit: None,
    }
}

/// Every seam of the plan ran, at its variant alone, but for the adapters of a model that has none.
fn check_launches(plan: &BTreeMap<String, String>, launches: &BTreeMap<String, u64>, lora: bool) {
    for (seam, variant) in plan.iter().filter(|(seam, _)| lora || *seam != "lora") {
        let of_seam: Vec<&String> =
            launches.keys().filter(|name| name.split('.').next() == Some(seam)).collect();
        let planned = format!("{seam}.{variant}.");
        assert!(!of_seam.is_empty(), "{seam} never ran: {launches:?}");
        assert!(of_seam.iter().all(|name| name.starts_with(&planned)), "{seam}: {of_seam:?}");
    }
}

pub fn events<D: Machine>(machine: &dyn Fn() -> D) {
    let model = Model::new("qwen2", 64);
    for of in [Case::full(), Case::adapters(8)] {
        let lora = matches!(of.method, Method::Lora(_));
        for (kernels, states, moments) in [
            (&[][..], States::Eight, "8bit"),
            (&[("attention", "mma"), ("graph", "eager")], States::Eight, "8bit"),
            (&[("all", "eager"), ("graph", "fused")], States::F32, "f32"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let spec = spec(&model, dir.path(), &of, states, kernels);
            let Told { hello, ready, done, losses } = run(machine(), &spec);
            let p = &hello.precision;
            assert_eq!([&p.weights, &p.master, &p.moments, &p.grads], ["bf16", "f32", moments, "f32"]);
            for (seam, variant) in kernels.iter().filter(|(seam, _)| *seam != "all") {
                assert_eq!(hello.kernel_plan[*seam], *variant);
            }
            assert_eq!(hello.kernel_plan.len(), 8);
            let path = hello.settings.get("attention_path").map(|path| path.as_str().unwrap());
            match hello.kernel_plan["attention"].as_str() {
                "eager" => assert_eq!(path, None),
                "mma" => assert_eq!(path, Some("mma")),
                _ => assert!(["mma", "hopper"].contains(&path.unwrap()), "{path:?}"),
            }
            assert_eq!(hello.settings["recompute"], "none");
            assert!(hello.chosen["recompute"].contains(" free"), "{:?}", hello.chosen);
            assert!(ready.planned_bytes.contains_key("scratch"), "{:?}", ready.planned_bytes);
            check_launches(&hello.kernel_plan, &done.kernels, lora);
            assert!(losses.len() == 6 && losses[5] < losses[0], "{losses:?}");
            check_saved(&spec, lora);
        }
    }
}

/// What trains moved; what is frozen has the bits that it began with.
fn check_saved(spec: &Spec, lora: bool) {
    let [before, after] =
        [&spec.model.weights, spec.save_weights.as_ref().unwrap()].map(|p| std::fs::read(p).unwrap());
    let [before, after] = [&before, &after].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    for (name, tensor) in before.tensors() {
        let same = after.tensor(&name).unwrap().data() == tensor.data();
        assert_eq!(same, lora, "{name}");
    }
    assert_eq!(after.names().iter().any(|name| name.contains("lora_B")), lora);
}
