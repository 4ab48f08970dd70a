//! Repositories in the cache of Hugging Face's hub. What is there is used; nothing is fetched.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// Where the hub's own tools keep repositories.
fn cache() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("HF_HUB_CACHE")
        .or_else(|| var("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| var("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| var("HOME").map(|home| home.join(".cache/huggingface/hub")))
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

/// The folder or file that a path means: itself, or the newest snapshot of a repository in the cache.
///
/// # Errors
/// There is neither; how to fetch the repository is said.
pub fn resolve(path: &Path) -> Result<PathBuf, Error> {
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let Some((owner, name)) = repository(path) else {
        return Err(
            Error::new("there is no such file or folder", path.display().to_string()).hint("check the path")
        );
    };
    find(owner, name, cache().as_deref())
}

fn find(owner: &str, name: &str, cache: Option<&Path>) -> Result<PathBuf, Error> {
    let repository = format!("{owner}/{name}");
    let missing = |at: String| {
        Error::new(format!("there is no folder {repository}, and the hub's cache does not have it"), at)
            .hint(format!("fetch it with `hf download {repository}`, or copy its folder here and name that"))
    };
    let cache = cache.ok_or_else(|| missing("HF_HOME and HOME are not set".into()))?;
    let folder = cache.join(format!("models--{owner}--{name}"));
    let at = || missing(folder.display().to_string());
    let revision = std::fs::read_to_string(folder.join("refs/main")).map_err(|_| at())?;
    let snapshot = folder.join("snapshots").join(revision.trim());
    if snapshot.join("config.json").exists() { Ok(snapshot) } else { Err(at()) }
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
    fn the_newest_snapshot_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("models--me--tiny");
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        std::fs::create_dir_all(folder.join("snapshots/abc")).unwrap();
        std::fs::write(folder.join("refs/main"), "abc\n").unwrap();
        let e = find("me", "tiny", Some(dir.path())).unwrap_err().to_string();
        assert!(e.contains("hf download me/tiny"), "{e}");
        std::fs::write(folder.join("snapshots/abc/config.json"), "{}").unwrap();
        assert_eq!(find("me", "tiny", Some(dir.path())).unwrap(), folder.join("snapshots/abc"));
    }
}
