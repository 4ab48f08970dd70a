//! The programs of others: what each is, and the few files that run it, which this program carries with it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use chronibench_protocol::digest::sha256_hex;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::{AtPath, Exit, Result},
    scenario::{
        located::{Ordered, Word},
        source::Source,
    },
};

/// What all adapters share, `baselines/common`.
const COMMON: [(&str, &str); 3] = [
    ("chronibench.py", include_str!("../../../baselines/common/chronibench.py")),
    ("huggingface.py", include_str!("../../../baselines/common/huggingface.py")),
    ("loops.py", include_str!("../../../baselines/common/loops.py")),
];

/// A program of somebody else, as an arm: `baselines/<name>`.
#[derive(Clone, Copy, Debug)]
pub struct Rival {
    /// Name of the runner and of the folder.
    pub name: &'static str,
    description: &'static str,
    adapter: &'static str,
    /// Packages that its environment consists of, with their hashes; behind the line `base` those that a GPU machine
    /// has by itself.
    pub requirements: &'static str,
}

macro_rules! rival {
    ($name:literal) => {
        Rival {
            name: $name,
            description: include_str!(concat!("../../../baselines/", $name, "/rival.json")),
            adapter: include_str!(concat!("../../../baselines/", $name, "/adapter.py")),
            requirements: include_str!(concat!("../../../baselines/", $name, "/requirements.txt")),
        }
    };
}

/// Every rival, in the order in which they are listed.
pub const RIVALS: [Rival; 7] = [
    rival!("unsloth"),
    rival!("trl"),
    rival!("liger"),
    rival!("llmq"),
    rival!("chronicals-py"),
    rival!("hf-cpu"),
    rival!("mock-python"),
];

/// What a rival says of itself; its adapter reads the same file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Name, once more.
    pub name: String,
    /// One line.
    pub title: String,
    /// Kinds of device that it runs on: `cpu`, `cuda`.
    pub devices: Vec<String>,
    /// Methods that it has: `full`, `lora`.
    pub methods: Vec<String>,
    /// How its batches may be packed.
    pub packing: Vec<String>,
    /// Number formats that it can be asked for, by the names of `precision`.
    #[serde(default)]
    pub precision: BTreeMap<String, Vec<String>>,
    /// Settings of its own.
    pub options: BTreeMap<String, RivalOption>,
}

/// A setting of a rival's own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RivalOption {
    /// In force when a scenario says nothing.
    pub default: Value,
    /// All that it may be; anything of the default's type when left out.
    #[serde(default)]
    pub values: Vec<Value>,
    /// What it does.
    pub help: String,
}

impl Rival {
    /// The rival of a name.
    pub fn named(name: &str) -> Option<&'static Rival> {
        RIVALS.iter().find(|r| r.name == name)
    }

    /// What it says of itself.
    pub fn describe(&self) -> Description {
        serde_json::from_str(self.description).expect("a test reads every rival's description")
    }

    /// Hash of adapter and shared files: what ran, to the byte.
    pub fn adapter_sha256(&self) -> String {
        let parts = COMMON.iter().map(|(_, text)| *text).chain([self.description, self.adapter]);
        sha256_hex(parts.collect::<Vec<_>>().join("\0").as_bytes())
    }

    /// Hash of the lock.
    pub fn lock_sha256(&self) -> String {
        sha256_hex(self.requirements.as_bytes())
    }

    /// Writes the program below a folder, as it lies in the repository; the path of the adapter.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write_program(&self, dir: &Path) -> Result<PathBuf> {
        let own = dir.join(self.name);
        let common = dir.join("common");
        for folder in [&own, &common] {
            std::fs::create_dir_all(folder).at(folder)?;
        }
        let files = [("rival.json", self.description), ("requirements.txt", self.requirements)];
        let shared = COMMON.iter().map(|(name, text)| (common.join(name), *text));
        let all = files.iter().map(|(name, text)| (own.join(name), *text)).chain(shared);
        for (path, text) in all.chain([(own.join("adapter.py"), self.adapter)]) {
            std::fs::write(&path, text).at(&path)?;
        }
        Ok(own.join("adapter.py"))
    }

    /// Its options with their defaults filled in.
    ///
    /// # Errors
    /// An option that it does not have, or a value that this one cannot be, with its place in the scenario.
    pub fn resolve_options(
        &self,
        given: &Ordered<Value>,
        source: &Source,
    ) -> Result<BTreeMap<String, Value>> {
        let known = self.describe().options;
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        let mut all: BTreeMap<String, Value> =
            known.iter().map(|(name, option)| (name.clone(), option.default.clone())).collect();
        for (word, value) in &given.0 {
            let Some(option) = known.get(word.as_str()) else {
                return Err(source.unknown(&format!("option of '{}'", self.name), word, &names));
            };
            option.check(self.name, word, value, source)?;
            all.insert(word.text.clone(), value.clone());
        }
        Ok(all)
    }
}

impl RivalOption {
    fn check(&self, rival: &str, word: &Word, value: &Value, source: &Source) -> Result<()> {
        let fits = if self.values.is_empty() {
            std::mem::discriminant(&self.default) == std::mem::discriminant(value)
        } else {
            self.values.contains(value)
        };
        if fits {
            return Ok(());
        }
        let hint = if self.values.is_empty() {
            format!("{}; e.g. {}", self.help, self.default)
        } else {
            let values: Vec<String> = self.values.iter().map(Value::to_string).collect();
            format!("{}; one of {}", self.help, values.join(", "))
        };
        let what = format!("option '{}' of '{rival}' cannot be {value}", word.text);
        Err(source.error(Exit::Usage, word.place, what).hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rival_describes_itself() {
        for rival in RIVALS {
            let d = rival.describe();
            assert_eq!(d.name, rival.name);
            assert!(!d.title.is_empty() && !d.devices.is_empty(), "{}", rival.name);
            for (name, option) in &d.options {
                assert!(option.values.is_empty() || option.values.contains(&option.default), "{name}");
                assert!(!option.help.is_empty(), "{name}");
            }
            let lock = rival.requirements;
            assert!(
                !lock.contains("://") && !lock.contains("--index"),
                "{}: an index in the lock",
                rival.name
            );
        }
    }
}
