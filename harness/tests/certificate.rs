//! What a certificate of a machine holds for.

mod common;

use chronibench::{
    gate::certificate,
    scenario::{Filter, Scenario, resolve::resolve},
    worker,
};
use common::{HEAD, folder, scenario};

#[test]
fn a_certificate_is_for_one_scenario_with_its_changes_and_files() {
    let dir = folder();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    for name in ["config.json", "data.jsonl", "tokenizer.json"] {
        write(name, "{}");
    }
    let path = scenario(dir.path(), &format!("{HEAD}arms:\n  steady: {{ runner: mock }}\n"));
    let key = |changes: &[&str], case: Option<&str>| {
        let changes: Vec<String> = changes.iter().map(|c| c.to_string()).collect();
        let scenario = Scenario::load(&path, &changes).unwrap();
        let filter = Filter { case: case.map(String::from), ..Filter::default() };
        certificate::key(&resolve(&scenario, &worker::offer(), &filter).unwrap()).unwrap()
    };
    let first = key(&[], None);
    assert_eq!(key(&[], Some("lora")), first, "a selection has figures of its own in it");
    assert_ne!(key(&["matrix.method.lora.r=64"], None), first);
    for name in ["config.json", "data.jsonl", "tokenizer.json"] {
        write(name, "{ }");
        assert_ne!(key(&[], None), first, "{name}");
        write(name, "{}");
    }
    assert_eq!(key(&[], None), first);
}
