//! Figures, comparisons and tables of a synthetic run.

use chronibench_analysis::{
    RunSummary, TrialLog, TrialMetrics,
    metrics::{metrics, model_flops_per_token},
    summarise,
    summary::{CSV_COLUMNS, Outcome, results_csv, summary_table},
};
use chronibench_protocol::{
    event::TokenCounts,
    record::{Case, ModelShape, Packing, Resolved, Verdict},
    spec::Method,
};

use crate::testing::{ablated, case, comparison, lora, resolved, trial};

fn near(value: Option<f64>, expected: f64) {
    let value = value.expect("a figure");
    assert!((value - expected).abs() <= 1e-9 * expected.abs(), "{value} is not {expected}");
}

#[test]
fn figures_of_one_trial() {
    let m = metrics(&trial(&case("chronicals", Method::Full {}, Packing::Bfd), 1, 25));
    // 24 timed steps of 25 ms with 1000 slots, 950 real and 700 loss tokens each.
    assert_eq!(m.timed_tokens, TokenCounts { slots: 24_000, real: 22_800, loss: 16_800 });
    near(Some(m.timed_s), 0.6);
    near(m.real_tokens_per_s, 38_000.0);
    near(m.slots_per_s, 40_000.0);
    near(m.loss_tokens_per_s, 28_000.0);
    near(m.step_ms, 25.0);
    near(m.packing_efficiency, 0.95);
    near(m.gemm_share, 0.6);
    near(m.gemm_gflops, 1.0 / 0.36);
    near(m.model_flops_per_token, 6.0 * 48.0);
    near(m.model_gflops, 38_000.0 * 288.0 * 1e-9);
    assert_eq!(m.window_rates.len(), 6);
    m.window_rates.iter().for_each(|r| near(Some(*r), 38_000.0));
    assert_eq!((m.peak_rss_sampled, m.peak_rss_reported), (Some(93 << 20), Some(91 << 20)));
    assert_eq!(m.peak_rss(), Some(93 << 20));
    assert_eq!(m.planned_total(), Some(70 << 20));
    near(m.cpu_percent, 180.0);
}

/// Throughput is total over total: one slow window counts by its time.
#[test]
fn throughput_is_no_mean_of_rates() {
    let mut log = trial(&case("candle", Method::Full {}, Packing::None), 0, 10);
    log.windows[5].event.end_ns += 240_000_000;
    near(metrics(&log).real_tokens_per_s, 24.0 * 430.0 / 0.48);
}

/// The arm's own counts never enter a figure.
#[test]
fn reported_counts_do_not_count() {
    let mut log = trial(&case("candle", Method::Full {}, Packing::None), 0, 10);
    let honest = metrics(&log).real_tokens_per_s;
    log.steps.iter_mut().for_each(|s| s.event.tokens.real *= 2);
    assert_eq!(metrics(&log).real_tokens_per_s, honest);
}

#[test]
fn samples_outside_the_timed_steps_do_not_dilute() {
    let mut log = trial(&case("candle", Method::Full {}, Packing::None), 0, 10);
    let mut idle = log.samples[0].clone();
    (idle.t_ns, idle.cpu_percent, idle.rss_bytes) = (0, 0.0, 1 << 40);
    log.samples.insert(0, idle.clone());
    // What comes after the last window (saving, replaying) is not training.
    (idle.t_ns, idle.rss_bytes) = (u64::MAX, 1 << 50);
    log.samples.push(idle);
    let m = metrics(&log);
    near(m.cpu_percent, 180.0);
    assert_eq!(m.peak_rss_sampled, Some(1 << 40));
}

#[test]
fn flops_by_method() {
    // Qwen2.5-0.5B, in MFLOP: full 6·494M ≈ 2964; LoRA r=32 4·494M + 6·17.6M ≈ 2081.
    let model = ModelShape {
        layers: 24,
        attention_width: 896,
        block_matmul_params: 357_826_560,
        head_params: 136_134_656,
        total_params: 494_032_768,
    };
    assert_eq!(model_flops_per_token(&model, &Method::Full {}, 494_032_768) / 1e6, 2963.767296);
    assert_eq!(model_flops_per_token(&model, &lora(), 17_596_416) / 1e6, 2081.42336);
}

#[test]
fn empty_log_has_no_figures() {
    let m = metrics(&TrialLog::default());
    assert_eq!(m, TrialMetrics::default());
}

fn run(cases: &[Case], step_ms: &[u64]) -> Vec<TrialLog> {
    (0..3)
        .flat_map(|round| {
            cases.iter().zip(step_ms).map(move |(c, ms)| trial(c, round, ms + u64::from(round)))
        })
        .collect()
}

fn pair() -> (Case, Case) {
    (case("chronicals", Method::Full {}, Packing::None), case("candle", Method::Full {}, Packing::None))
}

fn compared(change: impl FnOnce(&mut Resolved, &mut Vec<TrialLog>)) -> RunSummary {
    let (ours, theirs) = pair();
    let mut logs = run(&[ours.clone(), theirs.clone()], &[20, 40]);
    let mut r = resolved(vec![ours.clone(), theirs.clone()], 3);
    r.comparisons = vec![comparison(&ours, &theirs, Some(1.5), &[])];
    change(&mut r, &mut logs);
    summarise(&r, &logs)
}

#[test]
fn a_valid_comparison() {
    let s = compared(|_, _| {});
    assert_eq!(s.verdict, Some(Verdict::Valid));
    assert_eq!((s.trials_planned, s.trials_stored, s.trials_valid), (6, 6, 6));
    let c = &s.comparisons[0];
    // Rounds: 40/20, 41/21, 42/22.
    near(c.result.speed.map(|e| e.median), 41.0 / 21.0);
    near(c.result.speed.and_then(|e| e.interval).map(|i| i.1), 2.0);
    // Three pairs are too few to say that a target is reached.
    assert_eq!(c.outcome, Some(Outcome::Unclear));
    assert!(c.result.memory.unwrap().median < 0.5);
    assert_eq!(c.result.loss_gap.unwrap().max, 0.0);
    assert_eq!(c.result.differences, []);
}

#[test]
fn targets() {
    for (target, outcome) in [(1.8, Outcome::Reached), (1.95, Outcome::Unclear), (2.5, Outcome::Missed)] {
        let s = compared(|r, logs| {
            r.comparisons[0].target = Some(target);
            let cases = r.cases.clone();
            for round in 3..5u32 {
                logs.push(trial(&cases[0], round, 20 + u64::from(round)));
                logs.push(trial(&cases[1], round, 40 + u64::from(round)));
            }
        });
        assert_eq!(s.comparisons[0].outcome, Some(outcome), "{target}");
    }
}

#[test]
fn other_first_loss_is_not_comparable() {
    let s = compared(|_, logs| {
        for log in logs.iter_mut().filter(|l| l.case().starts_with("candle")) {
            log.steps[0].event.loss *= 1.002;
        }
    });
    let c = &s.comparisons[0].result;
    assert_eq!((c.verdict, s.verdict), (Some(Verdict::NotComparable), Some(Verdict::NotComparable)));
    assert!(c.reasons[0].contains("first losses"), "{:?}", c.reasons);
    assert_eq!(c.speed, None);
}

/// Other batches under equal settings are other work, and their losses say nothing about each other.
#[test]
fn losses_of_other_batches_are_not_compared() {
    let s = compared(|_, logs| {
        for log in logs.iter_mut().filter(|l| l.case().starts_with("candle")) {
            log.steps[0].event.loss *= 1.5;
            log.steps[0].event.digest = "other".into();
        }
    });
    let c = &s.comparisons[0].result;
    assert_eq!((c.loss_gap, c.verdict), (None, Some(Verdict::NotComparable)));
    assert!(c.reasons[0].contains("batches"), "{:?}", c.reasons);
}

#[test]
fn undeclared_difference_is_not_comparable() {
    let s = compared(|_, logs| {
        for log in logs.iter_mut().filter(|l| l.case().starts_with("candle")) {
            log.hello.as_mut().unwrap().event.precision.moments = "bf16".into();
        }
    });
    let c = &s.comparisons[0].result;
    assert_eq!(c.verdict, Some(Verdict::NotComparable));
    assert!(c.reasons[0].contains("precision.moments (\"f32\" against \"bf16\")"), "{:?}", c.reasons);
}

#[test]
fn declared_packing_covers_the_batch_geometry() {
    let ours = case("chronicals", Method::Full {}, Packing::Bfd);
    let mut theirs = case("candle", Method::Full {}, Packing::None);
    theirs.batch.per_device_train_batch_size = 16;
    let logs = run(&[ours.clone(), theirs.clone()], &[20, 40]);
    let mut r = resolved(vec![ours.clone(), theirs.clone()], 3);
    for (declared, verdict) in [(vec!["packing"], Verdict::Valid), (vec![], Verdict::NotComparable)] {
        r.comparisons = vec![comparison(&ours, &theirs, None, &declared)];
        let c = summarise(&r, &logs).comparisons[0].result.clone();
        assert_eq!(c.verdict, Some(verdict));
        let names: Vec<&str> = c.differences.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["batches", "packing", "per_device_train_batch_size"]);
    }
}

#[test]
fn declared_method_covers_the_lora_settings() {
    let (full, other) =
        (case("chronicals", Method::Full {}, Packing::None), case("chronicals", lora(), Packing::None));
    let logs = run(&[full.clone(), other.clone()], &[20, 40]);
    let mut r = resolved(vec![full.clone(), other.clone()], 3);
    r.comparisons = vec![comparison(&full, &other, None, &["method"])];
    let c = summarise(&r, &logs).comparisons[0].result.clone();
    assert_eq!((c.verdict, c.loss_gap), (Some(Verdict::Valid), None), "{:?}", c.reasons);
}

#[test]
fn one_side_reports_more() {
    let s = compared(|_, logs| {
        for log in logs.iter_mut().filter(|l| l.case().starts_with("candle")) {
            log.hello.as_mut().unwrap().event.settings.insert("dropout".into(), 0.into());
        }
    });
    let unobservable = &s.comparisons[0].result.unobservable;
    assert_eq!(unobservable.iter().map(|u| u.name.as_str()).collect::<Vec<_>>(), ["dropout"]);
    assert_eq!(s.comparisons[0].result.verdict, Some(Verdict::Valid));
}

#[test]
fn invalid_trials_are_stored_and_left_out() {
    let s = compared(|_, logs| logs[0].steps[3].event.grad_norm = 0.0);
    let c = &s.cases[0];
    assert_eq!((c.verdict, c.valid, c.trials.len()), (Some(Verdict::Invalid), 2, 3));
    assert_eq!(c.real_tokens_per_s.unwrap().n, 2);
    assert!(c.trials[0].metrics.real_tokens_per_s.is_some());
    assert!(c.trials[0].reasons[0].contains("gradient norm"));
    // The two rounds that are left still compare.
    assert_eq!(s.comparisons[0].result.speed.unwrap().n, 2);
    assert_eq!(s.verdict, Some(Verdict::Invalid));
}

#[test]
fn a_side_without_a_valid_trial() {
    let s = compared(|_, logs| logs.iter_mut().step_by(2).for_each(|l| l.done = None));
    let c = &s.comparisons[0].result;
    assert_eq!((c.verdict, c.speed), (Some(Verdict::Error), None));
    assert!(c.reasons[0].contains("has no valid trial"));
}

#[test]
fn partial_runs() {
    for n in 0..6 {
        let s = compared(|_, logs| logs.truncate(n));
        assert_eq!(s.trials_stored, n);
        assert_eq!(s.comparisons[0].result.verdict.is_some(), n >= 2, "{n}");
        let e = s.cases[0].real_tokens_per_s;
        assert_eq!(e.map_or(0, |e| e.n), n.div_ceil(2));
        assert_eq!(e.and_then(|e| e.interval).is_some(), n >= 3);
    }
}

#[test]
fn strays_are_named() {
    let s = compared(|_, logs| {
        logs.push(trial(&case("gone", lora(), Packing::Ff), 0, 10));
        logs.push(TrialLog::default());
    });
    assert_eq!(s.strays, ["gone-lora-packed-0", "(a log without a header)"]);
    assert_eq!(s.verdict, Some(Verdict::Error));
}

fn ablation_run(change: impl FnOnce(&mut Vec<Case>)) -> RunSummary {
    let base = case("chronicals", Method::Full {}, Packing::Bfd);
    let mut cases = vec![base.clone(), ablated(&base, "norm"), ablated(&base, "loss")];
    change(&mut cases);
    let logs = run(&cases, &[20, 25, 40]);
    summarise(&resolved(cases, 3), &logs)
}

#[test]
fn ablations() {
    let s = ablation_run(|_| {});
    assert_eq!(s.verdict, Some(Verdict::Valid));
    let rows: Vec<(&str, f64)> =
        s.ablations.iter().map(|a| (a.off.as_str(), a.result.speed.unwrap().median)).collect();
    assert_eq!(rows[0].0, "norm");
    near(Some(rows[0].1), 21.0 / 26.0);
    near(Some(rows[1].1), 21.0 / 41.0);
}

#[test]
fn an_ablation_that_turns_off_another_seam() {
    let s = ablation_run(|cases| _ = cases[1].kernels.insert("attention".into(), "eager".into()));
    let a = &s.ablations[0].result;
    assert_eq!(a.verdict, Some(Verdict::NotComparable));
    assert!(a.reasons[0].contains("kernels.attention"), "{:?}", a.reasons);
}

#[test]
fn an_ablation_that_turns_off_nothing() {
    let s = ablation_run(|cases| _ = cases[1].kernels.insert("norm".into(), "fused".into()));
    let a = &s.ablations[0].result;
    assert_eq!((a.verdict, a.speed), (Some(Verdict::NotComparable), None));
    assert!(a.reasons[0].contains("same kernel plan"), "{:?}", a.reasons);
}

#[test]
fn csv_has_a_row_a_trial() {
    let s = compared(|_, logs| logs[0].garbage.push("a \"quoted\", line".into()));
    let text = results_csv(&s);
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    assert_eq!(reader.headers().unwrap(), CSV_COLUMNS.to_vec());
    let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().unwrap();
    assert_eq!(rows.len(), 6);
    let column = |name: &str| CSV_COLUMNS.iter().position(|c| *c == name).unwrap();
    assert_eq!(&rows[0][column("verdict")], "INVALID");
    assert!(rows[0][column("reasons")].contains("a \"quoted\", line"));
    // Case after case, then round after round: the second row is round 1 of the first case, 430 real tokens in 21 ms.
    near(rows[1][column("real_tokens_per_s")].parse().ok(), 430.0 / 0.021);
}

#[test]
fn table_for_a_terminal() {
    let rows = summary_table(&compared(|_, _| {}));
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|r| r.len() == rows[0].len()));
    assert_eq!(rows[1][0], "chronicals/full/padded");
    assert_eq!(rows[1][1], "3/3");
    assert_eq!(rows[1][2], "20,476 [19,545, 21,500]");
    assert_eq!(rows[1].last().unwrap(), "VALID");
}

/// `results.json` reads back as what was written.
#[test]
fn json_round_trip() {
    let s = compared(|_, logs| logs.truncate(3));
    let text = serde_json::to_string(&s).unwrap();
    assert_eq!(serde_json::from_str::<RunSummary>(&text).unwrap(), s);
}

#[test]
fn gradient_norms_agree_too_and_bf16_has_more_room() {
    let off = |by: f64, weights: &str| {
        compared(|_, logs| {
            for log in logs.iter_mut().filter(|l| l.case().starts_with("candle")) {
                log.steps[0].event.grad_norm *= 1.0 + by;
                log.hello.as_mut().unwrap().event.precision.weights = weights.into();
            }
        })
    };
    let s = off(1e-2, "f32");
    let c = &s.comparisons[0].result;
    assert_eq!(c.verdict, Some(Verdict::NotComparable));
    assert!(c.reasons[0].contains("first gradient norms to agree within 0.001"), "{:?}", c.reasons);
    near(c.loss_gap.map(|g| g.grad_norm), 1.0 - 1.0 / 1.01);
    // The number format itself is a difference; the gradient norm is within the wider tolerance.
    let c = &off(1e-2, "bf16").comparisons[0].result;
    assert!(c.reasons.len() == 1 && c.reasons[0].contains("precision.weights"), "{:?}", c.reasons);
    let c = &off(0.2, "bf16").comparisons[0].result;
    assert!(c.reasons[1].contains("within 0.05"), "{:?}", c.reasons);
}

#[test]
fn every_setting_is_accounted_for() {
    let s = compared(|_, logs| {
        for (i, log) in logs.iter_mut().enumerate() {
            let settings = &mut log.hello.as_mut().unwrap().event.settings;
            let theirs = i % 2 == 1;
            settings.insert("optimizer".into(), "adamw".into());
            if theirs {
                settings.insert("optim".into(), "adamw_8bit".into());
                settings.insert("gradient_checkpointing".into(), false.into());
            } else {
                settings.insert("recompute".into(), "none".into());
            }
        }
    });
    let c = &s.comparisons[0].result;
    assert_eq!(c.differences.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["optimizer"]);
    assert_eq!((&c.differences[0].against, c.differences[0].declared), (&"adamw_8bit".into(), false));
    assert!(
        ["recompute", "batches", "learning_rate", "precision.moments"]
            .iter()
            .all(|n| c.identical.contains(&n.to_string()))
    );
    // What an arm tells, what the harness checked, and what was only asked of the two.
    for (name, all) in [
        ("recompute", c.told().collect::<Vec<_>>()),
        ("precision.moments", c.told().collect()),
        ("batches", c.checked.iter().collect()),
        ("weight_decay", c.asked.iter().collect()),
    ] {
        assert!(all.iter().any(|n| *n == name), "{name}: {all:?}");
    }
    assert_eq!(c.told().count() + c.checked.len() + c.asked.len(), c.identical.len());
    assert!(
        c.unreported.contains(&"attention".to_string()) && !c.unreported.contains(&"recompute".to_string())
    );
    assert_eq!(c.verdict, Some(Verdict::NotComparable));
}
