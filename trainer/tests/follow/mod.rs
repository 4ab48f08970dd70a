//! A page of `docs/how-to`, as a reader follows it: YAML blocks become files, shell blocks run, and what is said to be printed is.
//! Blocks without a word behind their fence are not run.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// Pages about `chronibench`, which the harness's tests follow; the trainer's follow all others.
pub const OF_HARNESS: [&str; 2] = ["claimed-speedup.md", "gate.md"];

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

/// The text of fenced blocks, each with the word behind its fence.
fn blocks(page: &str) -> Vec<(&str, String)> {
    let mut blocks: Vec<(&str, String)> = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(word), None) => open = Some((word, String::new())),
            (None, Some((_, text))) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block does not end");
    blocks
}

/// A line without what changes from run to run: numbers, and how wide a column is.
fn plain(line: &str) -> String {
    let words = line.split_whitespace().map(|word| word.replace(|c: char| c.is_ascii_digit(), "0"));
    words.collect::<Vec<_>>().join(" ")
}

/// Follows a page in a folder, with the folder of `program` in front of the path.
pub fn follow(program: &str, name: &str, dir: &Path) {
    let page = std::fs::read_to_string(root().join("docs/how-to").join(name)).unwrap();
    let mut printed = BTreeSet::new();
    let mut ran = 0;
    for (word, text) in blocks(&page) {
        match word {
            "yaml" => {
                let file = text.lines().next().and_then(|line| line.strip_prefix("# "));
                let file = file.unwrap_or_else(|| panic!("{name}: a YAML block that does not say its file"));
                std::fs::write(dir.join(file), &text).unwrap();
            }
            "sh" => {
                printed.extend(shell(program, name, &text, dir));
                ran += 1;
            }
            "text" => {
                for line in text.lines().map(plain) {
                    assert!(printed.contains(&line), "{name}: nothing printed '{line}': {printed:#?}");
                }
            }
            "" => {}
            other => panic!("{name}: a block of {other}, which nothing checks"),
        }
    }
    assert!(ran > 0, "{name} runs nothing");
}

/// Runs lines as a terminal would, but ends at the first that fails.
fn shell(program: &str, name: &str, text: &str, dir: &Path) -> Vec<String> {
    let path =
        format!("{}:{}", Path::new(program).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", text])
        .current_dir(dir)
        .env("PATH", path)
        .env("HF_HUB_OFFLINE", "1")
        .env("HOME", dir)
        .env_remove("XDG_CACHE_HOME")
        .output()
        .unwrap();
    let all =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{name}: {} from\n{text}\n{all}", output.status);
    all.lines().map(plain).collect()
}

/// A folder that looks like the repository's root as far as pages go.
pub fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["data", "scenarios", "fuzz", "tests"] {
        std::os::unix::fs::symlink(root().join(name), dir.path().join(name)).unwrap();
    }
    dir
}
