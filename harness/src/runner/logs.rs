//! What an arm prints: kept in files, cut when it would fill the disk.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use crate::error::{AtPath, Result};

/// The files of standard output and standard error.
pub const NAMES: [&str; 2] = ["stdout.log", "stderr.log"];
/// A file longer than this loses all but its end.
const LIMIT: u64 = 8 << 20;
/// What is left of it.
const KEPT: u64 = 1 << 16;

/// Cuts what has grown too long; to be called often, as it bounds only what is written between two calls.
///
/// The writer appends, so that it goes on behind what is kept. What it writes while the file is cut may be lost.
pub fn trim(dir: &Path) -> Result<()> {
    for name in NAMES {
        let path = dir.join(name);
        let length = path.metadata().map_or(0, |m| m.len());
        if length <= LIMIT {
            continue;
        }
        let mut end = Vec::new();
        let mut file = File::open(&path).at(&path)?;
        file.seek(SeekFrom::Start(length - KEPT)).at(&path)?;
        file.take(KEPT).read_to_end(&mut end).at(&path)?;
        let mut file = OpenOptions::new().append(true).open(&path).at(&path)?;
        file.set_len(0).at(&path)?;
        let note = format!("[chronibench has cut {} bytes that were here]\n", length - KEPT);
        file.write_all(note.as_bytes()).and_then(|()| file.write_all(&end)).at(&path)?;
    }
    Ok(())
}

/// Moves what was printed into the run folder, as `logs/<trial>.stdout.log` and `.stderr.log`; nothing where nothing was.
pub fn keep(dir: &Path, folder: &Path, trial_id: &str) -> Result<()> {
    trim(dir)?;
    for name in NAMES {
        let path = dir.join(name);
        if path.metadata().is_ok_and(|m| m.len() > 0) {
            let logs = folder.join("logs");
            std::fs::create_dir_all(&logs).at(&logs)?;
            let to = logs.join(format!("{trial_id}.{name}"));
            std::fs::rename(&path, &to).at(&to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_its_end_and_its_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stderr.log");
        let mut writer = File::options().create(true).append(true).open(&path).unwrap();
        for i in 0..200_000 {
            writeln!(writer, "line {i} of a flood that is longer than anybody reads").unwrap();
        }
        trim(dir.path()).unwrap();
        writeln!(writer, "the last word").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("[chronibench has cut ") && text.len() < 100_000, "{}", text.len());
        assert!(text.ends_with("line 199999 of a flood that is longer than anybody reads\nthe last word\n"));
        keep(dir.path(), dir.path(), "000-a").unwrap();
        assert!(dir.path().join("logs/000-a.stderr.log").is_file() && !path.exists());
    }
}
