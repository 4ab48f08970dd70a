//! Where the certificates of this machine lie: one file a scenario in the user's cache folder.

use std::path::{Path, PathBuf};

use chronibench_analysis::gate::Certificate;
use chronibench_protocol::digest::sha256_hex;
use serde_json::{Value, json};

use crate::{
    environment,
    error::{AtPath, Error, Result},
    runner::gpu::Gpu,
    scenario::{Setup, resolve::hashed},
    store::{damaged, pretty, write_whole},
};

/// What a certificate holds for: the scenario as it was changed on the command line, the files that it names, how long it measures, and
/// the machine with its GPU. Which cases are selected is left out: a certificate has figures for each.
///
/// # Errors
/// A file cannot be read, or the machine tells nothing about itself.
pub fn key(setup: &Setup) -> Result<String> {
    let resolved = &setup.resolved;
    let what = json!({
        "scenario": setup.changed_sha256,
        "model": resolved.model,
        "data": resolved.data,
        "tokenizer": tokenizer(&setup.tokenizer)?,
        "chat_template": setup.chat_template.as_deref().map(hashed).transpose()?,
        "measure": resolved.measure,
        "threads": setup.threads,
        "machine": environment::machine()?,
        "gpu": Gpu::open().ok().map(|g| g.facts()),
    });
    Ok(sha256_hex(what.to_string().as_bytes()))
}

/// Hashes of what a tokenizer is made of: its file, or those of its folder that are read.
fn tokenizer(path: &Path) -> Result<Vec<String>> {
    if !path.is_dir() {
        return Ok(vec![hashed(path)?]);
    }
    let files =
        ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"].map(|name| path.join(name));
    files.iter().filter(|file| file.is_file()).map(|file| hashed(file)).collect()
}

/// The machine in words.
///
/// # Errors
/// The machine tells nothing about itself.
pub fn machine_words() -> Result<String> {
    let machine = environment::machine()?;
    let cpu = machine.get("cpu").and_then(Value::as_str).unwrap_or("a processor without a name");
    Ok(format!("{cpu}, {} usable cores", environment::usable_cores()))
}

fn path(scenario: &str, key: &str) -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = cache.or_else(home).ok_or_else(|| {
        Error::environment("no place for certificates", "HOME")
            .hint("set XDG_CACHE_HOME to a writable folder")
    })?;
    Ok(cache.join("chronibench/noise").join(format!("{scenario}-{}.json", &key[..16])))
}

/// The certificate of this machine for a scenario, if there is one.
///
/// # Errors
/// It is there and cannot be read.
pub fn find(setup: &Setup) -> Result<Option<Certificate>> {
    let key = key(setup)?;
    let path = path(&setup.resolved.name, &key)?;
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).at(&path)?;
    let certificate: Certificate = serde_json::from_str(&text).map_err(|e| damaged(&path, &e.to_string()))?;
    Ok((certificate.key == key).then_some(certificate))
}

/// Keeps a certificate in place of the one before.
///
/// One that certifies more, or stricter gates, is not lost to a short look: `None` then.
///
/// # Errors
/// The folder cannot be written.
pub fn save(certificate: &Certificate) -> Result<Option<PathBuf>> {
    let path = path(&certificate.scenario, &certificate.key)?;
    let old = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Certificate>(&text).ok());
    if old.is_some_and(|old| !certificate.replaces(&old)) {
        return Ok(None);
    }
    write_whole(&path, &pretty(&serde_json::to_value(certificate).expect("plain data")))?;
    Ok(Some(path))
}
