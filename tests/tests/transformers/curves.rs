//! Losses over a training on the same tokens from the same weights.
//!
//! Transformers has no randomness of its own here, so its spread is that of three draws of the starting weights. From each of
//! them our losses must follow its own more closely than the three lie apart.

use std::time::Instant;

use chronibench_protocol::spec::{LoraArgs, Method, PrecisionArgs, States, TrainArgs};
use chronicals::{Trainer, backend::Backend, fit};
use serde_json::json;

use crate::side::{Geometry, Place, Side};

/// Draws of the starting weights.
const SEEDS: u64 = 3;

/// Steps over which losses are averaged before they are compared.
const WINDOW: usize = 20;

fn full() -> (Method, TrainArgs) {
    let args =
        TrainArgs { learning_rate: 2e-4, warmup_steps: 10, weight_decay: 0.01, ..TrainArgs::default() };
    (Method::Full {}, args)
}

fn lora() -> (Method, TrainArgs) {
    let lora: LoraArgs =
        serde_json::from_str(r#"{"r": 32, "lora_alpha": 64, "loraplus_lr_ratio": 4}"#).unwrap();
    (Method::Lora(lora), TrainArgs { learning_rate: 5e-4, weight_decay: 0.0, ..full().1 })
}

fn windows(losses: &[f64]) -> Vec<f64> {
    losses.chunks(WINDOW).map(|w| w.iter().sum::<f64>() / w.len() as f64).collect()
}

/// Mean losses over a few steps.
struct Window {
    /// Of Transformers, over the draws.
    theirs: f64,
    /// From the lowest to the highest of Transformers' draws.
    spread: f64,
    /// Ours less theirs, draw by draw.
    differences: Vec<f64>,
}

impl Window {
    /// Of runs, ours and theirs.
    fn of(runs: &[(Vec<f64>, Vec<f64>)], w: usize) -> Self {
        let theirs = || runs.iter().map(|(_, theirs)| theirs[w]);
        Self {
            theirs: theirs().sum::<f64>() / runs.len() as f64,
            spread: theirs().fold(f64::MIN, f64::max) - theirs().fold(f64::MAX, f64::min),
            differences: runs.iter().map(|(ours, theirs)| ours[w] - theirs[w]).collect(),
        }
    }

    /// The largest difference.
    fn off(&self) -> f64 {
        self.differences.iter().map(|d| d.abs()).fold(0.0, f64::max)
    }
}

fn ours<B: Backend>(mut trainer: Trainer<B>, side: &Side) -> Vec<f64> {
    let mut losses = Vec::new();
    fit::fit(&mut trainer, &side.batches, side.batches.steps(), |_, report| {
        losses.push(report.loss);
        Ok(())
    })
    .unwrap();
    losses
}

fn compare(geometry: Geometry, (method, args): (Method, TrainArgs), states: States, steps: u32) {
    let runs: Vec<(Vec<f64>, Vec<f64>)> = (0..SEEDS)
        .map(|seed| {
            let began = Instant::now();
            let side = Side::new(geometry, method.clone(), args.clone(), steps, 4, seed);
            let drawn = began.elapsed().as_secs();
            let name = if states == States::F32 { "f32" } else { "bf16" };
            let theirs = side.ask(json!({"task": "train", "states": name}));
            let asked = began.elapsed().as_secs();
            let ours = match geometry.place {
                Place::Gpu => ours(
                    side.on_gpu(PrecisionArgs { states: Some(states), ..PrecisionArgs::default() }),
                    &side,
                ),
                Place::Processor => ours(side.on_cpu(), &side),
            };
            let all = began.elapsed().as_secs();
            println!("seed {seed}: drawn after {drawn} s, trained by Transformers after {asked} s, by us after {all} s");
            (windows(&ours), windows(theirs.get("losses")))
        })
        .collect();
    let windows: Vec<Window> = (0..runs[0].0.len()).map(|w| Window::of(&runs, w)).collect();
    for (w, window) in windows.iter().enumerate() {
        println!(
            "steps {:3} to {:3}: Transformers {:.4}, spread {:.4}; ours differ by {}",
            w * WINDOW,
            (w + 1) * WINDOW - 1,
            window.theirs,
            window.spread,
            window.differences.iter().map(|d| format!("{d:+.4}")).collect::<Vec<_>>().join(" ")
        );
    }
    // A range of three is a rough measure: now and then three draws lie close by chance. A window's is therefore the widest of
    // its own and its neighbours'; over the whole curve they count as they are.
    let near = |w: usize| {
        windows[w.saturating_sub(1)..(w + 2).min(windows.len())].iter().map(|w| w.spread).fold(0.0, f64::max)
    };
    let outside: Vec<usize> = (0..windows.len()).filter(|w| windows[*w].off() > near(*w)).collect();
    let mean = |of: fn(&Window) -> f64| windows.iter().map(of).sum::<f64>() / windows.len() as f64;
    let (off, spread) = (mean(Window::off), mean(|w| w.spread));
    println!("over the whole curve: off by {off:.4} at most, spread {spread:.4}");
    assert!(off < spread, "off by {off:.4} where the draws spread by {spread:.4}");
    let (first, last) = (runs[0].0[0], runs[0].0[runs[0].0.len() - 1]);
    assert!(last < first, "the loss falls: {first} to {last}");
    assert!(outside.is_empty(), "outside the spread in windows {outside:?}");
}

/// True widths; a quarter of the blocks, for most of the time goes to drawing and carrying weights.
const GPU: Geometry = Geometry { place: Place::Gpu, layers: 6 };

macro_rules! on_a_gpu {
    ($($name:ident: $setup:ident, $states:ident;)*) => {
        $(
            #[test]
            #[ignore = "needs a GPU and Transformers"]
            fn $name() {
                let _alone = crate::alone();
                compare(GPU, $setup(), States::$states, 200);
            }
        )*
    };
}

on_a_gpu! {
    full_f32: full, F32;
    full_bf16: full, Bf16;
    lora_f32: lora, F32;
    lora_bf16: lora, Bf16;
}

#[test]
#[ignore = "needs Transformers"]
fn on_the_processor() {
    for setup in [full(), lora()] {
        // bf16 arithmetic on f32 states against ours in f32.
        compare(Geometry { place: Place::Processor, layers: 2 }, setup, States::F32, 60);
    }
}
