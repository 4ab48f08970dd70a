//! Arms × axes → cases, and ablations of cases.

use std::collections::BTreeMap;

use chronibench_protocol::{
    record::{Ablation, Case, Comparison},
    spec::{LORA_TARGETS, Method},
};

use super::{
    factorial,
    kernels::Seams,
    located::{Ordered, Place, Word},
    raw::{Raw, RawAblation, RawArm, RawOptions, Runner, Settings},
    rivals, settings,
    source::Source,
    sweep::{self, Swept},
};
use crate::error::{Error, Exit, Result};

/// Every case of the scenario, in its order: arms, then axis values, then ablations.
pub fn expand(raw: &Raw, source: &Source, seams: &Seams) -> Result<Vec<Case>> {
    check_names(raw, source)?;
    // Of every axis value, also of those that no case uses.
    let settings = raw.matrix.0.iter().flat_map(|(_, values)| values.0.iter().map(|(_, s)| s));
    for word in settings.filter_map(|s| s.target_modules.as_ref()).flatten() {
        if !LORA_TARGETS.contains(&word.as_str()) {
            return Err(source.unknown("target module", word, &LORA_TARGETS));
        }
    }
    for pick in raw.only.iter().chain(&raw.exclude) {
        check_pick(pick, raw, source, true)?;
    }
    check_size(raw, source)?;
    let mut cases = Vec::new();
    for (arm, def) in &raw.arms.0 {
        let swept = sweep::expand(def);
        if swept.is_empty() {
            let e = source.error(Exit::Usage, arm.place, "an axis of the sweep has no value");
            return Err(e.hint("give every axis of `sweep` at least one value"));
        }
        let kernels = |def: &RawArm| match def.runner {
            Runner::Native => seams.resolve(&def.kernels, source),
            other => {
                only_native(arm, def, source)?;
                no_kernels(&def.kernels, other, source)
            }
        };
        let options = |s: &Swept<'_>| rivals::options(arm, &s.def, raw, source);
        let plans: Vec<_> =
            swept.iter().map(|s| Ok((kernels(&s.def)?, options(s)?))).collect::<Result<Vec<_>>>()?;
        for values in combinations(&raw.matrix) {
            let case = Combination { arm: arm.as_str(), values };
            for (swept, plan) in swept.iter().zip(&plans).filter(|(cell, _)| case.wanted(raw, cell)) {
                let case = case.to_case(raw, source, swept, plan)?;
                rivals::check_case(&case, source)?;
                cases.push(case);
            }
        }
    }
    if cases.is_empty() {
        return Err(Error::usage("no case is left", &source.name)
            .hint("give `arms` and `matrix` at least one entry each, and check `only` and `exclude`"));
    }
    let ablated = ablations(raw, source, seams, &cases)?;
    cases.extend(ablated);
    Ok(cases)
}

/// The comparisons of the scenario, checked against its cases.
pub fn comparisons(raw: &Raw, source: &Source, cases: &[Case]) -> Result<Vec<Comparison>> {
    let mut ids: Vec<&str> = cases.iter().map(|c| c.id.as_str()).collect();
    ids.extend(cases.iter().filter_map(|c| c.sweep.as_ref()).map(|s| s.of.as_str()));
    let known = |w: &Word| match ids.contains(&w.as_str()) {
        true => Ok(w.text.clone()),
        false => Err(source.unknown("case", w, &ids)),
    };
    raw.comparisons
        .iter()
        .map(|c| {
            Ok(Comparison {
                label: c.label.clone(),
                case: known(&c.case)?,
                against: known(&c.against)?,
                target: c.target,
                declared_differences: c.declared_differences.clone(),
            })
        })
        .collect()
}

type Options = BTreeMap<String, serde_json::Value>;
type Value<'a> = (&'a str, &'a str, &'a Settings);

struct Combination<'a> {
    arm: &'a str,
    values: Vec<Value<'a>>,
}

impl Combination<'_> {
    fn matches(&self, pick: &Ordered<Word>, cell: &Swept<'_>) -> bool {
        pick.0.iter().all(|(axis, value)| match axis.as_str() {
            "arm" => self.arm == value.as_str(),
            axis => {
                let here = self.values.iter().any(|(a, v, _)| *a == axis && *v == value.as_str());
                here || cell.has(axis, value.as_str())
            }
        })
    }

    fn wanted(&self, raw: &Raw, cell: &Swept<'_>) -> bool {
        let kept = raw.only.is_empty() || raw.only.iter().any(|p| self.matches(p, cell));
        kept && !raw.exclude.iter().any(|p| self.matches(p, cell))
    }

    fn to_case(
        &self,
        raw: &Raw,
        source: &Source,
        swept: &Swept<'_>,
        (kernels, options): &(BTreeMap<String, String>, Options),
    ) -> Result<Case> {
        let values: Vec<&str> = self.values.iter().map(|(_, v, _)| *v).collect();
        let id = format!("{}/{}", swept.name(self.arm), values.join("/"));
        let parts: Vec<&Settings> = self.values.iter().map(|(_, _, s)| *s).collect();
        let merged = settings::merge(&parts, &swept.settings(), &raw.train, source, &id)?;
        let def = &swept.def;
        Ok(Case {
            id,
            arm: self.arm.to_string(),
            runner: def.runner.name().to_string(),
            axes: self.values.iter().map(|(a, v, _)| (a.to_string(), v.to_string())).collect(),
            method: merged.method,
            train: merged.train,
            batch: merged.batch,
            kernels: kernels.clone(),
            device: raw.device.as_ref().map_or("cpu", Word::as_str).to_string(),
            options: options.clone(),
            precision: def.precision,
            recompute: def.recompute,
            offload: def.offload,
            memory_limit_gb: def.memory_limit_gb,
            ablation: None,
            sweep: swept.cell(format!("{}/{}", self.arm, values.join("/"))),
        })
    }
}

/// Cases of a scenario, and trials of all of them: more would take years.
const MAX_TRIALS: u64 = 100_000;

/// Axes multiply, so a slip of the pen makes millions of cases.
fn check_size(raw: &Raw, source: &Source) -> Result<()> {
    let values = raw.matrix.0.iter().map(|(_, values)| values.0.len());
    let numbers = values.chain([raw.arms.0.len(), raw.trials as usize]);
    let trials = numbers.fold(1u64, |all, n| all.saturating_mul(n as u64));
    if trials > MAX_TRIALS {
        let what = format!("arms, matrix and trials multiply to {trials} trials, {MAX_TRIALS} at most");
        return Err(Error::usage(what, &source.name).hint("take an axis out, or lower `trials`"));
    }
    Ok(())
}

/// The product of all axes; the last axis changes fastest.
fn combinations(matrix: &Ordered<Ordered<Settings>>) -> Vec<Vec<Value<'_>>> {
    matrix.0.iter().fold(vec![Vec::new()], |all, (axis, values)| {
        all.iter()
            .flat_map(|head: &Vec<Value>| {
                values.0.iter().map(|(name, s)| {
                    let mut combination = head.clone();
                    combination.push((axis.as_str(), name.as_str(), s));
                    combination
                })
            })
            .collect()
    })
}

fn ablations(raw: &Raw, source: &Source, seams: &Seams, cases: &[Case]) -> Result<Vec<Case>> {
    let mut made: Vec<Case> = Vec::new();
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for a in &raw.ablations {
        let arms: Vec<&str> = raw.arms.keys().collect();
        if !arms.contains(&a.arm.as_str()) {
            return Err(source.unknown("arm", &a.arm, &arms));
        }
        check_pick(&a.case, raw, source, false)?;
        let axes: BTreeMap<String, String> =
            a.case.0.iter().map(|(k, v)| (k.text.clone(), v.text.clone())).collect();
        let found = cases.iter().find(|c| c.arm == a.arm.text && c.axes == axes);
        let base = found.ok_or_else(|| {
            source
                .error(Exit::Usage, a.arm.place, "the ablated case is not among the scenario's cases")
                .hint("give `case` a value for every axis, and check `only` and `exclude`")
        })?;
        if base.kernels.is_empty() {
            let e = source.error(
                Exit::Usage,
                a.arm.place,
                format!("arm '{}' has no kernels to turn off", a.arm.text),
            );
            return Err(e.hint("ablate an arm with `runner: native`"));
        }
        let lora = matches!(base.method, Method::Lora(_));
        let off = seams.off_list(a.off.as_deref(), lora, source)?;
        for (off, design) in factorial::combinations(a, off, source)? {
            let rest = base.id.strip_prefix(&base.arm).expect("an id begins with its arm");
            let id = format!("{}~{off}{rest}", base.arm);
            let word = a.off.iter().flatten().find(|w| w.text == off);
            let place = word.map_or(a.arm.place, |w| w.place);
            // Trials are told apart by their case's id: two cases of one name would be one, with twice the trials.
            if let Some(first) = places.insert(id.clone(), place) {
                return Err(twice(&id, first, last_place(a, &off).unwrap_or(place), source));
            }
            made.push(Case {
                id,
                kernels: seams.turned_off(&base.kernels, &off),
                ablation: Some(Ablation { of: base.id.clone(), off, design }),
                ..base.clone()
            });
        }
    }
    Ok(made)
}

/// Where an ablation names what is off, the last time.
fn last_place(a: &RawAblation, off: &str) -> Option<Place> {
    a.off.iter().flatten().rfind(|w| w.text == off).map(|w| w.place)
}

fn twice(id: &str, first: Place, again: Place, source: &Source) -> Error {
    let what = format!(
        "ablations make the case '{id}' twice: here, and at {}:{}:{}",
        source.name, first.line, first.column
    );
    source
        .error(Exit::Usage, again, what)
        .hint("take one of the two ablations out, or give their `off` different seams")
}

/// Settings that other runners do not have are left out.
fn only_native(arm: &Word, def: &RawArm, source: &Source) -> Result<()> {
    let given = [
        (
            "precision",
            !def.precision.is_default() && !rivals::has_precision(def.runner),
            "choice of number formats",
        ),
        ("recompute", !def.recompute.is_default(), "choice of what it keeps"),
        ("offload", def.offload, "activations to move to the host"),
        ("memory_limit_gb", def.memory_limit_gb.is_some(), "plan of memory to limit"),
    ];
    match given.into_iter().find(|(_, is_given, _)| *is_given) {
        None => Ok(()),
        Some((name, _, lacks)) => Err(source
            .error(Exit::Usage, arm.place, format!("runner '{}' has no {lacks}", def.runner.name()))
            .hint(format!("take `{name}` out, or use `runner: native`"))),
    }
}

fn no_kernels(given: &Ordered<Word>, runner: Runner, source: &Source) -> Result<BTreeMap<String, String>> {
    match given.0.first() {
        None => Ok(BTreeMap::new()),
        Some((seam, _)) => {
            let what = format!("runner '{}' has no interchangeable kernels", runner.name());
            Err(source
                .error(Exit::Usage, seam.place, what)
                .hint("take `kernels` out, or use `runner: native`"))
        }
    }
}

/// A partial match names only what exists.
fn check_pick(pick: &Ordered<Word>, raw: &Raw, source: &Source, arm_allowed: bool) -> Result<()> {
    let arms: Vec<&str> = raw.arms.keys().collect();
    // Axes of sweeps, of whatever arm.
    let swept = || raw.arms.0.iter().filter(|_| arm_allowed).flat_map(|(_, arm)| &arm.sweep.0);
    for (key, value) in &pick.0 {
        let of_sweeps = || swept().filter(|(axis, _)| axis.as_str() == key.as_str());
        let (kind, known) = match (key.as_str(), raw.matrix.get(key.as_str())) {
            ("arm", _) if arm_allowed => ("arm", arms.clone()),
            (_, Some(values)) => ("value", values.keys().collect()),
            (_, None) if of_sweeps().next().is_some() => {
                ("value", of_sweeps().flat_map(|(_, values)| values.keys()).collect())
            }
            (_, None) => {
                let extra = arm_allowed.then_some("arm");
                let swept = swept().map(|(axis, _)| axis.as_str());
                let axes: Vec<&str> = extra.into_iter().chain(raw.matrix.keys()).chain(swept).collect();
                return Err(source.unknown("axis", key, &axes));
            }
        };
        if !known.contains(&value.as_str()) {
            return Err(source.unknown(kind, value, &known));
        }
    }
    Ok(())
}

/// Names become parts of case ids and file names.
fn check_names(raw: &Raw, source: &Source) -> Result<()> {
    let arms = raw.arms.0.iter().map(|(k, _)| k);
    let axes = raw.matrix.0.iter().flat_map(|(k, v)| std::iter::once(k).chain(v.0.iter().map(|(k, _)| k)));
    let named = |all: &'_ Ordered<Ordered<RawOptions>>| -> Vec<Word> {
        all.0
            .iter()
            .flat_map(|(k, v)| std::iter::once(k).chain(v.0.iter().map(|(k, _)| k)).cloned())
            .collect()
    };
    let swept: Vec<Word> = raw.arms.0.iter().flat_map(|(_, arm)| named(&arm.sweep)).collect();
    for word in std::iter::once(&raw.name).chain(arms).chain(axes).chain(&swept) {
        let fine = |c: char| c.is_ascii_alphanumeric() || "-.+".contains(c);
        if word.text.is_empty() || word.text.starts_with('.') || !word.text.chars().all(fine) {
            return Err(source
                .error(Exit::Usage, word.place, format!("'{}' cannot be a name", word.text))
                .hint("use letters, digits, '-', '+' and '.'"));
        }
    }
    Ok(())
}
