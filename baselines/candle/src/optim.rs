//! Parameter groups, clipping and the update.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, backprop::GradStore};
use candle_nn::{AdamW, Optimizer as _, ParamsAdamW};
use chronibench_protocol::spec::{Method, TrainArgs};

/// Smallest denominator of the clipping factor, as in PyTorch's `clip_grad_norm_`.
const CLIP_EPSILON: f64 = 1e-6;

/// AdamW over parameter groups.
pub struct Optimizer {
    vars: Vec<Var>,
    groups: Vec<Group>,
    max_grad_norm: f64,
}

struct Group {
    name: &'static str,
    lr_ratio: f64,
    adamw: AdamW,
}

impl Optimizer {
    /// Groups: `all` for full fine-tuning, `lora_A` and `lora_B` for LoRA. Weight decay acts on matrices only.
    ///
    /// # Errors
    /// The moments cannot be allocated.
    pub fn new(trainable: &[(String, Var)], method: &Method, args: &TrainArgs) -> Result<Self> {
        let kinds: Vec<(&str, f64, Members)> = match method {
            Method::Full {} => {
                vec![("all", 1.0, |_, var| var.rank() >= 2), ("all", 1.0, |_, var| var.rank() < 2)]
            }
            Method::Lora(lora) => vec![
                ("lora_A", 1.0, |name, _| name.ends_with(".lora_A.weight")),
                ("lora_B", lora.loraplus_lr_ratio, |name, _| name.ends_with(".lora_B.weight")),
            ],
        };
        let mut groups = Vec::new();
        for (name, lr_ratio, belongs) in kinds {
            let vars: Vec<Var> =
                trainable.iter().filter(|(n, v)| belongs(n, v)).map(|(_, v)| v.clone()).collect();
            let decays = vars.first().is_some_and(|v| v.rank() >= 2);
            let params = ParamsAdamW {
                lr: args.learning_rate * lr_ratio,
                beta1: args.adam_beta1,
                beta2: args.adam_beta2,
                eps: args.adam_epsilon,
                weight_decay: if decays { args.weight_decay } else { 0.0 },
            };
            groups.push(Group { name, lr_ratio, adamw: AdamW::new(vars, params)? });
        }
        let vars = trainable.iter().map(|(_, v)| v.clone()).collect();
        Ok(Self { vars, groups, max_grad_norm: args.max_grad_norm })
    }

    /// Clips `grads` (one a trainable tensor, in order) by their global norm and updates at the rate `lr`; returns the
    /// rate of every group.
    ///
    /// # Errors
    /// candle refuses an operation.
    pub fn step(&mut self, grads: Vec<Tensor>, norm: f64, lr: f64) -> Result<BTreeMap<String, f64>> {
        let clip = self.max_grad_norm / (norm + CLIP_EPSILON);
        let clips = self.max_grad_norm > 0.0 && clip < 1.0;
        let mut store = GradStore::default();
        for (var, grad) in self.vars.iter().zip(grads) {
            let grad = if clips { (grad * clip)? } else { grad };
            store.insert(var, grad);
        }
        let mut rates = BTreeMap::new();
        for group in &mut self.groups {
            let rate = lr * group.lr_ratio;
            group.adamw.set_learning_rate(rate);
            group.adamw.step(&store)?;
            rates.insert(group.name.to_string(), rate);
        }
        Ok(rates)
    }
}

type Members = fn(&str, &Var) -> bool;

/// Global Euclidean norm.
///
/// # Errors
/// candle refuses an operation.
pub fn global_norm(grads: &[Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for grad in grads {
        sum += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(sum.sqrt())
}
