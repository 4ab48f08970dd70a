//! What a scenario means, and what its author is told when it means nothing.

mod common;

use chronibench::scenario::Scenario;
use chronibench_protocol::{record::Packing, spec::Method};
use common::{HEAD, HONEST, resolved};
use insta::assert_snapshot;

/// The message for a scenario with one part replaced.
fn message(from: &str, to: &str) -> String {
    let text = format!("{HEAD}{HONEST}");
    assert!(text.contains(from), "{from}");
    resolved(&text.replace(from, to)).expect_err("a mistake in it")
}

fn ids(text: &str) -> Vec<String> {
    resolved(text).unwrap().resolved.cases.into_iter().map(|c| c.id).collect()
}

#[test]
fn unknown_field() {
    assert_snapshot!(message("untimed_steps", "untimed_step"));
}

#[test]
fn unknown_setting_of_an_axis() {
    assert_snapshot!(message("lora_alpha", "alpha"));
}

#[test]
fn wrong_type() {
    assert_snapshot!(message("trials: 2", "trials: two"));
}

#[test]
fn missing_field() {
    assert_snapshot!(message("title: Mock arms\n", ""));
}

#[test]
fn unknown_choice() {
    assert_snapshot!(message("packing: bfd", "packing: bdf"));
}

#[test]
fn not_yaml() {
    assert_snapshot!(message("trials: 2", "trials: [2"));
}

#[test]
fn repeated_key() {
    assert_snapshot!(message("trials: 2", "trials: 2\ntrials: 3"));
}

/// Axes multiply: a slip must not make cases until memory is full.
#[test]
fn more_trials_than_anybody_runs() {
    let text = message("trials: 2", "trials: 4000000000");
    assert!(text.contains("multiply to 16000000000 trials, 100000 at most"), "{text}");
}

/// Numbers that no clock and no counter holds.
#[test]
fn more_time_and_steps_than_anybody_waits_for() {
    for (from, to, words) in [
        ("timeout_s: 20", "timeout_s: 1e300", "more than a year"),
        ("untimed_steps: 2,", "untimed_steps: 4294967295,", "more than ten million steps"),
    ] {
        let text = message(from, to);
        assert!(text.contains(words) && text.starts_with("[exit 2]"), "{text}");
    }
}

/// Every trial would be INVALID in the end.
#[test]
fn fewer_steps_than_a_verdict_takes() {
    let text = message("untimed_steps: 2,", "untimed_steps: 0,");
    assert!(text.contains("measure has 8 steps, and no trial of fewer than 9 is VALID"), "{text}");
    assert!(text.starts_with("[exit 2]"), "{text}");
}

#[test]
fn unknown_kernel_seam() {
    let arm = "steady: { runner: native, kernels: { nrom: eager } }";
    assert_snapshot!(message("steady: { runner: mock, mock: { step_ms: 20 } }", arm));
}

#[test]
fn unknown_kernel_variant() {
    let arm = "steady: { runner: native, kernels: { all: eagre } }";
    assert_snapshot!(message("steady: { runner: mock, mock: { step_ms: 20 } }", arm));
}

#[test]
fn kernels_of_an_arm_that_has_none() {
    let arm = "steady: { runner: candle, kernels: { all: eager } }";
    assert_snapshot!(message("steady: { runner: mock, mock: { step_ms: 20 } }", arm));
}

#[test]
fn unknown_arm_in_a_pick() {
    assert_snapshot!(message("only: [{ method: full", "only: [{ arm: stedy, method: full"));
}

#[test]
fn unknown_axis_and_value_in_a_pick() {
    assert_snapshot!(message("only: [{ method: full", "only: [{ methode: full"));
    assert_snapshot!(message("only: [{ method: full", "only: [{ method: fll"));
}

#[test]
fn unknown_case_in_a_comparison() {
    let comparison = "only: [{ method: full, packing: on }]\n\
                      comparisons: [{ label: x, case: steady/full/no, against: steady/full/on }]";
    assert_snapshot!(message("only: [{ method: full, packing: on }]", comparison));
}

#[test]
fn unknown_target_module() {
    assert_snapshot!(message("lora_alpha: 4", "lora_alpha: 4, target_modules: [q_porj]"));
}

#[test]
fn missing_data_set() {
    assert_snapshot!(message("path: data.jsonl", "path: dataa.jsonl"));
}

#[test]
fn unknown_template() {
    assert_snapshot!(message("template: alpaca", "template: alpacca"));
}

#[test]
fn unknown_format() {
    assert_snapshot!(message("template: alpaca", "template: alpaca, format: sharegtp"));
}

#[test]
fn unknown_column() {
    assert_snapshot!(message("template: alpaca", "template: alpaca, columns: { promt: question }"));
}

#[test]
fn missing_chat_template() {
    assert_snapshot!(message("template: alpaca", "template: chat, chat_template_path: chat.jinja"));
}

#[test]
fn steps_that_do_not_fill_windows() {
    assert_snapshot!(message("timed_steps: 8", "timed_steps: 7"));
}

#[test]
fn a_setting_that_two_axes_decide() {
    assert_snapshot!(message("on: { packing: bfd", "on: { learning_rate: 1.0, packing: bfd"));
}

#[test]
fn an_unknown_version_of_the_format() {
    assert_snapshot!(message("chronibench.scenario/1", "chronibench.scenario/2"));
}

#[test]
fn every_arm_runs_every_cell() {
    let text = format!("{HEAD}arms: {{ b: {{ runner: mock }}, a: {{ runner: mock }} }}\n");
    assert_eq!(
        ids(&text),
        [
            "b/full/on",
            "b/full/off",
            "b/lora/on",
            "b/lora/off",
            "a/full/on",
            "a/full/off",
            "a/lora/on",
            "a/lora/off"
        ]
    );
}

#[test]
fn picks_are_partial_matches() {
    let arms = "arms: { a: { runner: mock }, b: { runner: mock } }\n";
    let text = format!(
        "{HEAD}{arms}only: [{{ arm: a }}, {{ method: lora, packing: off }}]\nexclude: [{{ arm: a, packing: off }}]\n"
    );
    assert_eq!(ids(&text), ["a/full/on", "a/lora/on", "b/lora/off"]);
}

#[test]
fn cells_carry_their_settings() {
    let cases = resolved(&format!("{HEAD}{}", HONEST.replace("method: full", "method: lora")))
        .unwrap()
        .resolved
        .cases;
    let case = &cases[0];
    assert_eq!(case.id, "steady/lora/on");
    assert_eq!((case.batch.packing, case.batch.per_device_train_batch_size), (Packing::Bfd, 2));
    assert_eq!(case.train.learning_rate, 1e-3);
    let Method::Lora(lora) = &case.method else { panic!("{:?}", case.method) };
    assert_eq!((lora.r, lora.target_modules.len(), lora.loraplus_lr_ratio), (2, 7, 1.0));
}

#[test]
fn trials_are_interleaved() {
    let arms = "arms: { a: { runner: mock }, b: { runner: mock } }\nonly: [{ method: full, packing: on }]\n";
    let order = resolved(&format!("{HEAD}{arms}").replace("trials: 2", "trials: 3")).unwrap().resolved.order;
    assert_eq!(order.join(" "), "a/full/on b/full/on b/full/on a/full/on a/full/on b/full/on");
}

#[test]
fn ablations_turn_off_one_seam_each() {
    let text = format!(
        "{HEAD}arms: {{ ours: {{ runner: native }} }}\nonly: [{{ packing: on }}]\n\
         ablations:\n  - {{ arm: ours, case: {{ method: full, packing: on }} }}\n\
         \x20 - {{ arm: ours, case: {{ method: lora, packing: on }}, off: [lora, all] }}\n"
    );
    let cases = resolved(&text).unwrap().resolved.cases;
    let ids: Vec<&str> = cases.iter().map(|c| c.id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "ours/full/on",
            "ours/lora/on",
            "ours~norm/full/on",
            "ours~qk_rope/full/on",
            "ours~attention/full/on",
            "ours~mlp/full/on",
            "ours~loss/full/on",
            "ours~optimizer/full/on",
            "ours~all/full/on",
            "ours~lora/lora/on",
            "ours~all/lora/on"
        ]
    );
    let eager = |i: usize| cases[i].kernels.values().filter(|v| *v == "eager").count();
    assert_eq!((eager(0), eager(2), eager(8)), (0, 1, 7));
    assert_eq!(cases[2].kernels["norm"], "eager");
    let ablation = cases[2].ablation.as_ref().unwrap();
    assert_eq!((ablation.of.as_str(), ablation.off.as_str()), ("ours/full/on", "norm"));
}

#[test]
fn the_lora_seam_cannot_be_ablated_in_full_fine_tuning() {
    let native = "steady: { runner: native }";
    let text = format!(
        "{HEAD}{HONEST}ablations: [{{ arm: steady, case: {{ method: full, packing: on }}, off: [lora] }}]\n"
    );
    assert_snapshot!(
        resolved(&text.replace("steady: { runner: mock, mock: { step_ms: 20 } }", native)).unwrap_err()
    );
}

#[test]
fn ablations_that_make_one_case_twice() {
    let ours =
        |off: &str| format!("  - {{ arm: ours, case: {{ method: full, packing: on }}, off: {off} }}\n");
    let error = |ablations: &str| {
        let arms = "arms: { ours: { runner: native } }\nonly: [{ packing: on }]\n";
        resolved(&format!("{HEAD}{arms}ablations:\n{ablations}")).unwrap_err()
    };
    for ablations in [ours("[loss, norm]") + &ours("[mlp, norm]"), ours("[norm, norm]")] {
        let e = error(&ablations);
        assert!(e.contains("'ours~norm/full/on' twice") && e.contains("mend:"), "{e}");
        // Both places.
        assert_eq!(e.matches("scenario.yaml:").count(), 2, "{e}");
    }
}

#[test]
fn a_gpu_has_seams_of_its_own() {
    let native =
        "steady: { runner: native, kernels: { attention: mma, graph: eager }, precision: { states: 8bit } }";
    let text = HEAD.to_string() + HONEST;
    let text = text.replace("steady: { runner: mock, mock: { step_ms: 20 } }", native);
    let on_gpu = resolved(&format!("{text}device: cuda\n")).unwrap();
    let case = &on_gpu.resolved.cases[0];
    assert_eq!((case.device.as_str(), case.kernels["attention"].as_str()), ("cuda", "mma"));
    assert_eq!(case.kernels["graph"], "eager");
    assert_eq!(serde_json::to_value(case.precision).unwrap(), serde_json::json!({"states": "8bit"}));
    let on_cpu = resolved(&text).unwrap_err();
    assert!(on_cpu.contains("unknown kernel variant 'mma'"), "{on_cpu}");
    let ablated = format!(
        "{text}device: cuda\nablations: [{{ arm: steady, case: {{ method: full, packing: on }}, off: [norm, all] }}]\n"
    );
    let cases = resolved(&ablated).unwrap().resolved.cases;
    let of = |id: &str| &cases.iter().find(|c| c.id == id).unwrap().kernels;
    assert_eq!(
        (&*of("steady~norm/full/on")["norm"], &*of("steady~norm/full/on")["attention"]),
        ("eager", "mma")
    );
    assert!(of("steady~all/full/on").values().all(|variant| variant == "eager"));
    let unknown = resolved(&format!("{text}device: gpu\n")).unwrap_err();
    assert!(unknown.contains("unknown device 'gpu'"), "{unknown}");
}

#[test]
fn the_native_arm_alone_has_levels_of_recomputation() {
    let text = HEAD.to_string() + HONEST;
    let arm = |arm: &str| text.replace("steady: { runner: mock, mock: { step_ms: 20 } }", arm);
    let native = arm("steady: { runner: native, recompute: ffn, memory_limit_gb: 40 }");
    let case = resolved(&native).unwrap().resolved.cases.swap_remove(0);
    let recorded = serde_json::to_value(&case).unwrap();
    assert_eq!((&recorded["recompute"], &recorded["memory_limit_gb"]), (&"ffn".into(), &40.0.into()));
    for setting in ["recompute: block", "offload: true", "memory_limit_gb: 40"] {
        let e = resolved(&arm(&format!("steady: {{ runner: candle, {setting} }}"))).unwrap_err();
        assert!(e.contains("runner 'candle' has no") && e.contains("use `runner: native`"), "{e}");
    }
    let e = resolved(&arm("steady: { runner: native, recompute: blok }")).unwrap_err();
    assert!(e.contains("block"), "{e}");
}

#[test]
fn a_change_on_the_command_line_may_name_what_the_file_leaves_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("scenario.yaml");
    std::fs::write(&path, format!("{HEAD}{HONEST}")).unwrap();
    let with = |change: &str| Scenario::load(&path, &[change.to_string()]).map_err(|e| e.to_string());
    assert_eq!(with("audit.steps=0").unwrap().raw.audit.unwrap().steps, 0);
    assert!(with("trials.first=1").unwrap_err().contains("'trials' has nothing below it"));
    assert!(with("audits.steps=0").unwrap_err().contains("unknown field 'audits'"));
}
