//! One program at a time: a lock on a file beside the one that is written.

use std::{
    fs::{File, TryLockError},
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    error::{AtPath, Error, Result},
    interrupt,
};

/// How long is waited before it is said.
const PATIENCE: Duration = Duration::from_secs(1);

/// Keeps others from a file or folder until what is returned is dropped: by a lock on `.NAME.lock` beside it, which stays.
///
/// # Errors
/// The place cannot be written, or a signal came while others were waited for.
pub fn alone(file: &Path) -> Result<File> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let path = file.with_file_name(format!(".{name}.lock"));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).at(folder)?;
    }
    let lock = File::create(&path).at(&path)?;
    let begun = Instant::now();
    let mut said = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, &e)),
            Err(TryLockError::WouldBlock) if interrupt::requested() => return Err(interrupt::error()),
            Err(TryLockError::WouldBlock) => {}
        }
        if begun.elapsed() > PATIENCE && !std::mem::replace(&mut said, true) {
            eprintln!("waiting for another program that writes {}", file.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn the_second_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("folder/target");
        let first = alone(&file).unwrap();
        let has = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _second = alone(&file).unwrap();
                has.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(100));
            assert!(!has.load(Ordering::SeqCst));
            drop(first);
        });
        assert!(has.load(Ordering::SeqCst) && dir.path().join("folder/.target.lock").is_file());
    }
}
