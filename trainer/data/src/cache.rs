//! Tokens on disk, so that a data set is tokenised once.
//!
//! An entry is named by a hash of whatever its tokens depend on: the data's bytes, the tokenizer, the chat template and
//! the settings. It is therefore never stale; a damaged one is made anew.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use chronibench_protocol::TokenStore;
use sha2::{Digest, Sha256};

use crate::tokenize::Samples;

/// Changed whenever the same settings give other tokens than before.
const VERSION: &str = "chronicals.tokens/1";

/// Entries that were not read for so long are deleted.
const KEPT: Duration = Duration::from_secs(60 * 24 * 3600);

/// A folder of tokens.
#[derive(Clone, Debug, Default)]
pub struct TokenCache {
    folder: Option<PathBuf>,
}

/// Name of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

/// Puts a name together from what the tokens depend on.
pub struct KeyOf(Sha256);

impl KeyOf {
    /// A name that depends on nothing yet.
    pub fn new() -> Self {
        Self(Sha256::new()).part(VERSION.as_bytes())
    }

    /// Depends on these bytes too.
    pub fn part(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Depends on a file's bytes too.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn file(self, path: &Path) -> io::Result<Self> {
        let (mut file, mut sum) = (File::open(path)?, Sha256::new());
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(self.part(sum.finalize().as_slice())),
                read => sum.update(&buffer[..read]),
            }
        }
    }

    /// The name.
    pub fn finish(self) -> Key {
        Key(self.0.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect())
    }
}

impl Default for KeyOf {
    fn default() -> Self {
        Self::new()
    }
}

impl TokenCache {
    /// A cache in a folder, which is made when it is first written to; `None` keeps nothing.
    pub fn at(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    fn file(&self, key: &Key) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{}.tokens", key.0)))
    }

    /// An entry, if it is there and whole.
    pub fn get(&self, key: &Key) -> Option<Samples> {
        let path = self.file(key)?;
        let samples = whole(&std::fs::read(&path).ok()?)?;
        // What is read is kept. That this can fail costs time only.
        let _ = File::options().append(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
        Some(samples)
    }

    /// Keeps an entry: it is there whole or not at all. Old entries of the folder are deleted.
    ///
    /// # Errors
    /// The folder cannot be written to, which costs time only.
    pub fn put(&self, key: &Key, samples: &Samples) -> io::Result<()> {
        let Some(path) = self.file(key) else { return Ok(()) };
        let folder = path.parent().expect("a file in the cache");
        std::fs::create_dir_all(folder)?;
        sweep(folder);
        let mut body = (samples.empty as u64).to_le_bytes().to_vec();
        body.extend(samples.store.to_bytes());
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        temporary.write_all(&Sha256::digest(&body))?;
        temporary.write_all(&body)?;
        temporary.persist(path)?;
        Ok(())
    }
}

/// What an entry holds if its checksum is right.
fn whole(bytes: &[u8]) -> Option<Samples> {
    let (sum, body) = bytes.split_at_checked(32)?;
    if Sha256::digest(body).as_slice() != sum {
        return None;
    }
    let (empty, store) = body.split_at_checked(8)?;
    let empty = u64::from_le_bytes(empty.try_into().ok()?) as usize;
    Some(Samples { store: TokenStore::from_bytes(store).ok()?, empty })
}

/// Deletes entries that nobody has read for long.
fn sweep(folder: &Path) {
    let old = |path: &Path| {
        let age = path.metadata().and_then(|m| m.modified()).ok()?.elapsed().ok()?;
        (path.extension()? == "tokens" && age > KEPT).then_some(())
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if old(&entry.path()).is_some() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        let mut store = TokenStore::new();
        store.push(&[1, 2, 3], &[0, 1, 1]);
        Samples { store, empty: 4 }
    }

    #[test]
    fn an_entry_comes_back_and_a_damaged_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let cache = TokenCache::at(Some(dir.path().join("made/when/needed")));
        let key = KeyOf::new().part(b"a").finish();
        assert_eq!(cache.get(&key), None);
        cache.put(&key, &samples()).unwrap();
        assert_eq!(cache.get(&key), Some(samples()));
        assert_eq!(cache.get(&KeyOf::new().part(b"b").finish()), None);

        let path = cache.file(&key).unwrap();
        let good = std::fs::read(&path).unwrap();
        for damage in [0, 31, 32, 40, good.len() - 1] {
            let mut bad = good.clone();
            bad[damage] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert_eq!(cache.get(&key), None, "byte {damage}");
            std::fs::write(&path, &good[..damage]).unwrap();
            assert_eq!(cache.get(&key), None, "cut at {damage}");
        }
        cache.put(&key, &samples()).unwrap();
        assert_eq!(cache.get(&key), Some(samples()));
        let left = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "no temporary file stays");
    }

    #[test]
    fn names_depend_on_every_part_and_where_it_ends() {
        let of = |parts: &[&[u8]]| parts.iter().fold(KeyOf::new(), |key, part| key.part(part)).finish();
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_ne!(of(&[b"a"]), of(&[b"a", b""]));
        assert_eq!(of(&[b"a"]), of(&[b"a"]));
    }

    #[test]
    fn old_entries_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let cache = TokenCache::at(Some(dir.path().to_path_buf()));
        let (old, new) = (KeyOf::new().part(b"old").finish(), KeyOf::new().part(b"new").finish());
        cache.put(&old, &samples()).unwrap();
        let age = |path: &Path| {
            let file = File::options().append(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - KEPT - Duration::from_secs(60)).unwrap();
        };
        let stranger = dir.path().join("notes.txt");
        std::fs::write(&stranger, "x").unwrap();
        age(&stranger);
        age(&cache.file(&old).unwrap());
        cache.put(&new, &samples()).unwrap();
        assert!(cache.get(&old).is_none() && cache.get(&new).is_some() && stranger.exists());
    }

    #[test]
    fn no_folder_keeps_nothing() {
        let key = KeyOf::new().finish();
        let cache = TokenCache::at(None);
        cache.put(&key, &samples()).unwrap();
        assert_eq!(cache.get(&key), None);
    }
}
