//! Scenarios: YAML as written ([`raw`]) → checked, expanded and ordered ([`resolve`]).

pub mod cheat;
pub mod factorial;
pub mod kernels;
pub mod located;
pub mod matrix;
pub mod mock;
pub mod order;
pub mod raw;
pub mod resolve;
pub mod rivals;
pub mod settings;
pub mod source;
pub mod sweep;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{AtPath, Error, Result};

pub use kernels::{Offer, Seams};
pub use raw::Raw;
pub use resolve::{Filter, Setup, label};
pub use source::Source;

/// A scenario file, read and typed but not yet checked against the world.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Where it was read from.
    pub path: PathBuf,
    /// Its text, for messages; with `--set`, the text after the changes.
    pub source: Source,
    /// The text as read, whose hash is recorded.
    pub original: String,
    /// What it says.
    pub raw: Raw,
}

impl Scenario {
    /// Reads a scenario and applies `key=value` changes, e.g. `measure.timed_steps=24`.
    ///
    /// # Errors
    /// The file cannot be read, is not a scenario, or a change names nothing in it.
    pub fn load(path: &Path, changes: &[String]) -> Result<Self> {
        let original = std::fs::read_to_string(path).at(path)?;
        let source = Source { name: path.display().to_string(), text: original.clone() };
        let raw: Raw = source.parse()?;
        let (raw, source) = if changes.is_empty() { (raw, source) } else { changed(&raw, &source, changes)? };
        Ok(Self { path: path.to_path_buf(), source, original, raw })
    }
}

/// Applies the changes to the typed scenario and reads the result as if it had been written so.
fn changed(raw: &Raw, source: &Source, changes: &[String]) -> Result<(Raw, Source)> {
    let mut tree = serde_json::to_value(raw).expect("a scenario is plain data");
    for change in changes {
        let at = || format!("--set {change}");
        let (key, value) = change.split_once('=').ok_or_else(|| {
            Error::usage("no '=' in it", at())
                .hint("write --set key=value, e.g. --set measure.timed_steps=24")
        })?;
        let value: Value = serde_saphyr::from_str(value)
            .map_err(|e| Error::usage(format!("the value is not YAML: {}", e.without_snippet()), at()))?;
        set(&mut tree, key, value)
            .map_err(|part| Error::usage(format!("'{part}' has nothing below it"), at()))?;
    }
    let text = serde_saphyr::to_string(&tree).expect("a scenario is plain data");
    let source = Source { name: format!("{} with --set {}", source.name, changes.join(" --set ")), text };
    Ok((source.parse()?, source))
}

/// Sets one leaf. What the scenario leaves out may be set: keys that are new are made, and refused when it is read again if it knows
/// none of that name. Nothing is below a value.
fn set(tree: &mut Value, key: &str, value: Value) -> Result<(), String> {
    let mut node = tree;
    let mut above = "";
    for part in key.split('.') {
        let object = node.as_object_mut().ok_or(above)?;
        node = object.entry(part).or_insert_with(|| Value::Object(Map::new()));
        above = part;
    }
    *node = value;
    Ok(())
}
