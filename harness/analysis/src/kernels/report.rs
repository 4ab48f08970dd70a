//! `report.md` of a run of kernels.

use chronibench_protocol::{
    kernels::{ResolvedKernels, Side},
    record::Verdict,
};

use super::{ClaimOutcome, KernelSummary, Outcome, RowSummary, claims::HF_EAGER, table::cells};
use crate::{
    format::{NONE, estimate, mib, number, or_dash, percent, times, verdict},
    report::{
        appendix,
        markdown::{code, heading, plain, table},
    },
    skipped,
    stats::{CONFIDENCE, RESAMPLES},
};

/// `report.md`, GitHub-flavoured. `environment` is any JSON object; its leaves become rows of a table.
pub fn report_md(
    resolved: &ResolvedKernels,
    summary: &KernelSummary,
    environment: &serde_json::Value,
) -> String {
    let parts = [
        opening(resolved, summary),
        ceilings(summary),
        results(summary),
        slower(summary),
        traffic(summary),
        claims(summary),
        floors(summary),
        memory(summary),
        drift(summary),
        failures(summary),
        skipped::section(&summary.skipped),
        machine(summary),
        method(resolved),
        appendix::environment(environment),
        reproduce(resolved),
    ];
    let mut text = parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("\n");
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn opening(resolved: &ResolvedKernels, summary: &KernelSummary) -> String {
    let count = |side: Side| {
        let of = || summary.rows.iter().filter(|r| r.side == side);
        (of().filter(|r| r.is_valid()).count(), of().count())
    };
    let (ours, references) = (count(Side::Native), count(Side::References));
    let mut out = format!(
        "# {}\n\n**{}** · {} of {} rows of our kernels are VALID",
        plain(&resolved.title),
        verdict(Some(summary.verdict)).replace('_', "\\_"),
        ours.0,
        ours.1
    );
    if references.1 > 0 {
        out += &format!(" · {} of {} rows of references are VALID", references.0, references.1);
    }
    if summary.trials.len() < resolved.order.len() {
        out += &format!(" · **partial run**: {} of {} trials", summary.trials.len(), resolved.order.len());
    }
    out + "\n"
}

fn ceilings(summary: &KernelSummary) -> String {
    if summary.ceilings.is_empty() {
        return String::new();
    }
    let mut rows = vec![heading(&["ceiling", "trial", "when", "rate [95 %]"])];
    for c in &summary.ceilings {
        let (what, unit) = match c.name.as_str() {
            "copy" => ("device copy, 4 GiB read and written", "TB/s"),
            _ => ("bf16 product of 8192³, random operands", "TFLOP/s"),
        };
        let rate = format!("{} {unit}", estimate(&c.rate, |x| number(x / 1e12)));
        rows.push(vec![what.into(), code(&c.trial), plain(&c.at), rate]);
    }
    format!("## What the machine can do\n\n{}", table(&rows))
}

fn results(summary: &KernelSummary) -> String {
    let names = [
        "by",
        "µs, cold L2 [95 %]",
        "TB/s or TFLOP/s",
        "of the limit [95 %]",
        "µs, warm",
        "warm set / L2",
        "ours is faster by [95 %]",
        "SM MHz",
    ];
    let mut out = String::from("## Times\n");
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for r in &summary.rows {
        if seen.contains(&(&r.op, &r.case)) {
            continue;
        }
        seen.push((&r.op, &r.case));
        let same = || summary.rows.iter().filter(|o| o.op == r.op && o.case == r.case);
        let mut rows = vec![heading(&names)];
        rows.extend(same().map(|r| result_row(summary, r)));
        out += &format!("\n### {} at {}\n\n{}", code(&r.op), plain(&r.case), table(&rows));
        let noted = |r: &RowSummary| Some(format!("- {}: {}\n", code(&r.variant), plain(r.note.as_ref()?)));
        let notes: String = same().filter_map(noted).collect();
        out += &if notes.is_empty() { notes } else { format!("\n{notes}") };
    }
    if seen.is_empty() { String::new() } else { out }
}

fn result_row(summary: &KernelSummary, r: &RowSummary) -> Vec<String> {
    let cells = cells(summary, r);
    let by = if r.side == Side::Native { format!("**{}**", code(&r.variant)) } else { code(&r.variant) };
    if !r.is_valid() {
        let mut row = vec![by, format!("**{}**", verdict(Some(r.verdict)).replace('_', "\\_"))];
        row.resize(8, NONE.into());
        return row;
    }
    let clock =
        |g: &Option<chronibench_protocol::record::GpuSample>| or_dash(g.as_ref(), |g| g.sm_mhz.to_string());
    let clocks = match (&r.before, &r.after) {
        (None, None) => NONE.into(),
        (before, after) => format!("{} → {}", clock(before), clock(after)),
    };
    vec![
        by,
        cells[3].clone(),
        cells[4].clone(),
        cells[5].clone(),
        or_dash(r.warm, |e| number(e.median * 1e6)),
        or_dash(r.warm_share_of_l2, |x| format!("{x:.1}")),
        cells[6].clone(),
        clocks,
    ]
}

fn slower(summary: &KernelSummary) -> String {
    let items: Vec<String> = summary
        .speedups
        .iter()
        .filter(|s| s.ratio.median < 1.0)
        .map(|s| {
            let ours = times(1.0 / s.ratio.median);
            format!(
                "- {} at {}: {} is {ours} as fast as {}\n",
                code(&s.op),
                plain(&s.case),
                code(&s.against),
                code(&s.ours)
            )
        })
        .collect();
    if summary.speedups.is_empty() {
        return String::new();
    }
    let list = if items.is_empty() { "Nowhere among the rows above.\n".into() } else { items.concat() };
    format!("## Slower than a reference at\n\n{list}")
}

fn traffic(summary: &KernelSummary) -> String {
    if summary.traffic.is_empty() {
        return String::new();
    }
    let names = ["kernel", "shape", "ours", "it moves", "unfused moves", "removed"];
    let mut rows = vec![heading(&names)];
    for t in &summary.traffic {
        let [ours, unfused] = [t.bytes, t.unfused_bytes].map(|b| mib(b as f64));
        rows.push(vec![code(&t.op), plain(&t.case), code(&t.ours), ours, unfused, percent(t.removed())]);
    }
    format!(
        "## Memory traffic\n\n{}\nCounted, not measured: bytes that every kernel and every product of either variant reads and writes, each operand once. Of one fused kernel they are the bytes of its times, without what is a number a row. `{}` has a kernel for each operator of PyTorch eager.\n",
        table(&rows),
        super::UNFUSED
    )
}

fn claims(summary: &KernelSummary) -> String {
    let mut rows = vec![heading(&[
        "claim",
        "of",
        "shape",
        "against",
        "measured [95 %]",
        "traffic alone allows",
        "verdict",
    ])];
    rows.extend(summary.claims.iter().map(claim_row));
    format!(
        "## What the paper claims\n\n{}\nA claim is REPRODUCED where the lower end of the interval reaches it: claims that name no baseline are held against each. K4 is counted against our unfused variant (*Memory traffic*), and read off times against Transformers: of two kernels that memory limits, the share of time saved is the share of traffic. Memory counts everything besides the inputs, gradients included.\n",
        table(&rows)
    )
}

fn claim_row(c: &ClaimOutcome) -> Vec<String> {
    let show = |x: f64| if c.id == "K4" { percent(x) } else { times(x) };
    let outcome = match c.outcome {
        Outcome::Reproduced => "REPRODUCED",
        Outcome::NotReproduced => "NOT REPRODUCED",
        Outcome::NotMeasured => "not measured",
    };
    let name = |text: &str| if text.is_empty() { NONE.into() } else { code(text) };
    vec![
        format!("{} {}", c.id, plain(&c.what)),
        code(&c.op),
        if c.case.is_empty() { NONE.into() } else { plain(&c.case) },
        name(&c.against),
        or_dash(c.measured.as_ref(), |e| estimate(e, show)),
        or_dash(c.cap.as_ref(), |cap| plain(cap)),
        outcome.into(),
    ]
}

fn floors(summary: &KernelSummary) -> String {
    if summary.floors.is_empty() {
        return String::new();
    }
    let mut rows = vec![heading(&["kernel", "shape", "by", "floor", "measured", ""])];
    for f in &summary.floors {
        let met = match f.met {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "not measured",
        };
        rows.push(vec![
            code(&f.op),
            plain(&f.case),
            code(&f.variant),
            f.floor.clone(),
            or_dash(f.measured.as_ref(), String::clone),
            met.into(),
        ]);
    }
    let met = summary.floors.iter().filter(|f| f.met == Some(true)).count();
    format!("## Floors\n\n{met} of {} are met.\n\n{}", summary.floors.len(), table(&rows))
}

fn memory(summary: &KernelSummary) -> String {
    let mut rows = vec![heading(&["operation", "shape", "by", "besides its inputs"])];
    for r in summary.rows.iter().filter(|r| r.is_valid()) {
        if let Some(bytes) = r.memory_bytes {
            rows.push(vec![code(&r.op), plain(&r.case), code(&r.variant), mib(bytes as f64)]);
        }
    }
    if rows.len() == 1 {
        return String::new();
    }
    format!(
        "## Memory\n\n{}\nOurs: declared scratch and both gradients. References: the peak of PyTorch's allocator over what the inputs take.\n",
        table(&rows)
    )
}

fn drift(summary: &KernelSummary) -> String {
    if summary.drift.is_empty() {
        return String::new();
    }
    let mut rows = vec![heading(&["kernel", "shape", "by", "trial", "its time over the first [95 %]"])];
    for d in &summary.drift {
        let ratio = estimate(&d.ratio, times);
        rows.push(vec![code(&d.op), plain(&d.case), code(&d.variant), code(&d.trial), ratio]);
    }
    format!("## The same kernels again, after the references\n\n{}", table(&rows))
}

fn failures(summary: &KernelSummary) -> String {
    let mut out = String::new();
    for t in summary.trials.iter().filter(|t| t.verdict != Verdict::Valid) {
        let reason = t.reason.as_deref().unwrap_or_default();
        out += &format!("- **{}** trial {}: {}\n", verdict(Some(t.verdict)), code(&t.id), plain(reason));
    }
    for r in summary.rows.iter().filter(|r| !r.is_valid()) {
        let reason = r.reason.as_deref().unwrap_or_default();
        out += &format!(
            "- **{}** {} at {} by {}: {}\n",
            verdict(Some(r.verdict)),
            code(&r.op),
            plain(&r.case),
            code(&r.variant),
            plain(reason)
        );
    }
    if out.is_empty() { out } else { format!("## What does not count\n\n{out}") }
}

fn machine(summary: &KernelSummary) -> String {
    let names = ["trial", "program", "SM clock, MHz", "hottest, °C", "throttle bits", "settings"];
    let mut rows = vec![heading(&names)];
    for t in &summary.trials {
        let settings: Vec<String> = t
            .settings
            .iter()
            .map(|(k, v)| format!("{k} {}", v.as_str().map_or_else(|| v.to_string(), String::from)))
            .collect();
        rows.push(vec![
            code(&t.id),
            plain(&t.program),
            or_dash(t.sm_mhz, |(low, high)| format!("{low} to {high}")),
            or_dash(t.temp_c, |c| c.to_string()),
            format!("0x{:x}", t.throttle_mask),
            plain(&settings.join(", ")),
        ]);
    }
    format!("## Trials\n\n{}", table(&rows))
}

fn method(resolved: &ResolvedKernels) -> String {
    format!(
        "## How it was measured

- **Checked before timed**, on the operands and at the shape that are timed: outputs begin as NaN, nothing of that may be left, sampled rows (and sampled sums over all rows) must be those of a computation in f64, and a second run must leave the same bits. The time of what fails is no result.
- **Times** are between two device events, {} runs each. *Cold*: 256 MiB are written before each run, so that operands come from memory. *Warm*: right after other runs; where one set of operands fits the L2 cache, several are rotated, and *warm set / L2* says how much of the cache all sets would fill.
- **Bytes** are the fewest that the operation reads and writes, **of a copy** is the time of a device copy of as many bytes over the kernel's: the copy in turn with our kernel, for both sides. **Of a product** is the FLOP/s over those of the 8192³ product.
- **Intervals**: seeded percentile bootstrap ({RESAMPLES} resamples, {:.0} %) of the median over runs of one process; for a ratio both medians are drawn anew. They say how steady a time was in this session, no more.
- **Faster by** is the other's median time over that of our fastest implementation, `{}` left out.
- **References** run in one process of their own between two of ours: {} is the code of Transformers as it is. Before each of their runs the GPU sleeps for a moment, so that every launch is queued: the host's time is not theirs. Backward passes are timed alone, the forward anew before each.
",
        resolved.repetitions,
        CONFIDENCE * 100.0,
        super::UNFUSED,
        code(HF_EAGER),
    )
}

fn reproduce(resolved: &ResolvedKernels) -> String {
    let option =
        |name: &str, value: &Option<String>| value.as_ref().map_or(String::new(), |v| format!(" {name} {v}"));
    format!(
        "## Reproduce

```
chronibench kernel{}{} --repetitions {} --references {}
```

Beside this report lie what was asked (`resolved.yaml`), the machine (`environment.json`), every event of every trial (`events/`), and the figures (`results.json`, `results.csv`). `chronibench report DIR` rebuilds the report from the events alone, to the last byte.
",
        option("--op", &resolved.op),
        option("--variant", &resolved.variant),
        resolved.repetitions,
        resolved.references
    )
}
