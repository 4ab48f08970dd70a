//! Kernel settings of a scenario against the seams that the trainer has.

use std::collections::BTreeMap;

use super::{
    located::{Ordered, Word},
    source::Source,
};
use crate::error::Result;

/// What the trainer describes itself as able to do.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Interchangeable kernels on a processor.
    pub seams: Seams,
    /// Interchangeable kernels on a GPU.
    pub cuda_seams: Seams,
    /// Templates from record to text.
    pub templates: Vec<&'static str>,
    /// Shapes of records.
    pub formats: Vec<&'static str>,
}

impl Offer {
    /// The seams of a device.
    pub fn seams(&self, device: &str) -> &Seams {
        if device == "cpu" { &self.seams } else { &self.cuda_seams }
    }
}

/// Seams and variants.
#[derive(Clone, Debug)]
pub struct Seams {
    /// Names of the seams, in the order of a step, with those of their variants.
    pub variants: Vec<(&'static str, Vec<&'static str>)>,
    /// Variant of a seam that nobody mentions.
    pub default: &'static str,
    /// Variant that an ablation puts in its place.
    pub unfused: &'static str,
    /// Seams that run only under LoRA.
    pub lora_only: Vec<&'static str>,
}

impl Seams {
    /// A variant for every seam: the default, then `all`, then the seams named.
    pub fn resolve(&self, settings: &Ordered<Word>, source: &Source) -> Result<BTreeMap<String, String>> {
        let mut variant_of_all = self.default;
        for (seam, variant) in &settings.0 {
            if seam.as_str() != "all" && self.variants_of(seam.as_str()).is_none() {
                return Err(source.unknown("kernel seam", seam, &self.with_all()));
            }
            let known = self.variants_of(seam.as_str()).map_or_else(|| self.variants_of_all(), <[_]>::to_vec);
            if !known.contains(&variant.as_str()) {
                return Err(source.unknown("kernel variant", variant, &known));
            }
            if seam.as_str() == "all" {
                variant_of_all = variant.as_str();
            }
        }
        let of = |seam: &str| settings.get(seam).map_or(variant_of_all, Word::as_str);
        Ok(self.names().map(|s| (s.to_string(), of(s).to_string())).collect())
    }

    /// Checks the `off` list of an ablation, or makes one: every seam that the method uses, then `all`.
    pub fn off_list(&self, off: Option<&[Word]>, lora: bool, source: &Source) -> Result<Vec<String>> {
        let idle = |s: &str| !lora && self.lora_only.contains(&s);
        let Some(words) = off else {
            let unfused = |s: &&str| self.variants_of(s).is_some_and(|v| v.contains(&self.unfused));
            let used = self.names().filter(|s| !idle(s)).filter(unfused).map(str::to_string);
            let all = self.variants_of_all().contains(&self.unfused).then(|| "all".to_string());
            return Ok(used.chain(all).collect());
        };
        for word in words {
            if !self.with_all().contains(&word.as_str()) {
                return Err(source.unknown("kernel seam", word, &self.with_all()));
            }
            let known = self.variants_of(word.as_str()).map_or_else(|| self.variants_of_all(), <[_]>::to_vec);
            if !known.contains(&self.unfused) {
                let what = format!("seam '{}' has no variant '{}' there", word.text, self.unfused);
                return Err(source
                    .error(crate::error::Exit::Usage, word.place, what)
                    .hint("take it out of `off`"));
            }
            if idle(word.as_str()) {
                let what = format!("seam '{}' does not run in full fine-tuning", word.text);
                let e = source.error(crate::error::Exit::Usage, word.place, what);
                return Err(e.hint("take it out of `off`, or ablate a LoRA case"));
            }
        }
        Ok(words.iter().map(|w| w.text.clone()).collect())
    }

    /// The plan with one seam, several joined by `+`, or `all`, at the unfused variant.
    pub fn turned_off(&self, plan: &BTreeMap<String, String>, seam: &str) -> BTreeMap<String, String> {
        let off = |name: &str| seam == "all" || seam.split('+').any(|s| s == name);
        let variant = |name: &str, v: &str| if off(name) { self.unfused.to_string() } else { v.to_string() };
        plan.iter().map(|(name, v)| (name.clone(), variant(name, v))).collect()
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.variants.iter().map(|(name, _)| *name)
    }

    fn variants_of(&self, seam: &str) -> Option<&[&'static str]> {
        self.variants.iter().find(|(name, _)| *name == seam).map(|(_, variants)| variants.as_slice())
    }

    /// Variants that every seam has.
    fn variants_of_all(&self) -> Vec<&'static str> {
        let (first, rest) = self.variants.split_first().expect("a device has seams");
        let everywhere = |v: &&&str| rest.iter().all(|(_, variants)| variants.contains(v));
        first.1.iter().filter(everywhere).copied().collect()
    }

    fn with_all(&self) -> Vec<&'static str> {
        self.names().chain(["all"]).collect()
    }
}
