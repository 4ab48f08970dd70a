//! The report says everything once, the same every time, and its plots are sound SVG.

use std::collections::BTreeSet;

use chronibench_analysis::{TrialLog, history, report, summarise};
use chronibench_protocol::{
    event::Failure,
    record::{Case, Packing, Resolved, Skipped},
    spec::Method,
};
use serde_json::json;

use crate::testing::{ablated, case, comparison, lora, resolved, trial};

/// A run with a bit of everything: comparisons, ablations, a crash, a cheat, and something skipped.
fn everything() -> (Resolved, Vec<TrialLog>) {
    let mut cases = Vec::new();
    for arm in ["chronicals", "chronicals-eager", "candle"] {
        for method in [Method::Full {}, lora()] {
            for packing in [Packing::None, Packing::Bfd] {
                cases.push(case(arm, method.clone(), packing));
            }
        }
    }
    let base = cases[1].clone();
    cases.extend(["norm", "attention", "loss"].map(|seam| ablated(&base, seam)));
    let mut logs = Vec::new();
    for round in 0..3u32 {
        for (i, c) in cases.iter().enumerate() {
            logs.push(trial(c, round, 40 + 7 * i as u64 + u64::from(round * 2)));
        }
    }
    let mut r = resolved(cases.clone(), 3);
    r.comparisons = vec![
        comparison(&cases[0], &cases[8], Some(1.5), &[]),
        comparison(&cases[1], &cases[8], Some(3.0), &["packing"]),
        comparison(&cases[0], &cases[1], None, &[]),
    ];
    r.skipped = vec![Skipped {
        what: "unsloth".into(),
        why: "no GPU on this machine".into(),
        hint: "run on a machine with one".into(),
    }];
    logs[4].steps[7].event.grad_norm = 0.0;
    let event =
        Failure { what: "out of | memory".into(), at: "step 3".into(), hint: "use a *smaller* batch".into() };
    logs[11].error = Some(chronibench_analysis::trial::At { recv_ns: 1, event });
    logs[11].done = None;
    (r, logs)
}

fn environment() -> serde_json::Value {
    json!({"cpu": {"model": "Model | 9", "cores": 2}, "governors": ["performance"], "gpus": [{"name": "none"}], "no": null})
}

fn report_of(r: &Resolved, logs: &[TrialLog]) -> String {
    report::report_md(r, &summarise(r, logs), &environment())
}

#[test]
fn rebuilt_reports_are_identical() {
    let (r, logs) = everything();
    assert_eq!(report_of(&r, &logs), report_of(&r, &logs));
    let summary = summarise(&r, &logs);
    assert_eq!(report::plots(&r, &summary, &logs), report::plots(&r, &summary, &logs));
}

#[test]
fn the_report_of_a_gate_says_how_many_pairs_ran() {
    let side = |side: &str, packing| {
        let plain = case("chronicals", Method::Full {}, packing);
        Case { id: format!("{side}+{}", plain.id), arm: format!("{side}+{}", plain.arm), ..plain }
    };
    let sides = |packing| ["baseline", "candidate"].map(|s| side(s, packing));
    let cases = [sides(Packing::None), sides(Packing::Bfd)].concat();
    // One of the two is decided after four pairs, the other after six; the scenario speaks of two trials.
    let run = |rounds: [u32; 2]| {
        let logs: Vec<TrialLog> = (0..4)
            .flat_map(|i| (0..rounds[i / 2]).map(move |round| (i, round)))
            .map(|(i, round)| trial(&cases[i], round, 40))
            .collect();
        report_of(&resolved(cases.clone(), 2), &logs)
    };
    let text = run([4, 6]);
    assert!(text.contains("2 cases of 4 to 6 pairs, in turns") && !text.contains("2 trials"), "{text}");
    assert!(text.contains("that of 4, the fewest here,"), "{text}");
    assert!(run([8, 8]).contains("2 cases of 8 pairs each, in turns"));
}

#[test]
fn everything_is_said() {
    let (r, logs) = everything();
    let text = report_of(&r, &logs);
    for words in [
        "# A synthetic run\n",
        "**ERROR** · 43 of 45 trials are VALID · 5 of 6 comparisons are VALID",
        "`chronicals/full/padded`",
        "| ≥ 1.50× | unclear: pairs 3, needed 5 |",
        "| NOT\\_COMPARABLE |",
        "saw undeclared differences: batches",
        " settings equal: ",
        "as told by both arms, which may repeat what they were asked: `",
        "| `packing` | bfd | none |",
        "## Trials that do not count",
        "(round 0, trial `chronicals-eager-full-padded-0`)",
        "expected a finite gradient norm above 0, saw 0 at step 7",
        "out of \\| memory (at step 3); hint: use a \\*smaller\\* batch",
        "`unsloth`: no GPU on this machine; to have it: run on a machine with one",
        "that of 2, the fewest here, holds the true median with a probability of 50.0 % only",
        "| cpu.model | Model \\| 9 |",
        "| gpus.0.name | none |",
        &"5c".repeat(32),
    ] {
        assert!(text.contains(words), "'{words}' is not in:\n{text}");
    }
}

/// Older records do not tell whether a GPU is divided: they have no row, and are of the machine that they were of.
#[test]
fn mig_is_told_where_it_is_known() {
    let (r, logs) = everything();
    let summary = summarise(&r, &logs);
    let of = |device: serde_json::Value| {
        let environment = json!({"gpu": {"devices": [device]}});
        let entries = history::entries("run", "head", &|_| "work".into(), &summary, &environment);
        (report::report_md(&r, &summary, &environment), entries[0].machine.clone())
    };
    let older = of(json!({"name": "A100"}));
    assert!(!older.0.contains("mig"), "{}", older.0);
    assert_eq!(of(json!({"name": "A100", "mig": null})), older);
    for (mode, same) in [("disabled", true), ("unsupported", true), ("enabled", false)] {
        let (text, machine) = of(json!({"name": "A100", "mig": mode}));
        assert!(text.contains(&format!("| gpu.devices.0.mig | {mode} |")), "{text}");
        assert_eq!(machine == older.1, same, "{mode}");
    }
}

/// The report shows exactly the plots that there are, whatever is stored so far.
#[test]
fn plots_and_references_agree() {
    let (r, logs) = everything();
    for n in [0, 1, 2, 12, 15, logs.len()] {
        let summary = summarise(&r, &logs[..n]);
        let text = report::report_md(&r, &summary, &environment());
        let drawn: BTreeSet<String> =
            report::plots(&r, &summary, &logs[..n]).into_iter().map(|(name, _)| name).collect();
        let shown: BTreeSet<String> =
            text.split("](plots/").skip(1).map(|rest| rest.split(')').next().unwrap().to_string()).collect();
        assert_eq!(drawn, shown, "{n} trials");
        assert_eq!(n == 0, drawn.is_empty());
    }
}

#[test]
fn no_table_is_torn() {
    let (r, logs) = everything();
    for n in [0, 3, logs.len()] {
        let text = report_of(&r, &logs[..n]);
        let mut width = None;
        for line in text.lines() {
            let bars = line.replace("\\|", "").matches('|').count();
            if !line.starts_with('|') {
                width = None;
                continue;
            }
            assert_eq!(*width.get_or_insert(bars), bars, "{line}");
        }
    }
}

/// A small check that tags close in order and that nothing is fetched or run.
fn check_svg(name: &str, text: &str) {
    let mut open: Vec<&str> = Vec::new();
    for tag in text.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("{name}: a tag does not end"));
        assert!(tag.matches('"').count().is_multiple_of(2), "{name}: {tag}");
        let element = tag.split([' ', '/']).find(|s| !s.is_empty()).unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(element), "{name}");
        } else if !tag.ends_with('/') {
            open.push(element);
        }
    }
    assert!(open.is_empty(), "{name}: {open:?}");
    assert!(text.starts_with("<svg ") && text.contains("xmlns=\"http://www.w3.org/2000/svg\""));
    for banned in ["href", "<script", "<style", "<foreignObject", "NaN", "inf", "url("] {
        assert!(!text.contains(banned), "{name} holds {banned}");
    }
    assert!(text.contains("rx=\"10\" fill=\"#FFFFFF\""), "{name} has no ground of its own");
}

/// Texts and their places: nothing may begin or end outside the picture.
fn check_inside(name: &str, text: &str) {
    let attribute = |tag: &str, key: &str| -> Option<f64> {
        tag.split_once(&format!(" {key}=\""))?.1.split('"').next()?.parse().ok()
    };
    let (width, height) = (attribute(text, "width").unwrap(), attribute(text, "height").unwrap());
    for piece in text.split("<text ").skip(1) {
        let (tag, rest) = piece.split_once('>').unwrap();
        if tag.contains("rotate") {
            continue;
        }
        let tag = format!(" {tag}");
        let content = rest.split("</text>").next().unwrap().trim();
        let (x, y) = (attribute(&tag, "x").unwrap(), attribute(&tag, "y").unwrap());
        let size = attribute(&tag, "font-size").unwrap();
        let length = content.chars().count() as f64 * size * 0.56;
        let (left, right) = match tag.split_once("text-anchor=\"").unwrap().1.split('"').next().unwrap() {
            "start" => (x, x + length),
            "middle" => (x - length / 2.0, x + length / 2.0),
            _ => (x - length, x),
        };
        assert!(left >= 0.0 && right <= width, "{name}: '{content}' spans {left}..{right} of {width}");
        assert!((0.0..=height).contains(&y), "{name}: '{content}' at {y} of {height}");
    }
}

#[test]
fn plots_are_sound() {
    let (r, logs) = everything();
    for n in [1, 4, logs.len()] {
        let plots = report::plots(&r, &summarise(&r, &logs[..n]), &logs[..n]);
        for (name, svg) in &plots {
            check_svg(name, svg);
            check_inside(name, svg);
        }
        if n == logs.len() {
            let names: Vec<&str> = plots.iter().map(|(n, _)| n.as_str()).collect();
            assert_eq!(names, ["throughput.svg", "memory.svg", "loss.svg", "ablation.svg", "packing.svg"]);
        }
    }
}

/// Names with signs that mean something in SVG or Markdown do no harm.
#[test]
fn hostile_names() {
    let mut c = case("a<b>&\"c\"", Method::Full {}, Packing::Bfd);
    c.id = "a<b>&\"c\"|`d`/full".into();
    let r = resolved(vec![c.clone()], 1);
    let logs = [trial(&c, 0, 20)];
    let summary = summarise(&r, &logs);
    for (name, svg) in report::plots(&r, &summary, &logs) {
        check_svg(&name, &svg);
    }
    assert!(report_of(&r, &logs).contains("`a<b>&\"c\"\\| d /full`"));
}

/// Long names are shortened, not cut off at the edge.
#[test]
fn long_names() {
    let mut base = case("chronicals", Method::Full {}, Packing::Bfd);
    base.id = format!("chronicals/{}/packed", "very-long-name-of-an-axis-value/".repeat(6));
    let cases = vec![base.clone(), ablated(&base, "norm")];
    let logs = [trial(&cases[0], 0, 20), trial(&cases[1], 0, 40)];
    let r = resolved(cases, 1);
    for (name, svg) in report::plots(&r, &summarise(&r, &logs), &logs) {
        check_inside(&name, &svg);
    }
}

/// Writes the report and its plots to be looked at: `CARGO_TARGET_TMPDIR/report`.
#[test]
fn specimen() {
    let (r, logs) = everything();
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
    std::fs::create_dir_all(dir.join("plots")).unwrap();
    std::fs::write(dir.join("report.md"), report_of(&r, &logs)).unwrap();
    for (name, svg) in report::plots(&r, &summarise(&r, &logs), &logs) {
        std::fs::write(dir.join("plots").join(&name), svg).unwrap();
    }
    assert!(dir.join("plots/loss.svg").exists());
}
