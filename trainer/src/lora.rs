//! Which projections have LoRA adapters, of what rank and scale: PEFT's settings, module by module.

use std::fmt::Display;

use chronibench_protocol::{init::InitLora, patterns::Patterns, spec::LoraArgs};
use fancy_regex::Regex;

use crate::{
    config::ModelConfig,
    error::Error,
    params::{PROJECTION_GROUPS, projection},
};

/// No projection has a higher rank, and sizes of adapters do not overflow.
const MAX_RANK: usize = 1 << 16;

/// An adapter's rank, and the factor on `B·A`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    /// Rank.
    pub r: usize,
    /// `lora_alpha / r`, or over `sqrt(r)` when rank-stabilised (arXiv 2312.03732).
    pub scale: f32,
}

/// What the settings make of every projection.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapters {
    /// A layer's projections in model order, those with an adapter.
    layers: Vec<Vec<(&'static str, Size)>>,
}

impl Adapters {
    /// # Errors
    /// A setting makes no sense: a rank of zero, no target, a target that is no projection, a pattern that is none.
    pub fn of(c: &ModelConfig, lora: &LoraArgs) -> Result<Self, Error> {
        check(lora)?;
        let ranks = compiled(&lora.rank_pattern, "method.rank_pattern")?;
        let alphas = compiled(&lora.alpha_pattern, "method.alpha_pattern")?;
        let size = |module: &str| -> Result<Size, Error> {
            let r = first(&ranks, module)?.unwrap_or(lora.r);
            let alpha = first(&alphas, module)?.unwrap_or(lora.lora_alpha);
            Ok(Size { r, scale: scale(alpha, r, lora.use_rslora) })
        };
        let targeted = |p: &&str| lora.target_modules.iter().any(|t| t == p);
        let layer = |l: usize| -> Result<Vec<_>, Error> {
            let projections = PROJECTION_GROUPS.into_iter().flatten().copied().filter(targeted);
            projections.map(|p| Ok((p, size(&projection(l, p))?))).collect()
        };
        Ok(Self { layers: (0..c.layers).map(layer).collect::<Result<_, _>>()? })
    }

    /// The adapter on a projection, if there is one.
    pub fn get(&self, layer: usize, name: &str) -> Option<Size> {
        self.layers[layer].iter().find(|(p, _)| *p == name).map(|(_, size)| *size)
    }

    /// The adapters on projections of one input, in runs of one size: each run is a batch of products.
    pub fn runs(&self, layer: usize, group: &[&str]) -> Vec<(Size, Vec<&'static str>)> {
        let of_group: Vec<_> = self.layers[layer].iter().filter(|(p, _)| group.contains(p)).collect();
        let runs = of_group.chunk_by(|(_, a), (_, b)| a == b);
        runs.map(|run| (run[0].1, run.iter().map(|(p, _)| *p).collect())).collect()
    }
}

fn scale(alpha: f64, r: usize, use_rslora: bool) -> f32 {
    let r = r as f64;
    (alpha / if use_rslora { r.sqrt() } else { r }) as f32
}

/// The settings of adapters of twice the ranks, with the same scales; they begin as usual.
pub fn doubled(lora: &LoraArgs) -> LoraArgs {
    let alpha = |alpha: f64| alpha * if lora.use_rslora { std::f64::consts::SQRT_2 } else { 2.0 };
    LoraArgs {
        r: 2 * lora.r,
        lora_alpha: alpha(lora.lora_alpha),
        rank_pattern: lora.rank_pattern.map(|r| 2 * r),
        alpha_pattern: lora.alpha_pattern.map(|a| alpha(*a)),
        init_lora_weights: InitLora::Kaiming,
        ..lora.clone()
    }
}

/// Patterns that a training is told, each of which must be about something.
///
/// # Errors
/// One is about no module that has an adapter.
pub fn check_patterns(c: &ModelConfig, lora: &LoraArgs) -> Result<(), Error> {
    let adapters = Adapters::of(c, lora)?;
    let names = |(l, layer): (usize, &Vec<(&'static str, Size)>)| {
        layer.iter().map(|(p, _)| projection(l, p)).collect::<Vec<_>>()
    };
    let modules: Vec<String> = adapters.layers.iter().enumerate().flat_map(names).collect();
    let ranks = compiled(&lora.rank_pattern.map(|_| ()), "method.rank_pattern")?;
    let alphas = compiled(&lora.alpha_pattern.map(|_| ()), "method.alpha_pattern")?;
    for pattern in ranks.iter().chain(&alphas) {
        let any = modules.iter().map(|m| pattern.matches(m)).collect::<Result<Vec<_>, _>>()?;
        if !any.contains(&true) {
            let what = format!("'{}' is the name of no module with an adapter", pattern.text);
            return Err(Error::new(what, pattern.at).hint(format!(
                "modules are called {}; give such a name, its end behind a dot, or a regular expression",
                modules[0]
            )));
        }
    }
    Ok(())
}

/// A key of a pattern, ready to match, with what it stands for.
struct Compiled<T> {
    text: String,
    regex: Regex,
    value: T,
    at: &'static str,
}

/// As PEFT matches keys: the whole name of a module, or its end behind a dot.
fn compiled<T: Copy>(patterns: &Patterns<T>, at: &'static str) -> Result<Vec<Compiled<T>>, Error> {
    let one = |(text, value): (&str, &T)| {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{text})$")).map_err(|e| unusable(text, &e, at))?;
        Ok(Compiled { text: text.into(), regex, value: *value, at })
    };
    patterns.iter().map(one).collect()
}

fn unusable(text: &str, e: &dyn Display, at: &str) -> Error {
    Error::new(format!("'{text}' cannot be matched: {e}"), at)
        .hint("give a module's name, its end behind a dot, or a regular expression")
}

impl<T> Compiled<T> {
    fn matches(&self, module: &str) -> Result<bool, Error> {
        self.regex.is_match(module).map_err(|e| unusable(&self.text, &e, self.at))
    }
}

fn first<T: Copy>(patterns: &[Compiled<T>], module: &str) -> Result<Option<T>, Error> {
    for pattern in patterns {
        if pattern.matches(module)? {
            return Ok(Some(pattern.value));
        }
    }
    Ok(None)
}

fn check(lora: &LoraArgs) -> Result<(), Error> {
    let known = PROJECTION_GROUPS.concat();
    let ranks = lora.rank_pattern.iter().map(|(_, r)| ("method.rank_pattern", *r));
    for (at, r) in std::iter::once(("method.r", lora.r)).chain(ranks) {
        if r == 0 {
            return Err(Error::new("LoRA rank r is 0", at).hint("give a rank of at least 1"));
        }
        if r > MAX_RANK {
            return Err(Error::new(format!("LoRA rank r is {r}"), at)
                .hint(format!("give a rank of at most {MAX_RANK}; 8 to 64 are usual")));
        }
    }
    let alphas = lora.alpha_pattern.iter().map(|(_, alpha)| *alpha);
    if !alphas.chain([lora.lora_alpha, lora.loraplus_lr_ratio]).all(|x| x > 0.0) {
        return Err(Error::new("lora_alpha and loraplus_lr_ratio must be positive", "method").hint(
            "lora_alpha is usually r or 2·r; loraplus_lr_ratio 1 is plain LoRA, 16 the value of LoRA+",
        ));
    }
    if lora.init_lora_weights != InitLora::Kaiming {
        let another = match (&lora.adapter_weights, lora.use_dora) {
            (Some(_), _) => Some("adapter_weights, which say what adapters begin as"),
            (_, true) => Some("use_dora: what it changes is no sum of adapters"),
            _ => None,
        };
        if let Some(other) = another {
            return Err(Error::new(format!("pissa goes not with {other}"), "method.init_lora_weights")
                .hint("leave one of the two out"));
        }
    }
    if lora.target_modules.is_empty() {
        return Err(Error::new("LoRA has no target", "method.target_modules")
            .hint(format!("name at least one of {}", known.join(", "))));
    }
    match lora.target_modules.iter().find(|t| !known.contains(&t.as_str())) {
        Some(t) => Err(Error::new(format!("'{t}' is not a projection"), "method.target_modules")
            .hint(format!("known: {}", known.join(", ")))),
        None => Ok(()),
    }
}

/// Adapters that change nothing and take next to no memory: for a model that does not train, whose gradients and moments are not
/// wanted.
pub fn no_adapters() -> LoraArgs {
    LoraArgs { target_modules: vec!["o_proj".into()], ..LoraArgs::of(8, 8.0) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn model() -> ModelConfig {
        let text = r#"{"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 12,
                      "num_attention_heads": 2}"#;
        ModelConfig::parse(text, Path::new("config.json")).unwrap()
    }

    fn lora(patterns: serde_json::Value) -> LoraArgs {
        let mut settings = serde_json::json!({"r": 4, "lora_alpha": 8.0});
        settings.as_object_mut().unwrap().extend(patterns.as_object().unwrap().clone());
        serde_json::from_value(settings).unwrap()
    }

    /// What `peft.utils.get_pattern_key` gives for the same keys: the first key that `re.match(rf"(.*\.)?({key})$", name)` accepts.
    #[test]
    fn patterns_are_matched_as_peft_does() {
        let all = Adapters::of(
            &model(),
            &lora(serde_json::json!({
                "rank_pattern": {"model.layers.0.self_attn.q_proj": 16, r"layers\.1\..*": 32, "q_proj": 8, "proj": 1},
                "alpha_pattern": {"[kv]_proj": 2.0, "self_attn.v_proj": 64.0},
            })),
        )
        .unwrap();
        let of = |layer, name| all.get(layer, name).map(|s| (s.r, s.scale)).unwrap();
        assert_eq!(of(0, "q_proj"), (16, 0.5), "by its whole name");
        assert_eq!(of(5, "q_proj"), (8, 1.0), "by its end");
        assert_eq!(of(1, "q_proj"), (32, 0.25), "the first key counts");
        assert_eq!(of(1, "k_proj"), (32, 0.0625));
        // `layers.1` is not `layers.10`, and `proj` is no end behind a dot.
        assert_eq!(of(10, "k_proj"), (4, 0.5));
        assert_eq!(of(11, "v_proj"), (4, 0.5), "the first of two");
        let rslora = lora(serde_json::json!({"use_rslora": true, "rank_pattern": {"o_proj": 16}}));
        assert_eq!(
            Adapters::of(&model(), &rslora).unwrap().get(3, "o_proj"),
            Some(Size { r: 16, scale: 2.0 })
        );
    }

    #[test]
    fn runs_are_of_one_size() {
        let settings = serde_json::json!({"rank_pattern": {"k_proj": 8}, "target_modules": ["q_proj", "k_proj", "v_proj"]});
        let all = Adapters::of(&model(), &lora(settings)).unwrap();
        let names =
            |group| -> Vec<_> { all.runs(0, group).into_iter().map(|(s, names)| (s.r, names)).collect() };
        assert_eq!(
            names(PROJECTION_GROUPS[0]),
            [(4, vec!["q_proj"]), (8, vec!["k_proj"]), (4, vec!["v_proj"])]
        );
        assert!(names(PROJECTION_GROUPS[1]).is_empty());
    }

    #[test]
    fn patterns_that_mean_nothing_are_told() {
        for (patterns, words) in [
            (serde_json::json!({"rank_pattern": {"q_proj": 0}}), ["rank_pattern", "is 0"]),
            (serde_json::json!({"rank_pattern": {"(": 2}}), ["rank_pattern", "cannot be matched"]),
            (serde_json::json!({"alpha_pattern": {"q_proj": -1.0}}), ["lora_alpha", "positive"]),
            (serde_json::json!({"alpha_pattern": {"layers.12.*": 1.0}}), ["alpha_pattern", "no module"]),
            (
                serde_json::json!({"rank_pattern": {"(a*)*b|(?=a*a*a*)(a|aa)+$": 2}}),
                ["rank_pattern", "no module"],
            ),
        ] {
            let error = check_patterns(&model(), &lora(patterns)).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        assert!(check_patterns(&model(), &lora(serde_json::json!({"rank_pattern": {"mlp..*": 2}}))).is_ok());
    }
}
