//! Runs of kernels: the record, the report rebuilt from it, references as child processes, and exit codes.

mod common;

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use chronibench::kernel::{
    Trial,
    references::{self, References},
    store::{KernelStore, is_run},
};
use chronibench_protocol::{
    Event, Record,
    event::{Done, Hello, Precision},
    kernels::{
        Ceiling, KernelCase, KernelCheck, KernelCompared, KernelHeader, KernelRow, KernelSpec,
        ResolvedKernels, SCHEMA, Side,
    },
    record::{Exit, GpuSample, Line},
};
use common::chronibench;
use tempfile::TempDir;

fn resolved() -> ResolvedKernels {
    ResolvedKernels {
        schema: SCHEMA.into(),
        name: "kernels".into(),
        title: "Kernels of a test".into(),
        op: Some("rmsnorm".into()),
        variant: None,
        repetitions: 3,
        references: "auto".into(),
        order: vec!["000-native".into(), "001-references".into()],
        skipped: Vec::new(),
    }
}

fn case() -> KernelCase {
    KernelCase {
        op: "rmsnorm_forward".into(),
        case: "16x8".into(),
        dims: [("tokens".to_string(), 16), ("hidden".to_string(), 8)].into(),
        documents: Vec::new(),
        bytes: 512,
        flops: 0,
    }
}

fn spec(id: &str, cases: Vec<KernelCase>) -> KernelSpec {
    KernelSpec {
        protocol: "chronibench.protocol/1".into(),
        trial_id: id.into(),
        cases,
        variant: None,
        repetitions: 3,
        device: "cuda:0".into(),
        flush_bytes: 1 << 20,
    }
}

fn row(variant: &str, seconds: f64, failure: Option<&str>) -> KernelRow {
    let look = GpuSample {
        process_bytes: 1,
        device_bytes: 2,
        power_mw: 3,
        energy_mj: 4,
        sm_mhz: 1980,
        temp_c: 40,
        throttle_mask: 1,
    };
    let error = if failure.is_some() { None } else { Some(0.001) };
    let compared = KernelCompared {
        what: "y".into(),
        values: 24,
        error,
        tolerance: 0.006,
        index: 7,
        got: error,
        want: Some(0.1),
    };
    KernelRow {
        op: case().op,
        case: case().case,
        variant: variant.into(),
        bytes: 512,
        cold_s: if failure.is_some() { Vec::new() } else { vec![seconds, seconds * 1.01, seconds * 0.99] },
        copy_s: vec![1e-5; 3],
        warm_bytes: 512,
        l2_bytes: 1024,
        check: KernelCheck { compared: vec![compared], failure: failure.map(String::from) },
        before: Some(look.clone()),
        after: Some(look),
        ..KernelRow::default()
    }
}

fn lines(side: Side, position: u32, rows: Vec<KernelRow>) -> Vec<Line> {
    let hello = Hello {
        protocol: "chronibench.protocol/1".into(),
        name: "test".into(),
        version: "1".into(),
        device: "a GPU".into(),
        threads: 1,
        pid: 1,
        precision: Precision::f32(),
        settings: [("torch".to_string(), "2.11".into())].into(),
        kernel_plan: Default::default(),
        chosen: Default::default(),
    };
    let ceiling = Ceiling {
        name: "copy".into(),
        at: "before".into(),
        bytes: 1 << 32,
        flops: 0,
        seconds: vec![1e-3, 1.1e-3],
    };
    let done = Done::default();
    let id = ["000-native", "001-references"][position as usize];
    let header = KernelHeader {
        schema: SCHEMA.into(),
        side,
        position,
        started_at: "2026-01-01T00:00:00Z".into(),
        spec: spec(id, vec![case()]),
    };
    let mut events = vec![Event::Hello(hello), Event::Ceiling(ceiling)];
    events.extend(rows.into_iter().map(|r| Event::Kernel(Box::new(r))));
    events.push(Event::Done(done));
    let exit = Exit { code: Some(0), wall_ns: 9, ..Exit::default() };
    let events = events.into_iter().map(|event| Line::Event { recv_ns: 5, event });
    std::iter::once(Line::Kernels(Box::new(header))).chain(events).chain([Line::Exit(exit)]).collect()
}

fn add(store: &KernelStore, lines: Vec<Line>) {
    let Line::Kernels(header) = &lines[0] else { panic!("the head comes first") };
    let mut record = store.record(&header.spec.trial_id).unwrap();
    lines.into_iter().for_each(|l| record.push(l));
    store.add(&record).unwrap();
}

/// A run folder with ours and a reference's row.
fn folder(failure: Option<&str>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store =
        KernelStore::create(dir.path(), &resolved(), &serde_json::json!({ "machine": "here" })).unwrap();
    add(&store, lines(Side::Native, 0, vec![row("fused", 1e-5, failure)]));
    add(&store, lines(Side::References, 1, vec![row("hf_eager", 8e-5, None)]));
    store.publish().unwrap();
    store.clean().unwrap();
    dir
}

fn published(dir: &Path) -> Vec<Vec<u8>> {
    ["results.json", "results.csv", "report.md"].map(|f| std::fs::read(dir.join(f)).unwrap()).to_vec()
}

#[test]
fn a_report_is_rebuilt_to_the_same_bytes_from_plain_and_compressed_events() {
    let dir = folder(None);
    assert!(is_run(dir.path()));
    let first = published(dir.path());
    let report = String::from_utf8(first[2].clone()).unwrap();
    assert!(report.starts_with("# Kernels of a test\n\n**VALID** · 1 of 1 rows"), "{report}");
    assert!(report.contains("K1 fused RMSNorm 7×"), "{report}");
    for name in ["results.json", "results.csv", "report.md"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    let events = dir.path().join("events/000-native.jsonl");
    let text = std::fs::read(&events).unwrap();
    std::fs::remove_file(&events).unwrap();
    let file = std::fs::File::create(dir.path().join("events/000-native.jsonl.gz")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::default());
    gzip.write_all(&text).unwrap();
    gzip.finish().unwrap();
    chronibench().arg("report").arg(dir.path()).assert().code(0);
    assert_eq!(published(dir.path()), first);
}

#[test]
fn a_failed_check_ends_with_3_and_says_why() {
    let dir = folder(Some("y[7] is NaN, not 1e-1"));
    let output = chronibench().arg("report").arg(dir.path()).assert().code(3).get_output().clone();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("y[7] is NaN, not 1e-1") && said.contains("INVALID"), "{said}");
}

#[test]
fn a_damaged_line_is_named() {
    let dir = folder(None);
    let events = dir.path().join("events/000-native.jsonl");
    let text = std::fs::read_to_string(&events).unwrap().replacen("\"variant\"", "\"vari", 1);
    std::fs::write(&events, text).unwrap();
    let output = chronibench().arg("report").arg(dir.path()).assert().code(5).get_output().clone();
    assert!(String::from_utf8(output.stderr).unwrap().contains("000-native.jsonl:1"));
}

/// A program that stands in for a Python: a shell script that is given the references' arguments.
fn python(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("python");
    std::fs::write(&path, format!("#!/bin/sh\n# $1 program, $3 specification, $5 events\n{script}")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What a trial of references records when this script runs it.
fn recorded(script: &str) -> (Record, KernelStore, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = KernelStore::create(&dir.path().join("run"), &resolved(), &serde_json::json!({})).unwrap();
    let python = Some(python(dir.path(), script));
    let trial = Trial { side: Side::References, spec: spec("001-references", vec![case()]), python };
    let lines = trial.run(&store, 1, None).unwrap();
    (lines, store, dir)
}

fn events(lines: &[Line]) -> Vec<&Event> {
    lines.iter().filter_map(|l| if let Line::Event { event, .. } = l { Some(event) } else { None }).collect()
}

#[test]
fn events_of_a_reference_are_read_as_they_are_written() {
    // As Python writes them: spaces, absent optional fields.
    let (lines, ..) = recorded(
        r#"grep -q '"case": "16x8"' "$3" && grep -q FLASH_ATTENTION "$(dirname "$1")/attention.py" || exit 9
cat >"$5" <<'END'
{"event": "skipped", "what": "references of liger_kernel", "why": "it is not installed", "hint": "pip"}
{"event": "kernel", "op": "rmsnorm_forward", "case": "16x8", "bytes": 512, "flops": 0, "variant": "hf_eager", "l2_bytes": 1, "cold_s": [1e-05], "warm_s": [1e-05], "check": {"compared": [{"what": "y", "values": 3, "error": 0.0, "tolerance": 0.02, "index": 0, "got": 1.0, "want": 1.0}], "failure": null}, "warm_bytes": 512, "note": "one"}
{"event": "kernel", "op": "rmsnorm_forward", "case": "16x8", "bytes": 512, "flops": 0, "variant": "liger", "error": {"what": "RuntimeError: no", "where": "there", "hint": "see"}}
{"event": "done", "steps": 0}
END
"#,
    );
    let events = events(&lines);
    assert!(matches!(events[0], Event::Skipped(s) if s.why == "it is not installed"), "{events:?}");
    assert!(matches!(events[1], Event::Kernel(r) if r.cold_s == [1e-5] && r.note.as_deref() == Some("one")));
    assert!(matches!(events[2], Event::Kernel(r) if r.error.as_ref().is_some_and(|e| e.at == "there")));
    assert!(matches!(events[3], Event::Done(_)));
    assert!(matches!(lines.last(), Some(Line::Exit(e)) if e.code == Some(0)));
    // What is stored reads back the same.
    for line in &*lines {
        let text = serde_json::to_string(line).unwrap();
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), *line, "{text}");
    }
}

#[test]
fn references_that_crash_leave_their_rows_and_their_last_words() {
    let kernel = serde_json::to_string(&Event::Kernel(Box::new(row("hf_eager", 1e-5, None)))).unwrap();
    let (lines, store, _dir) = recorded(&format!("echo '{kernel}' >\"$5\"; echo lost it >&2; exit 7\n"));
    add(&store, self::lines(Side::Native, 0, vec![row("fused", 1e-5, None)]));
    store.add(&lines).unwrap();
    let summary = store.publish().unwrap();
    assert_eq!(summary.speedups.len(), 1, "the row before the crash counts");
    let trial = &summary.trials[1];
    assert!(trial.reason.as_ref().unwrap().contains("exit code 7: lost it"), "{trial:?}");
    chronibench().arg("report").arg(store.folder()).assert().code(6);
}

#[test]
fn references_know_of_no_chunk_and_of_nothing_that_is_ours_alone() {
    let of = |op: &str, name: &str, chunk| {
        let mut c = KernelCase { op: op.into(), case: name.into(), ..case() };
        c.dims.extend(Some(("chunk".to_string(), chunk)).filter(|_| chunk > 0));
        c
    };
    let asked = references::cases(&[
        of("linear_ce_products", "4x8x16", 0),
        of("linear_ce_rows", "2x16", 0),
        of("linear_ce", "4x8x16 by 2", 2),
        of("linear_ce", "4x8x16 by 4", 4),
        case(),
    ]);
    assert_eq!(asked, [of("linear_ce", "4x8x16", 0), case()]);
}

#[test]
fn a_python_that_is_not_there_is_refused_and_none_is_none() {
    assert_eq!(References::find("none").unwrap(), References::None(None));
    let e = References::find("/no/such/python").unwrap_err();
    assert!(e.hint.contains("auto"), "{e}");
    chronibench().args(["kernel", "--references", "/no/such/python"]).assert().code(2);
}

#[test]
fn an_operation_that_is_not_there_is_refused_with_those_that_are() {
    let output = chronibench().args(["kernel", "--op", "softmax"]).assert().code(2).get_output().clone();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("swiglu_backward") && said.contains("--op softmax"), "{said}");
}

#[test]
fn a_run_of_kernels_verifies_until_a_time_is_changed() {
    let dir = folder(None);
    chronibench().arg("verify").arg(dir.path()).assert().success();
    let events = dir.path().join("events/000-native.jsonl");
    let text = std::fs::read_to_string(&events).unwrap();
    std::fs::write(&events, text.replacen("\"cold_s\":[", "\"cold_s\":[0.5,", 1)).unwrap();
    let ran = chronibench().arg("verify").arg(dir.path()).assert().code(8);
    let output = String::from_utf8_lossy(&ran.get_output().stdout).into_owned();
    assert!(output.contains("events/000-native.jsonl:") && output.contains("BROKEN"), "{output}");
}
