//! Kernels one by one: verdicts, ratios, claims, floors and the report.

use chronibench_analysis::kernels::{
    CSV_COLUMNS, KernelLog, KernelSummary, Outcome, report_md, results_csv, summarise,
};
use chronibench_protocol::{
    Event,
    event::{Done, Failure},
    kernels::{
        Ceiling, KernelCheck, KernelCompared, KernelHeader, KernelRow, KernelSpec, ResolvedKernels, SCHEMA,
        Side,
    },
    record::{Exit, Line, Skipped, Verdict},
};

fn resolved() -> ResolvedKernels {
    ResolvedKernels {
        schema: SCHEMA.into(),
        name: "kernels".into(),
        title: "Kernels".into(),
        op: None,
        variant: None,
        repetitions: 4,
        references: "auto".into(),
        order: vec!["000-native".into(), "001-references".into()],
        skipped: Vec::new(),
    }
}

fn compared(error: Option<f64>) -> KernelCompared {
    KernelCompared {
        what: "y".into(),
        values: 9,
        error,
        tolerance: 0.01,
        index: 3,
        got: Some(1.0),
        want: Some(1.0),
    }
}

/// Times around `us` microseconds.
fn row(op: &str, case: &str, variant: &str, us: f64) -> KernelRow {
    let times = |of: f64| [0.99, 1.0, 1.0, 1.01].map(|x| x * of * 1e-6).to_vec();
    KernelRow {
        op: op.into(),
        case: case.into(),
        variant: variant.into(),
        bytes: 40_000_000,
        cold_s: times(us),
        warm_s: times(us),
        copy_s: times(9.0),
        check: KernelCheck { compared: vec![compared(Some(0.002))], failure: None },
        ..KernelRow::default()
    }
}

fn log(side: Side, position: u32, events: Vec<Event>) -> KernelLog {
    let id = format!("{position:03}-{side:?}").to_lowercase();
    let spec = KernelSpec {
        protocol: "chronibench.protocol/1".into(),
        trial_id: id,
        cases: Vec::new(),
        variant: None,
        repetitions: 4,
        device: "cuda:0".into(),
        flush_bytes: 1,
    };
    let header = KernelHeader { schema: SCHEMA.into(), side, position, started_at: "now".into(), spec };
    let exit = Exit { code: Some(0), wall_ns: 1, ..Exit::default() };
    let done = Done::default();
    let mut lines = vec![Line::Kernels(Box::new(header))];
    lines
        .extend(events.into_iter().chain([Event::Done(done)]).map(|event| Line::Event { recv_ns: 1, event }));
    lines.push(Line::Exit(exit));
    KernelLog::from_lines(lines)
}

fn kernels(rows: Vec<KernelRow>) -> Vec<Event> {
    rows.into_iter().map(|r| Event::Kernel(Box::new(r))).collect()
}

fn summary(native: Vec<KernelRow>, references: Vec<KernelRow>) -> KernelSummary {
    let logs = [log(Side::Native, 0, kernels(native)), log(Side::References, 1, kernels(references))];
    summarise(&resolved(), &logs)
}

#[test]
fn the_time_of_what_fails_its_check_is_no_result() {
    let failed = KernelRow {
        check: KernelCheck { compared: vec![compared(None)], failure: Some("y[3] is NaN".into()) },
        ..row("rmsnorm_forward", "1x8", "fused", 10.0)
    };
    let s = summary(vec![failed], vec![row("rmsnorm_forward", "1x8", "liger", 20.0)]);
    assert_eq!(s.verdict, Verdict::Invalid);
    let r = &s.rows[0];
    assert_eq!((r.verdict, r.cold, r.of_copy), (Verdict::Invalid, None, None));
    assert_eq!(r.reason.as_deref(), Some("y[3] is NaN"));
    assert!(s.speedups.is_empty(), "nothing is compared with it");
    let report = report_md(&resolved(), &s, &serde_json::json!({}));
    assert!(report.contains("## What does not count"), "{report}");
    assert!(report.contains("**INVALID** `rmsnorm_forward` at 1x8 by `fused`: y\\[3\\] is NaN"), "{report}");
    assert!(!report.contains("| 10.0"), "{report}");
}

#[test]
fn a_row_without_a_comparison_or_with_an_error_does_not_count() {
    let unchecked = KernelRow { check: KernelCheck::default(), ..row("a", "1", "fused", 10.0) };
    let failure = Failure { what: "out of memory".into(), at: "here".into(), hint: "take less".into() };
    let broken = KernelRow { error: Some(failure), cold_s: Vec::new(), ..row("b", "1", "fused", 10.0) };
    let s = summary(vec![unchecked, broken], Vec::new());
    let verdicts: Vec<Verdict> = s.rows.iter().map(|r| r.verdict).collect();
    assert_eq!(verdicts, [Verdict::Invalid, Verdict::Error]);
    assert_eq!(s.verdict, Verdict::Invalid);
    assert!(s.rows[1].reason.as_ref().unwrap().contains("out of memory"));
}

#[test]
fn a_failing_reference_leaves_ours_valid() {
    let failure = Failure { what: "no kernel".into(), at: "there".into(), hint: "see".into() };
    let broken = KernelRow { error: Some(failure), cold_s: Vec::new(), ..row("a", "1", "liger", 1.0) };
    let s = summary(vec![row("a", "1", "fused", 10.0)], vec![broken]);
    assert_eq!(s.verdict, Verdict::Valid);
    assert!(report_md(&resolved(), &s, &serde_json::json!({})).contains("no kernel (there); see"));
}

#[test]
fn ours_is_the_fastest_that_is_not_the_unfused_one() {
    let native = vec![
        row("attention_forward", "14/2x64 8x2048", "mma", 200.0),
        row("attention_forward", "14/2x64 8x2048", "hopper", 100.0),
        row("attention_forward", "14/2x64 8x2048", "eager", 50.0),
    ];
    let s = summary(native, vec![row("attention_forward", "14/2x64 8x2048", "sdpa_cudnn", 90.0)]);
    let of = |name: &str| s.speedups.iter().find(|x| x.against == name).unwrap();
    assert_eq!((of("sdpa_cudnn").ours.as_str(), of("eager").ours.as_str()), ("hopper", "hopper"));
    let ratio = of("sdpa_cudnn").ratio;
    assert!((ratio.median - 0.9).abs() < 1e-9);
    let (low, high) = ratio.interval.unwrap();
    assert!(low < 0.9 && high > 0.9 && high < 0.93, "{low} {high}");
    let report = report_md(&resolved(), &s, &serde_json::json!({}));
    assert!(report.contains("`sdpa_cudnn` is 1.11× as fast as `hopper`"), "{report}");
}

#[test]
fn claims_are_held_against_every_baseline_by_name() {
    let s = summary(
        vec![row("rmsnorm_forward", "16x8", "fused", 10.0), row("swiglu_forward", "16x8", "fused", 10.0)],
        vec![
            row("rmsnorm_forward", "16x8", "hf_eager", 80.0),
            row("rmsnorm_forward", "16x8", "liger", 10.5),
            row("swiglu_forward", "16x8", "hf_eager", 17.0),
        ],
    );
    let of = |id: &str, op: &str, against: &str| {
        let found = s.claims.iter().find(|c| c.id == id && c.op == op && c.against == against);
        found.unwrap_or_else(|| panic!("{id} {op} {against}: {:?}", s.claims))
    };
    assert_eq!(of("K1", "rmsnorm_forward", "hf_eager").outcome, Outcome::Reproduced);
    assert_eq!(of("K1", "rmsnorm_forward", "liger").outcome, Outcome::NotReproduced);
    assert_eq!(of("K2", "swiglu_forward", "hf_eager").outcome, Outcome::NotReproduced);
    assert!(of("K2", "swiglu_forward", "hf_eager").cap.as_ref().unwrap().contains("1.67×"));
    assert_eq!(of("K3", "qk_rope_forward", "").outcome, Outcome::NotMeasured);
    // 1 − 1/8 of the traffic, and 1 − 1/1.7.
    assert_eq!(of("K4", "rmsnorm_forward", "hf_eager").outcome, Outcome::Reproduced);
    assert_eq!(of("K4", "swiglu_forward", "hf_eager").outcome, Outcome::NotReproduced);
    assert_eq!(of("C1 C2", "linear_ce", "").outcome, Outcome::NotMeasured);
}

#[test]
fn traffic_is_counted_where_both_variants_count_it() {
    let of = |op: &str, case: &str, variant: &str, moved_bytes| KernelRow {
        moved_bytes,
        ..row(op, case, variant, 10.0)
    };
    let rows = vec![
        of("rmsnorm_forward", "16x8", "fused", Some(25)),
        of("rmsnorm_forward", "16x8", "eager", Some(100)),
        of("swiglu_forward", "16x8", "fused", Some(30)),
        of("swiglu_forward", "16x8", "eager", Some(50)),
        // Our chunks are no part of the unfused variant's shape.
        of("linear_ce", "4x8x16 by 2", "fused", Some(20)),
        of("linear_ce", "4x8x16", "eager", Some(100)),
        of("lora_forward", "16x8", "fused", None),
        of("lora_forward", "16x8", "eager", Some(100)),
    ];
    let s = summary(rows, Vec::new());
    let removed: Vec<(&str, f64)> = s.traffic.iter().map(|t| (t.op.as_str(), t.removed())).collect();
    assert_eq!(removed, [("rmsnorm_forward", 0.75), ("swiglu_forward", 0.4), ("linear_ce", 0.8)]);
    let of = |op: &str| s.claims.iter().filter(|c| c.id == "K4" && c.op == op).collect::<Vec<_>>();
    let outcomes = ["rmsnorm_forward", "swiglu_forward", "linear_ce"].map(|op| {
        assert_eq!((of(op).len(), of(op)[0].against.as_str()), (1, "eager"), "{op}");
        of(op)[0].outcome
    });
    assert_eq!(outcomes, [Outcome::Reproduced, Outcome::NotReproduced, Outcome::Reproduced]);
    assert_eq!(of("qk_rope_forward")[0].outcome, Outcome::NotMeasured);
    assert!(of("lora_forward").is_empty());
    let report = report_md(&resolved(), &s, &serde_json::json!({}));
    assert!(report.contains("## Memory traffic") && report.contains("| 75.0 % |"), "{report}");
    let csv = results_csv(&s);
    assert!(csv.lines().next().unwrap().ends_with(",moved_bytes"), "{csv}");
    assert!(csv.lines().nth(1).unwrap().ends_with(",25"), "{csv}");
}

#[test]
fn a_ratio_whose_interval_only_straddles_a_claim_does_not_reproduce_it() {
    let s = summary(
        vec![row("rmsnorm_forward", "16x8", "fused", 10.0)],
        vec![row("rmsnorm_forward", "16x8", "hf_eager", 70.0)],
    );
    let claim = s.claims.iter().find(|c| c.id == "K1" && c.against == "hf_eager").unwrap();
    assert_eq!((claim.measured.unwrap().median, claim.outcome), (7.0, Outcome::NotReproduced));
}

#[test]
fn memory_is_compared_with_the_least_of_ours_whatever_the_chunk() {
    let of = |case: &str, variant: &str, us: f64, bytes| KernelRow {
        memory_bytes: Some(bytes),
        flops: 1,
        ..row("linear_ce", case, variant, us)
    };
    let s = summary(
        vec![of("4x8x16 by 2", "fused", 10.0, 100), of("4x8x16 by 4", "fused", 9.0, 150)],
        vec![of("4x8x16", "hf_eager", 20.0, 3700), of("4x8x16", "liger", 30.0, 150)],
    );
    let of = |against: &str| s.claims.iter().find(|c| c.id == "C1 C2" && c.against == against).unwrap();
    assert_eq!(
        (of("hf_eager").measured.unwrap().median, of("hf_eager").outcome),
        (37.0, Outcome::Reproduced)
    );
    assert_eq!((of("liger").measured.unwrap().median, of("liger").outcome), (1.5, Outcome::NotReproduced));
    // Times are compared with the fastest.
    let speedup = s.speedups.iter().find(|x| x.against == "hf_eager").unwrap();
    assert!((speedup.ratio.median - 20.0 / 9.0).abs() < 1e-9);
}

#[test]
fn floors_say_met_and_missed() {
    let with_flops = |op: &str, case: &str, variant: &str, us: f64, flops| KernelRow {
        flops,
        ..row(op, case, variant, us)
    };
    let attention = "14/2x64 8x2048";
    let s = summary(
        vec![
            row("rmsnorm_forward", "1", "fused", 10.0),
            row("rmsnorm_forward", "2", "fused", 20.0),
            with_flops("linear_ce_products", "a", "fused", 100.0, 1),
            with_flops("linear_ce", "a by 2", "fused", 119.0, 1),
            with_flops("linear_ce", "a by 4", "fused", 121.0, 1),
            with_flops("attention_forward", attention, "mma", 100.0, 20_000_000_000),
            with_flops("attention_forward", attention, "hopper", 100.0, 20_000_000_000),
            with_flops("attention_backward", "other", "hopper", 100.0, 1),
        ],
        Vec::new(),
    );
    let met: Vec<(String, Option<bool>)> =
        s.floors.iter().map(|f| (format!("{} {} {}", f.op, f.case, f.variant), f.met)).collect();
    let want = [
        ("rmsnorm_forward 1 fused", Some(true)),
        ("rmsnorm_forward 2 fused", Some(false)),
        ("linear_ce a by 2 fused", Some(true)),
        ("linear_ce a by 4 fused", Some(false)),
        ("attention_forward 14/2x64 8x2048 mma", Some(true)),
        ("attention_forward 14/2x64 8x2048 hopper", Some(false)),
    ];
    assert_eq!(met, want.map(|(name, met)| (name.to_string(), met)));
}

#[test]
fn limits_come_from_the_copy_in_turn_or_from_the_large_one() {
    let ceiling = |name: &str, bytes, flops| {
        Event::Ceiling(Ceiling {
            name: name.into(),
            at: "before".into(),
            bytes,
            flops,
            seconds: vec![1e-3; 3],
        })
    };
    let mut native = vec![ceiling("copy", 4_000_000_000, 0), ceiling("matmul", 0, 700_000_000_000)];
    native.extend(kernels(vec![
        row("a", "1", "fused", 10.0),
        KernelRow { flops: 3_500_000_000, ..row("b", "1", "fused", 10.0) },
    ]));
    let alone = |op: &str, us| KernelRow { copy_s: Vec::new(), ..row(op, "1", "liger", us) };
    let other = KernelRow { note: Some("its <note>".into()), ..alone("a", 20.0) };
    let logs =
        [log(Side::Native, 0, native), log(Side::References, 1, kernels(vec![other, alone("c", 20.0)]))];
    let s = summarise(&resolved(), &logs);
    // 40 MB take 9 µs by the copy in turn, 10 µs by the large one at 4 TB/s.
    assert!((s.rows[0].of_copy.unwrap().median - 0.9).abs() < 1e-9);
    assert!((s.rows[2].of_copy.unwrap().median - 0.45).abs() < 1e-9);
    assert!((s.rows[3].of_copy.unwrap().median - 0.5).abs() < 1e-9);
    assert!(report_md(&resolved(), &s, &serde_json::json!({})).contains("- `liger`: its &lt;note&gt;\n"));
    assert!((s.rows[1].of_matmul.unwrap() - 0.5).abs() < 1e-9);
}

#[test]
fn what_ran_again_shows_the_drift() {
    let logs = [
        log(Side::Native, 0, kernels(vec![row("a", "1", "fused", 10.0)])),
        log(Side::Native, 2, kernels(vec![row("a", "1", "fused", 11.0)])),
    ];
    let s = summarise(&resolved(), &logs);
    assert_eq!(s.rows.len(), 1);
    assert!((s.drift[0].ratio.median - 1.1).abs() < 1e-9);
}

#[test]
fn a_trial_that_did_not_end_well_is_said() {
    let mut crashed = log(Side::Native, 0, kernels(vec![row("a", "1", "fused", 10.0)]));
    crashed.exit = None;
    let s = summarise(&resolved(), &[crashed]);
    assert_eq!((s.verdict, s.trials[0].verdict), (Verdict::Error, Verdict::Error));
    assert!(report_md(&resolved(), &s, &serde_json::json!({})).contains("partial run"));
}

#[test]
fn a_table_has_a_row_for_each_and_skipped_packages_are_named() {
    let skipped = Event::Skipped(Skipped {
        what: "references of liger_kernel".into(),
        why: "it is not installed".into(),
        hint: "pip install liger-kernel".into(),
    });
    let logs = [
        log(Side::Native, 0, kernels(vec![row("a", "1", "fused", 10.0)])),
        log(Side::References, 1, vec![skipped]),
    ];
    let s = summarise(&resolved(), &logs);
    let csv = results_csv(&s);
    assert_eq!(csv.lines().count(), 2);
    assert_eq!(csv.lines().next().unwrap().split(',').count(), CSV_COLUMNS.len());
    let report = report_md(&resolved(), &s, &serde_json::json!({}));
    assert!(report.contains("to have it: pip install liger-kernel"), "{report}");
}
