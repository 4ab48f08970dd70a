//! The sections with figures.

use chronibench_protocol::record::Verdict;

use super::{
    markdown::{code, heading, image, plain, table},
    parity,
    plots::Plot,
    slow,
};
use crate::{
    agreement::LossGap,
    compare::Compared,
    format::{NONE, bracketed, estimate, mib, number, or_dash, percent, times, verdict},
    metrics::MemorySource,
    rounds::{memory_source, valid},
    stats::{CONFIDENCE, FEWEST_FOR_A_CLAIM, FEWEST_FOR_A_TARGET, median},
    summary::{CaseSummary, ComparisonSummary, Outcome, RunSummary, SweepSummary, summary_table},
};

fn plot(plot: Plot, alt: &str, summary: &RunSummary) -> String {
    if plot.has_data(summary) { format!("\n{}", image(plot.file(), alt)) } else { String::new() }
}

pub(super) fn throughput(summary: &RunSummary) -> String {
    let mut rows = summary_table(summary);
    for row in rows.iter_mut().skip(1) {
        row[0] = code(&row[0]);
        let last = row.len() - 1;
        row[last] = row[last].replace('_', "\\_");
    }
    format!(
        "## Results\n\n{}\n{}{}Medians over VALID trials{}. Loss: first step → mean of the last third.\n{}",
        table(&rows),
        warm(summary),
        slow::of_cases(summary),
        in_brackets(summary),
        plot(
            Plot::Throughput,
            "Real tokens per second of every case, with intervals and single trials",
            summary
        )
    )
}

/// What the brackets behind rates hold.
fn in_brackets(summary: &RunSummary) -> String {
    let rates = summary.cases.iter().filter_map(|c| c.real_tokens_per_s.as_ref());
    let values: Vec<usize> = rates.filter(|e| e.interval.is_some()).map(|e| e.n).collect();
    let bootstrap = format!("the {:.0} % bootstrap interval", CONFIDENCE * 100.0);
    let few = values.iter().filter(|n| **n < FEWEST_FOR_A_CLAIM).count();
    match (values.len(), few) {
        (0, _) => String::new(),
        (_, 0) => format!("; in brackets {bootstrap}"),
        (all, few) if few == all => "; in brackets their range".into(),
        _ => format!("; in brackets {bootstrap}, or the range of fewer than {FEWEST_FOR_A_CLAIM}"),
    }
}

/// Cases whose timed steps still became faster, by change point over the steps of a trial.
fn warm(summary: &RunSummary) -> String {
    // A neighbour may disturb the begin of one trial; a warm-up is in most of them.
    let middle = |c: &CaseSummary| {
        let valid = c.trials.iter().filter(|t| t.is_valid());
        let steps: Vec<f64> = valid.map(|t| f64::from(t.metrics.warm_timed_steps)).collect();
        median(&steps).map(|n| n.ceil() as u32).filter(|n| *n > 0)
    };
    let told: Vec<String> = summary
        .cases
        .iter()
        .filter_map(|c| Some(format!("{} ({} timed steps)", code(&c.id), middle(c)?)))
        .collect();
    match told.is_empty() {
        true => String::new(),
        false => format!(
            "The warm-up reaches into the timed steps, by change point, in {}: raise `measure.untimed_steps` by as many.\n\n",
            told.join(", ")
        ),
    }
}

pub(super) fn comparisons(summary: &RunSummary) -> String {
    if summary.comparisons.is_empty() {
        return String::new();
    }
    let ratios = summary.comparisons.iter().filter_map(|c| c.result.speed.as_ref());
    let ratio = bracketed("throughput ratio", ratios);
    let head = [
        "comparison",
        "valid trials and worst verdict, of both",
        &ratio,
        "target",
        "reached",
        memory_column(summary),
        "loss gap first / max",
        "gradient norm gap",
        "verdict",
    ];
    let mut rows = vec![heading(&head)];
    let mut notes = String::new();
    for c in &summary.comparisons {
        rows.push(comparison_row(summary, c));
        notes += &format!("\n{}", parity::section(c));
    }
    format!(
        "## Comparisons\n\n{}\nRatios are paired by round. Gaps are relative differences on equal weights and batches.\n{}{notes}",
        table(&rows),
        slow::of_comparisons(summary)
    )
}

/// The name of the column of peak memory's ratios: what all of them are of.
fn memory_column(summary: &RunSummary) -> &'static str {
    let with_ratio = summary.comparisons.iter().filter(|c| c.result.memory.is_some());
    let source = |id: &str| {
        let case = summary.cases.iter().find(|c| c.id == id)?;
        memory_source(valid(case).map(|t| &t.metrics))
    };
    let mut sources: Vec<Option<MemorySource>> = with_ratio.map(|c| source(&c.case)).collect();
    sources.dedup();
    match sources.as_slice() {
        [Some(MemorySource::Gpu)] => "peak GPU memory ratio",
        [Some(MemorySource::Rss)] => "peak RSS ratio",
        _ => "peak memory ratio",
    }
}

/// `5/5 VALID`: how many trials of a case are VALID, and the worst verdict among those that count.
fn standing(summary: &RunSummary, id: &str) -> String {
    let Some(case) = summary.cases.iter().find(|c| c.id == id) else { return NONE.into() };
    let all = case.trials.iter().filter(|t| !t.superseded).count();
    format!("{}/{all} {}", case.valid, verdict(case.verdict).replace('_', "\\_"))
}

fn comparison_row(summary: &RunSummary, c: &ComparisonSummary) -> Vec<String> {
    let few = c.result.speed.map(|e| e.n).filter(|n| *n < FEWEST_FOR_A_TARGET);
    let outcome = |o: Outcome| match (o, few) {
        (Outcome::Reached, _) => "yes".into(),
        (Outcome::Missed, _) => "no".into(),
        (Outcome::Unclear, Some(n)) => format!("unclear: pairs {n}, needed {FEWEST_FOR_A_TARGET}"),
        (Outcome::Unclear, None) => "unclear: inside the interval".into(),
    };
    vec![
        plain(&c.label),
        format!("{} / {}", standing(summary, &c.case), standing(summary, &c.against)),
        or_dash(c.result.speed.as_ref(), |e| estimate(e, times)),
        or_dash(c.target, |t| format!("≥ {}", times(t))),
        or_dash(c.outcome, outcome),
        or_dash(c.result.memory.as_ref(), |e| times(e.median)),
        gap(c.result.loss_gap),
        or_dash(c.result.loss_gap, |g| relative(g.grad_norm)),
        verdict(c.result.verdict).replace('_', "\\_"),
    ]
}

fn gap(gap: Option<LossGap>) -> String {
    or_dash(gap, |g| format!("{} / {}", relative(g.first), relative(g.max)))
}

fn relative(gap: f64) -> String {
    if gap == 0.0 { "0".into() } else { format!("{gap:.0e}") }
}

/// Every cell of every sweep, by its first trial.
pub(super) fn sweeps(summary: &RunSummary) -> String {
    let mut out = String::new();
    let mut partial = false;
    for sweep in &summary.sweeps {
        let head = ["cell", "real tokens/s, first trial", "peak memory", "verdict", ""];
        let mut rows = vec![heading(&head)];
        for cell in &sweep.cells {
            let note = match sweep.best.as_ref() == Some(&cell.case) {
                true => "**best**: it is compared".to_string(),
                false => plain(&cell.reasons.join("; ")),
            };
            rows.push(vec![
                code(&cell.case),
                or_dash(cell.real_tokens_per_s, number),
                or_dash(cell.peak_memory.map(|b| b as f64), mib),
                verdict(cell.verdict).replace('_', "\\_"),
                note,
            ]);
        }
        out += &format!("\n### Sweep of {}\n\n{}", code(&sweep.id), table(&rows));
        let (ran, left_out) = (sweep.cells.len(), left_out(summary, sweep));
        if left_out > 0 {
            partial = true;
            out += &format!(
                "\n{ran} of {} cells selected; the others are under *Skipped*, with why.\n",
                ran + left_out
            );
        }
    }
    if out.is_empty() {
        return out;
    }
    let ran = if partial { "Every cell that was selected ran once" } else { "Every cell ran once" };
    format!(
        "## Sweeps\n\n{ran}. The one whose first trial is VALID and fastest got the other trials and stands for the arm in \
         comparisons; cells that fail decide nothing while one runs.\n{out}"
    )
}

/// Cells of a sweep that did not run: left out on the command line, or without their program.
fn left_out(summary: &RunSummary, sweep: &SweepSummary) -> usize {
    let Some((arm, cell)) = sweep.id.split_once('/') else { return 0 };
    // `arm@values/cell` is a cell of the sweep `arm/cell`.
    let is_of = |what: &str| {
        what.split_once('/').is_some_and(|(label, rest)| {
            rest == cell && label.split_once('@').is_some_and(|(of, _)| of == arm)
        })
    };
    summary.skipped.iter().filter(|s| is_of(&s.what)).count()
}

pub(super) fn ablation(summary: &RunSummary) -> String {
    if summary.ablations.is_empty() {
        return String::new();
    }
    let ratios = summary.ablations.iter().filter_map(|a| a.result.speed.as_ref());
    let mut rows = vec![heading(&[
        "seam off",
        "base",
        &bracketed("throughput, off over on", ratios),
        "peak memory, off over on",
        "loss gap first / max",
        "verdict",
    ])];
    let mut sorted: Vec<_> = summary.ablations.iter().collect();
    let key = |r: &Compared| r.speed.map_or(f64::INFINITY, |e| e.median);
    sorted.sort_by(|a, b| key(&a.result).total_cmp(&key(&b.result)));
    let mut notes = String::new();
    // Of a design with many combinations, the single seams and all of them; the division has the rest.
    let many = |off: &str| off.contains('+') && !summary.divisions.iter().any(|d| d.all_off() == off);
    for a in sorted.into_iter().filter(|a| !many(&a.off)) {
        rows.push(vec![
            code(&a.off),
            code(&a.of),
            or_dash(a.result.speed.as_ref(), |e| estimate(e, times)),
            or_dash(a.result.memory.as_ref(), |e| times(e.median)),
            gap(a.result.loss_gap),
            verdict(a.result.verdict).replace('_', "\\_"),
        ]);
        for reason in &a.result.reasons {
            notes += &format!("- {}: {}\n", code(&a.case), plain(reason));
        }
    }
    if !notes.is_empty() {
        notes = format!("\n{notes}");
    }
    format!(
        "## Ablation\n\n{}\nOne seam at a time runs at its unfused variant; a ratio below 1 is what its fused variant brings. Ratios of single seams do not multiply to the ratio of all.\n{notes}{}",
        table(&rows),
        plot(Plot::Ablation, "Throughput with each seam off, relative to all seams on", summary)
    ) + &super::division::division(summary)
}

pub(super) fn loss(summary: &RunSummary) -> String {
    let image = plot(Plot::Loss, "Loss of every step, by arm, method and batch geometry", summary);
    if image.is_empty() {
        image
    } else {
        format!(
            "## Loss\n{image}\nMedian over VALID trials. Arms that do the same work have the same curve: the lines then lie on one another, the first arm's widest.\n"
        )
    }
}

fn with_figures(summary: &RunSummary) -> impl Iterator<Item = &CaseSummary> {
    summary.cases.iter().filter(|c| c.valid > 0)
}

fn trial_median(c: &CaseSummary, f: impl Fn(&crate::TrialMetrics) -> Option<u64>) -> Option<f64> {
    let valid = c.trials.iter().filter(|t| t.verdict == Verdict::Valid);
    median(&valid.filter_map(|t| f(&t.metrics)).map(|b| b as f64).collect::<Vec<_>>())
}

pub(super) fn memory(summary: &RunSummary) -> String {
    let mut rows = vec![heading(&[
        "case",
        "sampled peak RSS",
        "reported peak RSS (VmHWM)",
        "planned",
        "planned / peak",
        "peak GPU memory",
    ])];
    for c in with_figures(summary) {
        let planned = c.planned_bytes.map(|b| b as f64);
        rows.push(vec![
            code(&c.id),
            or_dash(trial_median(c, |m| m.peak_rss_sampled), mib),
            or_dash(trial_median(c, |m| m.peak_rss_reported), mib),
            or_dash(planned, mib),
            or_dash(planned.zip(trial_median(c, |m| m.peak_memory())).map(|(p, peak)| p / peak), percent),
            or_dash(trial_median(c, |m| m.peak_gpu_bytes), mib),
        ]);
    }
    if rows.len() == 1 {
        return String::new();
    }
    format!(
        "## Memory\n\n{}\nMedians over VALID trials. Planned is what an arm plans for its buffers; the peak, of the GPU where the arm has memory there and else the resident set, also holds the program, its libraries and the data.\n{}{}",
        table(&rows),
        plot(Plot::Memory, "Peak memory of every case, and the planned bytes", summary),
        plot(Plot::Tradeoff, "Throughput of every case over its peak memory", summary)
    )
}

pub(super) fn tokens(summary: &RunSummary) -> String {
    let once = |c: &CaseSummary| {
        let m = c.trials.iter().find(|t| t.is_valid()).map(|t| &t.metrics)?;
        Some(m.unique_tokens? as f64 / m.timed_tokens.real as f64)
    };
    let counted = with_figures(summary).any(|c| once(c).is_some());
    let mut head = vec!["case", "slots/s", "real tokens/s", "loss tokens/s", "real/slots"];
    head.extend(counted.then_some("unique/real"));
    let mut rows = vec![heading(&head)];
    for c in with_figures(summary) {
        let rate = |e: Option<crate::stats::Estimate>| or_dash(e, |e| number(e.median));
        rows.push(vec![
            code(&c.id),
            rate(c.slots_per_s),
            rate(c.real_tokens_per_s),
            rate(c.loss_tokens_per_s),
            or_dash(c.packing_efficiency, percent),
        ]);
        if counted {
            rows.last_mut().expect("just added").push(or_dash(once(c), percent));
        }
    }
    if rows.len() == 1 {
        return String::new();
    }
    let unique = match counted {
        true => {
            " *Unique* tokens are those of distinct samples among the timed steps: what comes again in another epoch is not counted again."
        }
        false => "",
    };
    format!(
        "## Tokens and packing\n\n{}\n*Slots* are computed positions, padding included; *real* tokens belong to a sample; *loss* tokens are learned. Throughput means real tokens.{unique}\n{}",
        table(&rows),
        plot(Plot::Packing, "Share of real tokens and padding by batch geometry", summary)
    )
}

pub(super) fn matmul(summary: &RunSummary) -> String {
    let mut rows =
        vec![heading(&["case", "GEMM share of a step", "GEMM GFLOP/s", "how found", "model GFLOP/s", "CPU"])];
    for c in with_figures(summary) {
        rows.push(vec![
            code(&c.id),
            or_dash(c.gemm_share, percent),
            or_dash(c.gemm_gflops, number),
            or_dash(c.gemm_method.as_ref(), |m| plain(m)),
            or_dash(c.model_gflops, number),
            or_dash(c.cpu_percent, |p| format!("{p:.0} %")),
        ]);
    }
    if rows.len() == 1 {
        return String::new();
    }
    format!(
        "## Matrix products\n\n{}\n*Measured*: a clock around every product of a linear layer; those inside attention count as attention. *Replayed*: the step's products, attention's included, run alone afterwards. Model GFLOP/s is the work that the real tokens ask for (see below) over the window time. CPU is in percent of one core, over the timed steps.\n",
        table(&rows)
    )
}

/// Share of the peak, power and energy of every case; nothing where none is known.
pub(super) fn efficiency(summary: &RunSummary) -> String {
    let head = ["case", "MFU", "model GFLOP/s", "peak GFLOP/s", "mean power", "energy of 1,000 real tokens"];
    let mut rows = vec![heading(&head)];
    let mut sources: Vec<&str> = Vec::new();
    for c in with_figures(summary) {
        let Some(e) = &c.efficiency else { continue };
        sources.extend(e.peak_source.as_deref());
        rows.push(vec![
            code(&c.id),
            or_dash(e.mfu, percent),
            or_dash(c.model_gflops, number),
            or_dash(e.peak_gflops, number),
            or_dash(e.power_w, |w| format!("{} W", number(w))),
            or_dash(e.joules_per_token, |j| format!("{} J", number(j * 1e3))),
        ]);
    }
    if rows.len() == 1 {
        return String::new();
    }
    sources.sort_unstable();
    sources.dedup();
    let source = match sources.is_empty() {
        true => String::new(),
        false => format!(" Source of the peak: {}.", plain(&sources.join("; "))),
    };
    format!(
        "## Utilisation and energy\n\n{}\nMFU is the work that the real tokens ask for over what the device could do in that time.{source} Power is the GPU board's, from its energy counter where it has one, over the timed steps.\n",
        table(&rows)
    )
}
