//! Every reason is found where its fault is planted, and an honest log has none.

use chronibench_analysis::{
    Reason, TrialLog,
    judge::{judge, rounded_away},
    stats::LOSS_FALL_MIN_STEPS,
};
use chronibench_protocol::{
    event::{Failure, Phase, TensorInfo},
    record::{Packing, Presence, RivalRecord, TensorChange, Verdict},
    spec::{Method, States},
};

use crate::testing::{MEASURE, case, lines, lora, trial};

fn honest() -> TrialLog {
    trial(&case("chronicals", Method::Full {}, Packing::Bfd), 0, 30)
}

/// Plants a fault; the judgement must be `verdict` for exactly one reason, whose text is returned.
fn planted(log: TrialLog, verdict: Verdict, plant: impl FnOnce(&mut TrialLog)) -> (Reason, String) {
    let mut log = log;
    plant(&mut log);
    let judgement = judge(&log);
    let texts: Vec<String> = judgement.reasons.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 1, "{texts:#?}");
    assert_eq!(judgement.verdict, verdict, "{texts:?}");
    (judgement.reasons[0].clone(), texts[0].clone())
}

/// The launches of `seam`, as if it had run at `variant`.
fn launch_as(log: &mut TrialLog, seam: &str, variant: &str) {
    let launched = &mut log.done.as_mut().unwrap().event.kernels;
    launched.retain(|name, _| !name.starts_with(&format!("{seam}.")));
    launched.insert(format!("{seam}.{variant}.forward"), 27);
}

macro_rules! fault {
    ($name:ident, $verdict:ident, $pattern:pat, $words:expr, $plant:expr) => {
        #[test]
        fn $name() {
            let (reason, text) = planted(honest(), Verdict::$verdict, $plant);
            assert!(matches!(reason, $pattern), "{reason:?}");
            for word in $words {
                assert!(text.contains(word), "'{word}' is not in: {text}");
            }
        }
    };
}

#[test]
fn honest_logs_are_valid() {
    for arm in ["chronicals", "chronicals-eager", "candle"] {
        for method in [Method::Full {}, lora()] {
            for packing in [Packing::None, Packing::Bfd] {
                let judgement = judge(&trial(&case(arm, method.clone(), packing), 1, 25));
                assert_eq!(judgement.verdict, Verdict::Valid, "{arm} {method:?}: {:?}", judgement.reasons);
                assert!(judgement.reasons.is_empty());
            }
        }
    }
}

/// However early a log ends, it is judged an error and nothing panics.
#[test]
fn truncated_logs_are_errors() {
    let all = lines(&case("candle", lora(), Packing::None), 0, 20);
    for end in 0..all.len() {
        let judgement = judge(&TrialLog::from_lines(all[..end].to_vec()));
        assert_eq!(judgement.verdict, Verdict::Error, "cut at {end}");
        assert_eq!(judgement.reasons.len(), 1);
    }
}

// How the process ended.

fault!(no_header, Error, Reason::NoHeader, ["header"], |l| l.header = None);
fault!(no_exit, Error, Reason::NoExit, ["interrupted"], |l| l.exit = None);
fault!(timeout, Timeout, Reason::TimedOut { steps: 5, .. }, ["27 steps", "60 s", "saw 5"], |l| {
    let exit = l.exit.as_mut().unwrap();
    (exit.code, exit.signal, exit.timed_out_after_s) = (None, Some(9), Some(60.0));
    l.steps.truncate(5);
    l.done = None;
});
fault!(arm_error, Error, Reason::ArmError { .. }, ["loss is NaN", "step 4", "lower the rate"], |l| {
    let event = Failure { what: "loss is NaN".into(), at: "step 4".into(), hint: "lower the rate".into() };
    l.error = Some(chronibench_analysis::trial::At { recv_ns: 1, event });
    l.exit.as_mut().unwrap().code = Some(6);
    l.done = None;
});
fault!(crash, Error, Reason::Crashed { .. }, ["signal 11", "after 27 steps", "boom"], |l| {
    let exit = l.exit.as_mut().unwrap();
    (exit.code, exit.signal, exit.stderr_tail) = (None, Some(11), "context\nboom\n\n".into());
});
fault!(bad_exit_code, Error, Reason::Crashed { .. }, ["exit code 3"], |l| {
    l.exit.as_mut().unwrap().code = Some(3);
});
fault!(exit_0_without_done, Error, Reason::NoDone { .. }, ["done", "window 5"], |l| {
    l.done = None;
    l.order.pop();
});
fault!(garbage, Invalid, Reason::Garbage { lines: 2, .. }, ["2 other line(s)", "hello world"], |l| {
    l.garbage = vec!["hello world".into(), "more".into()];
});
fault!(a_nan_in_json_is_explained, Invalid, Reason::Garbage { .. }, ["JSON has no NaN"], |l| {
    l.garbage = vec![r#"{"event":"step","step":3,"loss":null}"#.into()];
});

#[test]
fn garbage_of_a_crash_stays_an_error() {
    let mut log = honest();
    log.garbage.push("Traceback".into());
    log.exit.as_mut().unwrap().code = Some(1);
    let judgement = judge(&log);
    assert_eq!(judgement.verdict, Verdict::Error);
    assert_eq!(judgement.reasons.len(), 2);
}

// Events complete, in order, on a believable clock.

fault!(protocol, Invalid, Reason::Protocol { .. }, ["protocol/1", "protocol/0"], |l| {
    l.hello.as_mut().unwrap().event.protocol = "chronibench.protocol/0".into();
});
fault!(disorder, Invalid, Reason::Order { .. }, ["expected step 6", "saw window 0"], |l| {
    let i = l.order.iter().position(|k| k.to_string() == "window 0").unwrap();
    l.order.swap(i - 1, i);
});
fault!(no_ready, Invalid, Reason::Order { .. }, ["expected ready", "saw step 0"], |l| {
    l.order.remove(1);
    l.ready = None;
});
fault!(done_twice, Invalid, Reason::Order { .. }, ["no more events", "saw done"], |l| {
    l.order.push(*l.order.last().unwrap());
});
fault!(done_lies, Invalid, Reason::StepCount { done: 99, .. }, ["27", "99"], |l| {
    l.done.as_mut().unwrap().event.steps = 99;
});
fault!(step_missing, Invalid, Reason::StepCount { seen: 26, .. }, ["expected 27 steps", "saw 26"], |l| {
    l.steps.pop();
    l.ledger.as_mut().unwrap().pop();
});
fault!(untimed_step_called_timed, Invalid, Reason::StepPhase { step: 2, .. }, ["untimed", "timed"], |l| {
    l.steps[2].event.phase = Phase::Timed;
});
fault!(window_missing, Invalid, Reason::WindowCount { seen: 5, .. }, ["6 windows", "saw 5"], |l| {
    l.windows.pop();
});
fault!(window_leaves_a_step_out, Invalid, Reason::WindowSteps { index: 1, .. }, ["7..=10", "8..=10"], |l| {
    l.windows[1].event.first_step += 1;
});
fault!(window_backwards, Invalid, Reason::WindowTimes { index: 0, .. }, ["end -1 ns"], |l| {
    l.windows[0].event.end_ns = l.windows[0].event.start_ns - 1;
});
fault!(windows_overlap, Invalid, Reason::WindowTimes { index: 2, .. }, ["predecessor"], |l| {
    l.windows[2].event.start_ns -= 40_000_000;
});
fault!(step_before_its_window, Invalid, Reason::WindowTimes { index: 3, .. }, ["step 15"], |l| {
    l.windows[3].event.start_ns += 15_000_000;
});
fault!(
    time_hidden_between_windows,
    Invalid,
    Reason::TimeOutsideWindows { .. },
    ["outside the windows"],
    |l| {
        // Windows and their steps shrink together: each step looks twice as fast, and the rest of the time is nobody's.
        for w in &mut l.windows {
            w.event.end_ns -= (w.event.end_ns - w.event.start_ns) / 2;
            for s in &mut l.steps {
                if (w.event.first_step..=w.event.last_step).contains(&s.event.step) {
                    (s.event.start_ns, s.event.end_ns) = (w.event.start_ns, w.event.end_ns);
                }
            }
        }
    }
);
fault!(slow_clock, Invalid, Reason::Clock { .. }, ["0.072 s against 0.720 s"], |l| {
    for s in &mut l.steps {
        s.event.start_ns /= 10;
        s.event.end_ns /= 10;
    }
    for w in &mut l.windows {
        w.event.start_ns /= 10;
        w.event.end_ns /= 10;
    }
});
fault!(clock_of_a_longer_life, Invalid, Reason::Clock { .. }, ["7.200 s against"], |l| {
    for s in &mut l.steps {
        s.event.start_ns *= 10;
        s.event.end_ns *= 10;
    }
    for w in &mut l.windows {
        w.event.start_ns *= 10;
        w.event.end_ns *= 10;
    }
});

// Told of at the end, whatever the arm's clock says is not seen by any other.
fault!(clock_behind_late_events, Invalid, Reason::Clock { .. }, ["0.000 s"], |l| {
    let end = l.done.as_ref().unwrap().recv_ns;
    l.steps.iter_mut().for_each(|s| s.recv_ns = end);
    l.windows.iter_mut().for_each(|w| w.recv_ns = end);
});

// The work that was asked for.

fault!(setting, Invalid, Reason::Setting { .. }, ["max_grad_norm", "1.0", "0"], |l| {
    l.hello.as_mut().unwrap().event.settings.insert("max_grad_norm".into(), 0.into());
});
fault!(learning_rate, Invalid, Reason::LearningRate { step: 4, .. }, ["step 4", "2e-3"], |l| {
    l.steps[4].event.lr.insert("decay".into(), 2e-3);
});
fault!(kernel_fallback, Invalid, Reason::Kernel { .. }, ["norm = fused", "saw eager"], |l| {
    l.hello.as_mut().unwrap().event.kernel_plan.insert("norm".into(), "eager".into());
    launch_as(l, "norm", "eager");
});
fault!(kernel_not_named, Invalid, Reason::Kernel { .. }, ["norm = fused", "saw nothing"], |l| {
    l.hello.as_mut().unwrap().event.kernel_plan.remove("norm");
});
fault!(launched_another, Invalid, Reason::Launches { .. }, ["norm.fused", "norm.eager.backward"], |l| {
    l.done.as_mut().unwrap().event.kernels.insert("norm.eager.backward".into(), 1);
});
fault!(seam_never_ran, Invalid, Reason::Launches { .. }, ["norm.fused", "saw none"], |l| {
    l.done.as_mut().unwrap().event.kernels.remove("norm.fused.forward");
});
fault!(other_tokens, Invalid, Reason::Tokens { .. }, ["token store 7070", "saw other"], |l| {
    l.ready.as_mut().unwrap().event.tokens_sha256 = "other".into();
});
fault!(
    frozen_embedding,
    Invalid,
    Reason::TrainableSet { .. },
    ["52", "saw 20", "missing: model.embed"],
    |l| {
        l.ready.as_mut().unwrap().event.trainable.remove(0);
    }
);
fault!(more_trainable, Invalid, Reason::TrainableSet { .. }, ["unexpected: extra"], |l| {
    let extra = TensorInfo { name: "extra".into(), shape: vec![1] };
    l.ready.as_mut().unwrap().event.trainable.push(extra);
});
fault!(trainable_reshaped, Invalid, Reason::TrainableSet { .. }, ["other shape: model.norm"], |l| {
    l.ready.as_mut().unwrap().event.trainable[2].shape = vec![2, 2];
});
fault!(trainable_twice, Invalid, Reason::TrainableSet { .. }, ["saw 56"], |l| {
    let ready = &mut l.ready.as_mut().unwrap().event;
    ready.trainable.push(ready.trainable[2].clone());
});
fault!(smaller_model, Invalid, Reason::ParameterCount { .. }, ["52", "40"], |l| {
    l.ready.as_mut().unwrap().event.total_params = 40;
});
fault!(ledger_missing, Invalid, Reason::LedgerSteps { seen: 0, .. }, ["27 steps", "saw 0"], |l| {
    l.ledger = None;
});
fault!(cached_batch, Invalid, Reason::Digest { step: 1, steps: 26 }, ["step 1 and 25 others"], |l| {
    l.ledger.as_mut().unwrap().iter_mut().skip(1).for_each(|s| s.digest_ok = false);
});
fault!(other_samples, Invalid, Reason::Samples { step: 1, steps: 26 }, ["step 1 and 25 others"], |l| {
    l.ledger.as_mut().unwrap().iter_mut().skip(1).for_each(|s| s.samples_ok = false);
});
fault!(padding_counted, Invalid, Reason::Counts { step: 0, .. }, ["950 real", "1000 real"], |l| {
    l.ledger.as_mut().unwrap().iter_mut().for_each(|s| s.reported.real = s.reported.slots);
});

#[test]
fn dead_lora_plus() {
    let log = trial(&case("candle", lora(), Packing::None), 0, 20);
    let (reason, _) = planted(log, Verdict::Invalid, |l| {
        l.steps.iter_mut().for_each(|s| _ = s.event.lr.remove("lora_B"));
    });
    assert!(
        matches!(reason, Reason::LearningRate { step: 0, expected, .. } if (expected - 0.016).abs() < 1e-9)
    );
}

#[test]
fn plan_given_as_all() {
    let mut log = honest();
    let kernels = [("all".to_string(), "fused".to_string()), ("loss".to_string(), "eager".to_string())];
    log.header.as_mut().unwrap().spec.kernels = kernels.into();
    log.hello.as_mut().unwrap().event.kernel_plan.insert("loss".into(), "eager".into());
    launch_as(&mut log, "loss", "eager");
    assert_eq!(judge(&log).reasons, []);
    let (reason, _) = planted(log, Verdict::Invalid, |l| {
        l.hello.as_mut().unwrap().event.kernel_plan.insert("attention".into(), "eager".into());
        launch_as(l, "attention", "eager");
    });
    assert!(matches!(reason, Reason::Kernel { seam, .. } if seam == "attention"));
}

// Every step trained.

fault!(
    zero_gradient,
    Invalid,
    Reason::GradNorm { step: 0, steps: 27, .. },
    ["saw 0", "step 0 and 26"],
    |l| {
        l.steps.iter_mut().for_each(|s| s.event.grad_norm = 0.0);
    }
);
fault!(infinite_gradient, Invalid, Reason::GradNorm { step: 9, steps: 1, .. }, ["inf", "step 9"], |l| {
    l.steps[9].event.grad_norm = f64::INFINITY;
});
fault!(nan_loss, Invalid, Reason::LossNotFinite { step: 20, steps: 1, .. }, ["NaN", "step 20"], |l| {
    l.steps[20].event.loss = f64::NAN;
});
fault!(flat_loss, Invalid, Reason::LossDoesNotFall { .. }, ["first third", "standard error"], |l| {
    for (i, s) in l.steps.iter_mut().enumerate() {
        s.event.loss = 4.0 + 0.1 * (i as f64 * 2.4).sin();
    }
});
fault!(constant_loss, Invalid, Reason::LossDoesNotFall { .. }, ["4.0000"], |l| {
    l.steps.iter_mut().for_each(|s| s.event.loss = 4.0);
});
fault!(rising_loss, Invalid, Reason::LossDoesNotFall { .. }, ["fall"], |l| {
    l.steps.iter_mut().for_each(|s| s.event.loss = 10.0 - s.event.loss);
});

#[test]
fn too_few_steps() {
    let (reason, _) = planted(honest(), Verdict::Invalid, |l| {
        let measure = &mut l.header.as_mut().unwrap().spec.measure;
        (measure.timed_steps, measure.window_steps) = (4, 4);
        let total = measure.total_steps();
        l.steps.truncate(total as usize);
        // The schedule of a shorter trial is another one.
        l.header.as_mut().unwrap().spec.train.lr_scheduler_type =
            chronibench_protocol::spec::Scheduler::Constant;
        l.steps.iter_mut().for_each(|s| _ = s.event.lr.insert("decay".into(), 1e-3));
        l.windows.truncate(1);
        l.ledger.as_mut().unwrap().truncate(total as usize);
        l.done.as_mut().unwrap().event.steps = total;
        let done = l.order.pop().unwrap();
        l.order.truncate(2 + total as usize + 1);
        l.order.push(done);
    });
    assert_eq!(reason, Reason::TooFewSteps { expected: LOSS_FALL_MIN_STEPS, seen: 7 });
    assert_eq!(MEASURE.total_steps(), 27);
}

// The right weights moved.

fn tensors(log: &mut TrialLog) -> &mut Vec<TensorChange> {
    log.weights.as_mut().unwrap()
}

fault!(no_weights, Invalid, Reason::NoWeights, ["weights"], |l| l.weights = None);
fault!(tensor_stands_still, Invalid, Reason::Unchanged(_), ["no change in model.norm.weight"], |l| {
    let norm = &mut tensors(l)[2];
    (norm.delta_norm, norm.changed) = (0.0, 0);
});
/// A trial of a rival that holds bf16 weights, whose norm stood still.
fn coarse(learning_rate: f64, states: Option<States>) -> TrialLog {
    let mut log = trial(&case("chronicals", Method::Full {}, Packing::Bfd), 0, 30);
    let header = log.header.as_mut().unwrap();
    let hash = "0".repeat(64);
    header.rival =
        Some(RivalRecord { adapter_sha256: hash.clone(), lock_sha256: hash, environment: "reuse".into() });
    header.spec.train.learning_rate = learning_rate;
    header.spec.precision.states = states;
    let norm = &mut tensors(&mut log)[2];
    (norm.delta_norm, norm.changed, norm.least_bf16_change) = (0.0, 0, Some(1.0 / 512.0));
    log
}

#[test]
fn bf16_weights_that_no_update_can_move_are_no_fault_and_are_told() {
    let log = coarse(2e-5, Some(States::Bf16));
    let unchanged = |log: &TrialLog| judge(log).reasons.iter().any(|r| matches!(r, Reason::Unchanged(_)));
    assert!(!unchanged(&log));
    assert_eq!(rounded_away(&log), ["model.norm.weight"]);
    // A rate that could move them, masters that would have moved, and the native arm, which rounds stochastically.
    let native = TrialLog {
        header: log.header.clone().map(|mut h| {
            h.rival = None;
            h
        }),
        ..log
    };
    for log in [coarse(1e-3, Some(States::Bf16)), coarse(2e-5, Some(States::F32)), coarse(2e-5, None), native]
    {
        assert!(unchanged(&log) && rounded_away(&log).is_empty());
    }
}

fault!(weights_not_finite, Invalid, Reason::WeightsNotFinite(_), ["model.embed_tokens.weight"], |l| {
    tensors(l)[0].finite = false;
});
fault!(tensor_lost, Invalid, Reason::Lost(_), ["none after it for old"], |l| {
    let mut old = tensors(l)[0].clone();
    (old.name, old.present) = ("old".into(), Presence::Before);
    tensors(l).push(old);
});
fault!(tensor_appeared, Invalid, Reason::Appeared(_), ["lm_head.weight"], |l| {
    let mut new = tensors(l)[0].clone();
    (new.name, new.present) = ("lm_head.weight".into(), Presence::After);
    tensors(l).push(new);
});
fault!(trained_tensor_not_saved, Invalid, Reason::TrainedMissing(_), ["model.norm.weight"], |l| {
    tensors(l).pop();
});

#[test]
fn frozen_base_moves_under_lora() {
    let log = trial(&case("chronicals", lora(), Packing::Bfd), 0, 30);
    let (reason, text) = planted(log, Verdict::Invalid, |l| tensors(l)[1].changed = 1);
    assert!(matches!(reason, Reason::FrozenChanged(_)));
    assert!(text.contains("q_proj.weight"), "{text}");
}
