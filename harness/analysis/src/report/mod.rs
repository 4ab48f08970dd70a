//! The report for people: `report.md` and its plots.

pub(crate) mod appendix;
mod audits;
mod division;
pub(crate) mod markdown;
mod parity;
pub(crate) mod plots;
mod reproduce;
mod results;
mod slow;

use chronibench_protocol::record::{Resolved, Verdict};

use crate::{format::verdict, gate::pairs, skipped, summary::RunSummary};
use markdown::{code, plain};
pub use plots::plots;

/// `report.md`, GitHub-flavoured, with the plots as `plots/*.svg` beside it. `environment` is any JSON object; its leaves
/// become rows of a table.
pub fn report_md(resolved: &Resolved, summary: &RunSummary, environment: &serde_json::Value) -> String {
    let parts = [
        opening(resolved, summary),
        results::throughput(summary),
        results::sweeps(summary),
        results::comparisons(summary),
        results::ablation(summary),
        results::loss(summary),
        results::memory(summary),
        results::tokens(summary),
        results::matmul(summary),
        results::efficiency(summary),
        audits::audits(summary),
        appendix::failures(summary),
        appendix::rounded_away(summary),
        skipped::section(&summary.skipped),
        appendix::method(summary),
        appendix::environment(environment),
        reproduce::reproduce(resolved, environment),
    ];
    let mut text = parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("\n");
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// What a reader of a run's table must know beside it, in lines for a terminal: the report says it too.
pub fn notes(resolved: &Resolved, summary: &RunSummary) -> Vec<String> {
    audits::not_made(resolved, summary).into_iter().chain(slow::lines(summary)).collect()
}

/// What ran, or was to: trials of each case, or pairs where two sides took turns until they were decided.
fn ran(resolved: &Resolved, summary: &RunSummary) -> String {
    let cases = resolved.cases.len();
    match pairs::played(summary) {
        None => format!("{cases} cases of {} trials each, interleaved", resolved.trials),
        Some((few, most)) if few == most => format!("{} cases of {most} pairs each, in turns", cases / 2),
        Some((few, most)) => format!("{} cases of {few} to {most} pairs, in turns", cases / 2),
    }
}

fn opening(resolved: &Resolved, summary: &RunSummary) -> String {
    let mut out = format!("# {}\n\n{}", plain(&resolved.title), verdict_line(summary));
    // In the line of the verdict, which the index of published runs takes over.
    out += &audits::not_made(resolved, summary).map_or_else(String::new, |what| format!(" · **{what}**"));
    out.push('\n');
    if !resolved.description.trim().is_empty() {
        out += &format!("\n{}\n", resolved.description.trim());
    }
    let (data, model, measure) = (&resolved.data, &resolved.model, &resolved.measure);
    let learned = data.learned();
    let samples = match data.overlong.as_str() {
        "wrapped" => format!("samples joined and cut every {} tokens", data.max_length),
        "truncate" => format!("samples over {} tokens cut", data.max_length),
        _ => format!("samples over {} tokens refused", data.max_length),
    };
    let pretrained = match model.pretrain_steps {
        0 => String::new(),
        n => format!(" and {n} steps of full fine-tuning that all arms share"),
    };
    let weights = match &model.weights {
        None => format!("from seed {}", model.init_seed),
        Some(given) => format!("of {} (SHA-256 {:.12})", code(&given.path), given.sha256),
    };
    let mut arms: Vec<String> = resolved.cases.iter().map(|c| code(&c.arm)).collect();
    let mut seen = std::collections::BTreeSet::new();
    arms.retain(|a| seen.insert(a.clone()));
    out += &format!(
        "\n- **Arms**: {}; {}, every trial in a process of its own\n\
         - **Model**: {}, starting weights {weights}{pretrained}\n\
         - **Data**: {}, template {}, {samples}, loss on {learned}, order from seed {}\n\
         - **Steps**: {} untimed, then {} timed in windows of {}\n",
        arms.join(", "),
        ran(resolved, summary),
        code(&model.config),
        code(&data.path),
        code(&data.template),
        data.seed,
        measure.untimed_steps,
        measure.timed_steps,
        measure.window_steps
    );
    out
}

fn verdict_line(summary: &RunSummary) -> String {
    let compared =
        summary.comparisons.iter().map(|c| &c.result).chain(summary.ablations.iter().map(|a| &a.result));
    let results: Vec<Option<Verdict>> = compared.map(|r| r.verdict).collect();
    let valid = results.iter().filter(|v| **v == Some(Verdict::Valid)).count();
    let mut out = format!(
        "**{}** · {} of {} trials are VALID",
        verdict(summary.verdict),
        summary.trials_valid,
        summary.trials_stored
    );
    if !results.is_empty() {
        out += &format!(" · {valid} of {} comparisons are VALID", results.len());
    }
    if summary.trials_stored < summary.trials_planned {
        out += &format!(
            " · **partial run**: {} of {} planned trials are stored",
            summary.trials_stored, summary.trials_planned
        );
    }
    out
}
