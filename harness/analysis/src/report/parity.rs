//! What tells the two sides of a comparison apart, setting by setting.

use chronibench_protocol::parity::ROUNDING;
use serde_json::Value;

use super::markdown::{code, heading, plain, table};
use crate::{compare::Compared, summary::ComparisonSummary};

/// One comparison: its sides, why it is not comparable, and a table of what is not equal.
pub(super) fn section(c: &ComparisonSummary) -> String {
    let result = &c.result;
    let mut out = format!("### {}\n\n{} over {}\n", plain(&c.label), code(&c.case), code(&c.against));
    for reason in &result.reasons {
        out += &format!("- {}\n", plain(reason));
    }
    let rows = rows(result);
    if !rows.is_empty() {
        let head = heading(&["setting", "case", "against", ""]);
        out += &format!("\n{}", table(&[vec![head], rows].concat()));
    }
    if !result.unreported.is_empty() {
        out += &format!("\nReported by neither side: {}.\n", names(&result.unreported));
    }
    out += &equal(result);
    out
}

/// The settings that are equal, by whose word: an arm may tell what it was asked, and not what it does.
fn equal(result: &Compared) -> String {
    let told: Vec<String> = result.told().cloned().collect();
    let kinds = [
        ("as told by both arms, which may repeat what they were asked", &told),
        ("as the harness checked batches and steps", &result.checked),
        ("as asked of both, where an arm does not tell", &result.asked),
    ];
    let kinds = || kinds.iter().filter(|(_, all)| !all.is_empty());
    if kinds().next().is_none() {
        return String::new();
    }
    let counts: Vec<String> = kinds().map(|(how, all)| format!("{} {how}", all.len())).collect();
    let lists: String = kinds().map(|(how, all)| format!("- {how}: {}\n", names(all))).collect();
    format!(
        "\n<details><summary>{} settings equal: {}</summary>\n\n{lists}\n</details>\n",
        result.identical.len(),
        counts.join(", ")
    )
}

fn rows(result: &Compared) -> Vec<Vec<String>> {
    let differences = result.differences.iter().map(|d| {
        let what = if d.declared { "declared difference" } else { "**undeclared difference**" };
        let what = match d.name.as_str() {
            ROUNDING => format!("{what}: rounding of weights in bf16"),
            _ => what.into(),
        };
        vec![code(&d.name), show(Some(&d.case)), show(Some(&d.against)), what]
    });
    let unobservable = result.unobservable.iter().map(|u| {
        let what = match u.name.as_str() {
            ROUNDING => "rounding of weights in bf16: not told by the other side",
            _ => "unobservable: one side alone reports it",
        };
        vec![code(&u.name), show(u.case.as_ref()), show(u.against.as_ref()), what.to_string()]
    });
    differences.chain(unobservable).collect()
}

fn show(value: Option<&Value>) -> String {
    match value {
        None => "–".into(),
        Some(Value::String(text)) => plain(text),
        Some(other) => plain(&other.to_string()),
    }
}

fn names(all: &[String]) -> String {
    all.iter().map(|n| code(n)).collect::<Vec<_>>().join(", ")
}
