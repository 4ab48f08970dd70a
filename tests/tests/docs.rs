//! The documentation: links lead somewhere, the tests that it names exist, and what it computes is so.

use std::path::{Path, PathBuf};

use chronibench_protocol::{record::Packing, spec::LoraArgs};
use chronicals::{data::packing, lora::Adapters};
use chronicals_tests::golden::Golden;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

fn pages(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(pages(&path));
        } else if path.extension().is_some_and(|e| e == "md") {
            found.push(path);
        }
    }
    found
}

/// Pages that people read, without published reports.
fn all() -> Vec<PathBuf> {
    let mut all = pages(&root().join("docs"));
    let others = [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "fuzz/README.md",
        "data/README.md",
        "scenarios/README.md",
        "reports/README.md",
    ];
    all.extend(others.map(|name| root().join(name)));
    all
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What stands between a word and the next occurrence of an end.
fn between<'a>(text: &'a str, begin: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(begin).skip(1).filter_map(move |rest| Some(rest.split_once(end)?.0))
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &Path) -> Vec<String> {
    let anchor = |heading: &str| -> String {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    text(page).lines().filter(|line| line.starts_with('#')).map(anchor).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    for page in all() {
        let folder = page.parent().unwrap();
        for link in between(&text(&page), "](", ")") {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { folder.join(file) };
            assert!(target.exists(), "{} links to {link}", page.display());
            let found = anchor.is_empty() || anchors(&target).iter().any(|a| a == anchor);
            assert!(found, "{} links to {link}, and there is no such heading", page.display());
            count += 1;
        }
    }
    assert!(count > 30, "the walk finds links");
}

#[test]
fn every_page_is_in_the_index() {
    let index = text(&root().join("docs/README.md"));
    for page in pages(&root().join("docs")) {
        let name = page.strip_prefix(root().join("docs")).unwrap().display().to_string();
        assert!(name == "README.md" || index.contains(&format!("]({name})")), "docs/README.md lacks {name}");
    }
    assert!(text(&root().join("README.md")).contains("](docs/README.md)"));
}

#[test]
fn every_scenario_is_in_the_index() {
    let (folder, index) = (root().join("scenarios"), text(&root().join("scenarios/README.md")));
    let mut count = 0;
    for below in ["", "speed", "paper"] {
        for entry in std::fs::read_dir(folder.join(below)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".yaml") {
                let link = format!("]({})", Path::new(below).join(name).display());
                assert!(index.contains(&link), "scenarios/README.md lacks {link}");
                count += 1;
            }
        }
    }
    assert!(count > 20, "the walk finds scenarios");
}

/// What the front page takes over from published runs is in them.
#[test]
fn the_front_page_says_what_the_records_say() {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let front = text(&root().join("README.md"));
    let claims = text(&root().join("reports/claims.md"));
    let tally = claims.lines().find(|l| l.contains(" findings: ")).expect("the table has a tally");
    let tally = tally.trim_end_matches('.');
    assert!(words(&front).contains(tally), "README.md does not say '{tally}'");
    let smollm2 = "reports/2026-11-27-smollm2-cpu/README.md";
    let record = text(&root().join(smollm2));
    let (_, after) = front.split_once(&format!("]({smollm2})")).expect("README.md has a part of its output");
    let block = after.split("```").nth(1).expect("a block follows");
    for line in block.lines().filter(|l| !l.is_empty()) {
        assert!(record.lines().any(|l| l == line), "{smollm2} has no line '{line}'");
    }
}

/// A list item under "Tests": a file, and names of tests in it.
#[test]
fn tests_that_pages_name_exist() {
    for page in pages(&root().join("docs/maths")) {
        let content = text(&page);
        let (_, tests) = content.split_once("## Tests\n").unwrap_or_else(|| panic!("{}", page.display()));
        let mut count = 0;
        for item in tests.lines().filter(|line| line.starts_with("- ")) {
            let mut words = item.split('`').skip(1).step_by(2);
            let file = words.next().unwrap_or_else(|| panic!("{}: {item}", page.display()));
            let source = text(&root().join(file));
            for name in words {
                assert!(
                    source.contains(&format!("fn {name}(")) || source.contains(&format!("fn {name}<")),
                    "{} names {name}, which {file} has not",
                    page.display()
                );
                count += 1;
            }
        }
        assert!(count > 0, "{} names no test", page.display());
    }
}

/// Files that the page on numerics says have tolerances.
#[test]
fn tolerances_are_where_it_is_said() {
    let page = text(&root().join("docs/numerics.md"));
    let rows: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
    assert!(rows.len() >= 8, "{rows:?}");
    for file in rows {
        assert!(text(&root().join(file)).contains("e-"), "{file} has no tolerance");
    }
}

#[test]
fn the_scale_of_rslora_is_over_the_root_of_the_rank() {
    let lora = |rslora: bool| -> LoraArgs {
        serde_json::from_value(serde_json::json!({"r": 64, "lora_alpha": 16.0, "use_rslora": rslora}))
            .unwrap()
    };
    let config = Golden::load("llama").config;
    let scale = |rslora| Adapters::of(&config, &lora(rslora)).unwrap().get(0, "q_proj").unwrap().scale;
    assert_eq!((scale(false), scale(true)), (0.25, 2.0));
}

#[test]
fn short_samples_pack_within_the_bound() {
    for (k, seed) in [(2, 1), (4, 7), (16, 11)] {
        let capacity = 320;
        let longest = capacity / k;
        let lengths: Vec<usize> = (0..500).map(|i| 1 + (i * i * seed + 31 * i) % longest).collect();
        let least = lengths.iter().sum::<usize>().div_ceil(capacity);
        for rule in [Packing::Ff, Packing::Bfd] {
            let bins = packing::pack(&lengths, capacity, rule).unwrap().len();
            assert!((bins - 1) * (k - 1) < least * k, "{rule:?}: {bins} rows where {least} are needed");
        }
    }
}

/// Rounds to the nearest bf16, ties to even.
fn bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

#[test]
fn bf16_loses_small_changes() {
    for step in 0..2000u32 {
        let weight = bf16(1.0 + step as f32 / 2000.0);
        assert_eq!(bf16(weight * (1.0 + 0.99 / 512.0)), weight, "a change below 2⁻⁹ of {weight}");
        assert_ne!(bf16(weight * (1.0 + 1.01 / 256.0)), weight, "a change above 2⁻⁸ of {weight}");
    }
    // A second moment without gradients should fall by a thousandth a step, and stays.
    let moment = bf16(0.7);
    assert_eq!(bf16(moment * 0.999), moment);
}
