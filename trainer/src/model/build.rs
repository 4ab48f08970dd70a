//! Lays a model out in a backend's buffers.

use std::collections::BTreeMap;

use chronibench_protocol::spec::Method;
use chronicals_kernels::{KernelPlan, Seam, Variant, lora::Segment};

use super::{Block, Level, Model, offload::PLACES};
use crate::{
    backend::{
        Adapter, Allocator, Attention, Beside, Component, Dora, Group, HostPlace, Linear, Norm, Param,
        QkNorm, QkRope, View,
    },
    config::ModelConfig,
    error::Error,
    lora::{Adapters, Size},
    params::{self, Layout, PROJECTION_GROUPS},
};

/// The largest micro-batch a model is laid out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Slots of a micro-batch, at most.
    pub tokens: usize,
    /// Slots of a row, at most.
    pub row_slots: usize,
}

/// Everything that decides how large a model's buffers are.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// Architecture.
    pub config: &'a ModelConfig,
    /// What trains.
    pub method: &'a Method,
    /// Largest micro-batch.
    pub capacity: Capacity,
    /// Which variants run: some save more than others.
    pub plan: KernelPlan,
    /// What the backward pass makes again: blocks share the memory of it.
    pub recompute: Level,
    /// Blocks' entries wait for the backward pass on the host.
    pub offload: bool,
}

/// Where each parameter lives and, if it trains, its gradient.
struct Store<'a> {
    layout: &'a Layout,
    values: View,
    grads: Option<View>,
}

impl Store<'_> {
    fn param<S: AsRef<str>>(&self, names: &[S]) -> Option<Param> {
        let (offset, len) = self.layout.span(names)?;
        let at = |v: View| v.slice(offset, len);
        Some(Param { value: at(self.values), grad: self.grads.map(at) })
    }

    fn one(&self, name: &str) -> Param {
        self.param(&[name]).unwrap_or_else(|| unreachable!("{name} is in the layout of its family"))
    }
}

impl Model {
    /// Allocates parameters, gradients, moments and activations, all of a step, from `alloc`.
    ///
    /// # Errors
    /// The method's settings make no sense, see [`Layout::adapters`].
    pub fn build(alloc: &mut impl Allocator, s: &Setup<'_>) -> Result<Self, Error> {
        let model = Layout::model(s.config);
        let weights = alloc.alloc(Component::Weights, model.len());
        match s.method {
            Method::Full {} => {
                let (grads, groups) = trainable(alloc, &model, weights, 1.0);
                let base = Store { layout: &model, values: weights, grads: Some(grads) };
                Ok(Self { grads, groups, ..layers(alloc, s, &base, None) })
            }
            Method::Lora(args) => {
                let layout = Layout::adapters(s.config, args)?;
                let values = alloc.alloc(Component::Adapters, layout.len());
                let (grads, groups) = trainable(alloc, &layout, values, args.loraplus_lr_ratio);
                let base = Store { layout: &model, values: weights, grads: None };
                let store = Store { layout: &layout, values, grads: Some(grads) };
                let lora = Lora { store, adapters: Adapters::of(s.config, args)? };
                Ok(Self { grads, groups, adapters: Some(values), ..layers(alloc, s, &base, Some(&lora)) })
            }
        }
    }
}

/// Gradients, moments and update groups of whatever trains; runs of equal settings become one group.
fn trainable(alloc: &mut impl Allocator, layout: &Layout, values: View, b_ratio: f64) -> (View, Vec<Group>) {
    let grads = alloc.alloc(Component::Gradients, layout.len());
    let m = alloc.alloc(Component::OptimizerStates, layout.len());
    let v = alloc.alloc(Component::OptimizerStates, layout.len());
    let mut groups = Vec::new();
    for run in layout.tensors.chunk_by(|a, b| a.group == b.group && a.decays() == b.decays()) {
        let (first, last) = (&run[0], &run[run.len() - 1]);
        let at = |view: View| view.slice(first.offset, last.offset + last.len() - first.offset);
        groups.push(Group {
            name: first.group,
            value: at(values),
            grad: at(grads),
            m: at(m),
            v: at(v),
            // As in PEFT's optimizer, vectors go with B.
            lr_ratio: if first.group == "lora_A" { 1.0 } else { b_ratio },
            decay: first.decays(),
        });
    }
    (grads, groups)
}

struct Lora<'a> {
    store: Store<'a>,
    adapters: Adapters,
}

/// Of a buffer: of what, which, and of how many ranks, where there are any. What is beyond the ranks stays as it is.
type Name = (&'static str, &'static str, usize);

/// Hands out activation buffers of `width` values a token.
struct Acts<'a, A> {
    alloc: &'a mut A,
    tokens: usize,
    recompute: Level,
    /// What all blocks share, by name.
    shared: BTreeMap<Name, View>,
}

impl<A: Allocator> Acts<'_, A> {
    fn take(&mut self, component: Component, width: usize) -> View {
        self.alloc.alloc(component, self.tokens * width)
    }

    fn rows(&mut self, width: usize) -> View {
        self.take(Component::Activations, width)
    }

    /// Two buffers in one piece of memory, of which never both are in use.
    fn either(&mut self, widths: [usize; 2]) -> [View; 2] {
        let both = self.rows(widths[0].max(widths[1]));
        widths.map(|width| both.slice(0, self.tokens * width))
    }

    /// A buffer that each block has, or all of them share from the level on that makes its contents again.
    fn of_block(&mut self, name: Name, again: Option<Level>, component: Component, width: usize) -> View {
        if again.is_none_or(|level| self.recompute < level) {
            return self.take(component, width);
        }
        if let Some(view) = self.shared.get(&name) {
            return *view;
        }
        let view = self.take(component, width);
        self.shared.insert(name, view);
        view
    }

    fn kept(&mut self, name: &'static str, again: Level, width: usize) -> View {
        self.of_block(("", name, 0), Some(again), Component::Activations, width)
    }

    fn statistics(&mut self, name: &'static str, again: Level, width: usize) -> View {
        self.of_block(("", name, 0), Some(again), Component::Statistics, width)
    }
}

fn layers(alloc: &mut impl Allocator, s: &Setup<'_>, base: &Store<'_>, lora: Option<&Lora<'_>>) -> Model {
    let c = s.config;
    let (tokens, recompute) = (s.capacity.tokens, s.recompute);
    let mut acts = Acts { alloc, tokens, recompute, shared: BTreeMap::new() };
    let embed = base.one("model.embed_tokens.weight");
    let blocks = (0..c.layers).map(|l| block(&mut acts, s, base, lora, l)).collect();
    let norm = Norm { weight: base.one("model.norm.weight"), rstd: acts.take(Component::Statistics, 1) };
    // The first of each is done with before the blocks' backward pass begins, or between two of its steps.
    let [x, dact] = acts.either([c.hidden_size, c.intermediate_size]);
    let [y, dqkv] = acts.either([c.hidden_size, c.qkv_width()]);
    let [branch, dattention] = acts.either([c.hidden_size, c.attention_width()]);
    Model {
        embed,
        blocks,
        norm,
        head: if c.tied { embed } else { base.one("lm_head.weight") },
        x,
        y,
        branch,
        dx: acts.rows(c.hidden_size),
        dqkv,
        dattention,
        dact,
        grads: base.values.slice(0, 0),
        recompute,
        groups: Vec::new(),
        weights: base.values,
        adapters: None,
    }
}

/// Names of the places that blocks' entries take turns on.
const TURNS: [&str; PLACES] = ["even entries", "odd entries"];

fn block<A: Allocator>(
    acts: &mut Acts<'_, A>,
    s: &Setup<'_>,
    base: &Store<'_>,
    lora: Option<&Lora<'_>>,
    l: usize,
) -> Block {
    let c = s.config;
    let (d, f) = (c.hidden_size, c.intermediate_size);
    let norm = |acts: &mut Acts<'_, A>, name: &'static str| Norm {
        weight: base.one(&format!("model.layers.{l}.{name}.weight")),
        rstd: acts.statistics(name, Level::Block, 1),
    };
    let [qkv, o, gate_up, down] = PROJECTION_GROUPS.map(|group| linear(acts, c, base, lora, l, group));
    Block {
        norm1: norm(acts, "input_layernorm"),
        qkv,
        rope: qk_rope(acts, c, base, l),
        attention: attention(acts, s),
        o,
        norm2: norm(acts, "post_attention_layernorm"),
        gate_up,
        down,
        x: if s.offload { acts.kept(TURNS[l % PLACES], Level::None, d) } else { acts.rows(d) },
        at_host: (s.offload && l + PLACES < c.layers).then_some(HostPlace(l)),
        // Where they are made again, each is so when it is wanted: one place does for both.
        y1: acts.kept("y", Level::Norm, d),
        mid: acts.kept("mid", Level::Block, d),
        y2: acts.kept("y", Level::Norm, d),
        gate_up_out: acts.kept("gate_up", Level::Ffn, 2 * f),
        act: acts.kept("act", Level::Swiglu, f),
    }
}

fn linear<A: Allocator>(
    acts: &mut Acts<'_, A>,
    c: &ModelConfig,
    base: &Store<'_>,
    lora: Option<&Lora<'_>>,
    l: usize,
    group: &[&'static str],
) -> Linear {
    let names: Vec<String> = group.iter().map(|p| format!("{}.weight", params::projection(l, p))).collect();
    let weight = base.param(&names).expect("projections of a group are neighbours");
    let shapes = group.iter().map(|p| params::projection_shape(c, p));
    Linear {
        weight,
        outputs: shapes.clone().map(|(n, _)| n).sum(),
        inputs: shapes.clone().map(|(_, k)| k).next().expect("a group has a projection"),
        adapters: lora.map(|lora| adapters(acts, c, lora, l, group)).unwrap_or_default(),
        dora: lora.and_then(|lora| dora(acts, c, lora, l, group)),
        beside: match group {
            ["gate_proj", ..] => Beside::ReaderOfOutput,
            ["down_proj"] => Beside::WriterOfInput,
            _ => Beside::Nothing,
        },
    }
}

/// A batch for every run of adapters of one size.
fn adapters<A: Allocator>(
    acts: &mut Acts<'_, A>,
    c: &ModelConfig,
    lora: &Lora<'_>,
    l: usize,
    group: &[&'static str],
) -> Vec<Adapter> {
    let runs = lora.adapters.runs(l, group).into_iter();
    runs.map(|(size, names)| adapter(acts, c, lora, l, group, size, &names)).collect()
}

fn dora<A: Allocator>(
    acts: &mut Acts<'_, A>,
    c: &ModelConfig,
    lora: &Lora<'_>,
    l: usize,
    group: &[&'static str],
) -> Option<Dora> {
    let adapted = |p: &&&str| lora.adapters.get(l, p).is_some();
    let names: Vec<String> = group.iter().filter(adapted).map(|p| params::magnitude(l, p)).collect();
    let magnitude = lora.store.param(&names)?;
    let (mut columns, mut outputs) = (Vec::new(), 0);
    for p in group {
        let from = outputs;
        outputs += params::projection_shape(c, p).0;
        columns.extend(adapted(&p).then_some(from..outputs));
    }
    let [gain, norms] = [(); 2].map(|()| acts.alloc.alloc(Component::Statistics, outputs));
    let scaled = acts.of_block((group[0], "dora", 0), Some(Level::None), Component::Activations, outputs);
    Some(Dora { magnitude, columns, gain, norms, scaled })
}

fn adapter<A: Allocator>(
    acts: &mut Acts<'_, A>,
    c: &ModelConfig,
    lora: &Lora<'_>,
    l: usize,
    group: &[&'static str],
    Size { r, scale }: Size,
    run: &[&'static str],
) -> Adapter {
    let mut segments = Vec::new();
    let mut offset = 0;
    for p in group {
        let width = params::projection_shape(c, p).0;
        if run.contains(p) {
            segments.push(Segment { offset, width, r });
        }
        offset += width;
    }
    let param = |ab: char| {
        let names: Vec<String> = run.iter().map(|p| params::adapter(l, p, ab)).collect();
        lora.store.param(&names).expect("adapters of a run are neighbours")
    };
    let ranks = run.len() * r;
    let mut rows = |name, again| {
        // Products want rows that end at whole packs of 8.
        let width = ranks.next_multiple_of(8);
        acts.of_block((run[0], name, ranks), again, Component::Activations, width)
    };
    Adapter {
        a: param('A'),
        b: param('B'),
        segments,
        scale,
        xa: rows("xa", xa_again(group)),
        // Of the backward pass alone.
        dxa: rows("dxa", Some(Level::None)),
    }
}

/// From which level on a group's forward pass runs again, with the product that its adapters keep. That of `down_proj` never
/// does: nobody wants its output a second time.
fn xa_again(group: &[&str]) -> Option<Level> {
    match group {
        ["gate_proj", ..] => Some(Level::Ffn),
        ["down_proj"] => None,
        _ => Some(Level::Block),
    }
}

fn qk_rope<A: Allocator>(acts: &mut Acts<'_, A>, c: &ModelConfig, base: &Store<'_>, l: usize) -> QkRope {
    let biases = PROJECTION_GROUPS[0].iter().map(|p| format!("{}.bias", params::projection(l, p)));
    let qk_heads = c.heads + c.kv_heads;
    QkRope {
        bias: base.param(&biases.collect::<Vec<_>>()),
        norm: c.family.qk_norm().then(|| QkNorm {
            q_weight: base.one(&format!("model.layers.{l}.self_attn.q_norm.weight")),
            k_weight: base.one(&format!("model.layers.{l}.self_attn.k_norm.weight")),
            pre: acts.kept("pre", Level::Block, qk_heads * c.head_dim),
            rstd: acts.statistics("qk_norm", Level::Block, qk_heads),
        }),
    }
}

fn attention<A: Allocator>(acts: &mut Acts<'_, A>, s: &Setup<'_>) -> Attention {
    let c = s.config;
    let keeps_probs = s.plan.get(Seam::Attention) == Variant::Eager && acts.alloc.keeps_probabilities();
    Attention {
        qkv: acts.kept("qkv", Level::Block, c.qkv_width()),
        out: acts.kept("attention", Level::Block, c.attention_width()),
        lse: acts.statistics("lse", Level::Block, c.heads),
        // Like all of attention they stay until the whole block runs again.
        probs: keeps_probs.then(|| acts.kept("probs", Level::Block, c.heads * s.capacity.row_slots)),
    }
}
