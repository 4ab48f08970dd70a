//! Tests of the analysis on synthetic logs of honest and of cheating arms.

mod audits;
mod certificate;
mod changepoint;
mod groups;
mod judge;
mod kernels;
mod report;
mod retries;
mod sequential;
mod shapley;
mod stats;
mod summary;
mod telling;
mod testing;

/// What makes a report rebuildable to the last byte: nothing but its arguments enters.
#[test]
fn the_crate_is_pure() {
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for banned in
                ["std::fs", "std::process", "std::env", "std::time", "std::io", "HashMap", "println!"]
            {
                assert!(!text.contains(banned), "{} uses {banned}", path.display());
            }
            files += 1;
        }
    }
    assert!(files > 10);
}
