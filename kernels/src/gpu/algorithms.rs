//! The file of tuned matrix products: one line a product, `NAME = 64 bytes in hexadecimal`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// What was found, in memory and, where there is a file, on disk.
pub(super) struct Algorithms {
    file: Option<PathBuf>,
    known: BTreeMap<String, [u64; 8]>,
    /// Choices that go before those: of the training that is gone on with. They are not written to the file.
    adopted: BTreeMap<String, [u64; 8]>,
}

impl Algorithms {
    /// Reads a file; a line that is damaged is left out, and its product is tuned again.
    pub(super) fn load(file: Option<PathBuf>) -> Self {
        let known = file.as_deref().map(read).unwrap_or_default();
        Self { known, file, adopted: BTreeMap::new() }
    }

    pub(super) fn get(&self, name: &str) -> Option<[u64; 8]> {
        self.adopted.get(name).or_else(|| self.known.get(name)).copied()
    }

    /// Takes choices over from lines; those that are damaged are left out.
    pub(super) fn adopt<'a>(&mut self, lines: impl Iterator<Item = &'a str>) {
        self.adopted.extend(lines.filter_map(parse));
    }

    /// What was taken over.
    pub(super) fn adopted(&self) -> &BTreeMap<String, [u64; 8]> {
        &self.adopted
    }

    /// The line of a choice.
    pub(super) fn line(name: &str, data: [u64; 8]) -> String {
        let hex: String = data.iter().map(|word| format!("{word:016x}")).collect();
        format!("{name} = {hex}\n")
    }

    /// Keeps a choice, unless another process has kept one meanwhile: which to take. Of several algorithms that are as fast, each process
    /// might find another to be the fastest, and their sums round otherwise. A file that cannot be written only costs the next
    /// process its time.
    pub(super) fn put(&mut self, name: &str, data: [u64; 8]) -> [u64; 8] {
        self.known.insert(name.to_string(), data);
        if let Some(file) = self.file.clone() {
            let _ = self.store(&file);
        }
        self.known[name]
    }

    /// Adds to the file what it lacks, and takes over what it has.
    fn store(&mut self, file: &Path) -> io::Result<()> {
        let dir = file.parent().expect("a file in a folder");
        std::fs::create_dir_all(dir)?;
        // Held until this ends. The file itself is replaced, and a lock of it would be of one that is gone.
        let lock = File::create(file.with_extension("lock"))?;
        lock.lock()?;
        self.known.extend(read(file));
        let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
        for (name, data) in &self.known {
            temporary.write_all(Self::line(name, *data).as_bytes())?;
        }
        temporary.persist(file)?;
        Ok(())
    }
}

fn read(file: &Path) -> BTreeMap<String, [u64; 8]> {
    std::fs::read_to_string(file).unwrap_or_default().lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<(String, [u64; 8])> {
    let (name, hex) = line.split_once(" = ")?;
    if hex.len() != 128 || !hex.is_ascii() {
        return None;
    }
    let mut data = [0; 8];
    for (i, word) in data.iter_mut().enumerate() {
        *word = u64::from_str_radix(&hex[16 * i..16 * (i + 1)], 16).ok()?;
    }
    Some((name.to_string(), data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_survive_the_process_and_damage_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sub/choices.txt");
        let mut first = Algorithms::load(Some(file.clone()));
        first.put("1x2x3", [1, 2, 3, 4, 5, 6, 7, u64::MAX]);
        first.put("4x5x6", [9; 8]);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("4x5x6 = 00", "4x5x6 = zz") + "torn = 12\n").unwrap();
        let second = Algorithms::load(Some(file));
        assert_eq!(second.get("1x2x3"), Some([1, 2, 3, 4, 5, 6, 7, u64::MAX]));
        assert_eq!((second.get("4x5x6"), second.get("torn")), (None, None));
    }

    #[test]
    fn processes_that_tune_at_once_keep_each_others_choices_and_end_with_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("choices.txt");
        let load = || Algorithms::load(Some(file.clone()));
        let (mut one, mut other) = (load(), load());
        assert_eq!(one.put("1x2x3", [1; 8]), [1; 8]);
        assert_eq!(other.put("4x5x6", [2; 8]), [2; 8]);
        assert_eq!(other.put("1x2x3", [3; 8]), [1; 8]);
        let stored = load();
        assert_eq!(["1x2x3", "4x5x6"].map(|name| stored.get(name)), [Some([1; 8]), Some([2; 8])]);
        let all = std::thread::scope(|scope| {
            let load = &load;
            let put = |i: u64| scope.spawn(move || load().put(&format!("{}x7", i % 4), [i; 8]));
            let all: Vec<_> = (0..32).map(put).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
        });
        let stored = load();
        for (i, one) in (0u64..).zip(all) {
            assert_eq!(stored.get(&format!("{}x7", i % 4)), Some(one));
        }
    }

    #[test]
    fn adopted_choices_go_first_and_stay_out_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("choices.txt");
        let mut choices = Algorithms::load(Some(file.clone()));
        choices.put("1x2x3", [1; 8]);
        let lines = Algorithms::line("1x2x3", [2; 8]) + "damaged\n" + &Algorithms::line("4x5x6", [3; 8]);
        choices.adopt(lines.lines());
        choices.put("7x8x9", [4; 8]);
        assert_eq!(["1x2x3", "4x5x6"].map(|name| choices.get(name)), [Some([2; 8]), Some([3; 8])]);
        let stored = Algorithms::load(Some(file));
        assert_eq!(["1x2x3", "4x5x6"].map(|name| stored.get(name)), [Some([1; 8]), None]);
    }
}
