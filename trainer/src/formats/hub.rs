//! Repositories of Hugging Face's hub, by way of the cache that its own tools use.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache,
    api::sync::{ApiBuilder, ApiError},
};

use crate::error::Error;

/// A variable of the environment that says something.
fn var(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|v| !v.is_empty())
}

/// Where the hub's own tools keep repositories.
fn cache() -> Option<PathBuf> {
    let folder = |name: &str| var(name).map(PathBuf::from);
    folder("HF_HUB_CACHE")
        .or_else(|| folder("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

/// Owner and name, where a path that does not exist could be a repository.
fn repository(path: &Path) -> Option<(&str, &str)> {
    let (owner, name) = path.to_str()?.split_once('/')?;
    let plain = |s: &str| {
        !s.is_empty()
            && !s.starts_with('.')
            && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    (plain(owner) && plain(name)).then_some((owner, name))
}

/// The folder or file that a path means: itself, or the newest snapshot of a repository in the hub's cache. What the cache does not
/// have is fetched, unless `HF_HUB_OFFLINE` is set.
///
/// # Errors
/// There is neither, and it cannot be fetched; other ways to get it are said.
pub fn resolve(path: &Path) -> Result<PathBuf, Error> {
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let Some((owner, name)) = repository(path) else {
        return Err(
            Error::new("there is no such file or folder", path.display().to_string()).hint("check the path")
        );
    };
    let repository = format!("{owner}/{name}");
    let place = format!("{repository} on the hub");
    let cache =
        cache().ok_or_else(|| missing("there is no cache, as HF_HOME and HOME are not set", &place))?;
    let folder = cache.join(format!("models--{owner}--{name}"));
    if let Some(snapshot) = newest(&folder) {
        return Ok(snapshot);
    }
    if var("HF_HUB_OFFLINE").is_some_and(|v| v != "0") {
        let what = "there is no such folder, the hub's cache does not have it, and HF_HUB_OFFLINE is set";
        return Err(missing(what, &folder.display().to_string()));
    }
    fetch(&repository, cache).map_err(|e| missing(&format!("cannot be fetched: {e}"), &place))?;
    newest(&folder).ok_or_else(|| missing("what was fetched is no model: it has no config.json", &place))
}

fn missing(what: &str, at: &str) -> Error {
    let hint = "check the name; without a network, run `hf download OWNER/NAME` where there is one and copy the folder here, \
                then name it";
    Error::new(what, at).hint(hint)
}

/// A snapshot of a repository in the cache, if it is whole.
fn newest(folder: &Path) -> Option<PathBuf> {
    let revision = std::fs::read_to_string(folder.join("refs/main")).ok()?;
    let snapshot = folder.join("snapshots").join(revision.trim());
    let whole = snapshot.join("config.json").exists() && super::weights_file(&snapshot).is_ok();
    whole.then_some(snapshot)
}

/// Fetches what a model is made of into the cache, the weights last but for the config, by which a whole snapshot is known.
fn fetch(repository: &str, cache: PathBuf) -> Result<(), ApiError> {
    let mut builder = ApiBuilder::from_cache(Cache::new(cache)).with_retries(3);
    if let Some(endpoint) = var("HF_ENDPOINT").and_then(|e| e.into_string().ok()) {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(token) = var("HF_TOKEN").and_then(|t| t.into_string().ok()) {
        builder = builder.with_token(Some(token));
    }
    eprintln!("fetching {repository} from the hub (HF_HUB_OFFLINE=1 keeps to what is here)");
    let repo = builder.build()?.model(repository.to_string());
    let mut names: Vec<String> = repo.info()?.siblings.into_iter().map(|s| s.rfilename).collect();
    names.retain(|name| is_wanted(name));
    names.sort_by_key(|name| (name == "config.json", name.ends_with(".safetensors")));
    names.iter().try_for_each(|name| repo.get(name).map(drop))
}

/// Weights and what is read beside them; nothing out of sub-folders, which hold other forms of the same model.
fn is_wanted(name: &str) -> bool {
    let weights = name.ends_with(".safetensors") || name == "model.safetensors.index.json";
    !name.contains(['/', '\\']) && (weights || name == "config.json" || super::beside::NAMES.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_repository() {
        assert_eq!(repository(Path::new("Qwen/Qwen2.5-0.5B")), Some(("Qwen", "Qwen2.5-0.5B")));
        for path in ["/a/b", "a", "a/b/c", "../b", "a/.b", "a b/c"] {
            assert_eq!(repository(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn only_a_whole_snapshot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("models--me--tiny");
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        let snapshot = folder.join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        assert_eq!(newest(&folder), None);
        std::fs::write(folder.join("refs/main"), "abc\n").unwrap();
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(newest(&folder), None);
        std::fs::write(snapshot.join("model.safetensors"), "").unwrap();
        assert_eq!(newest(&folder), Some(snapshot));
    }

    #[test]
    fn what_is_fetched() {
        for name in
            ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"]
        {
            assert!(is_wanted(name), "{name}");
        }
        for name in ["onnx/model.safetensors", "../config.json", "pytorch_model.bin", "README.md"] {
            assert!(!is_wanted(name), "{name}");
        }
    }
}
