//! Every page of `docs/how-to` about the trainer, as a reader follows it (`follow`).

mod follow;

use std::{collections::BTreeSet, path::Path, sync::OnceLock};

use follow::{OF_HARNESS, folder, follow, root};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_chronicals");

/// What the first page makes.
fn made() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let dir = MADE.get_or_init(|| {
        let dir = folder();
        follow(PROGRAM, "README.md", dir.path());
        dir
    });
    dir.path()
}

fn page(name: &str) {
    let dir = folder();
    std::fs::copy(made().join("mine.jsonl"), dir.path().join("mine.jsonl")).unwrap();
    let model = dir.path().join("my-model");
    std::fs::create_dir(&model).unwrap();
    // Folders in it are metrics of the training that made it.
    let files = std::fs::read_dir(made().join("my-model")).unwrap().map(|e| e.unwrap().path());
    for file in files.filter(|path| path.is_file()) {
        std::fs::copy(&file, model.join(file.file_name().unwrap())).unwrap();
    }
    follow(PROGRAM, name, dir.path());
}

macro_rules! pages {
    ($($test:ident: $page:literal),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                page($page);
            }
        )*

        #[test]
        fn no_page_is_left_out() {
            let entries = std::fs::read_dir(root().join("docs/how-to")).unwrap();
            let found: BTreeSet<String> =
                entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
            let run: BTreeSet<String> =
                [$($page),*].into_iter().chain(["README.md"]).chain(OF_HARNESS).map(String::from).collect();
            assert_eq!(found, run);
        }
    };
}

pages! {
    fine_tune: "fine-tune.md",
    conversations: "conversations.md",
    formats: "formats.md",
    presets: "presets.md",
    look_at_data: "look-at-data.md",
    lora_variants: "lora-variants.md",
    early_stop: "early-stop.md",
    resume: "resume.md",
    evaluate: "evaluate.md",
    merge_and_export: "merge-and-export.md",
    gguf: "gguf.md",
    offline: "offline.md",
    profile: "profile.md",
    plan_memory: "plan-memory.md",
    gpu: "gpu.md",
}
