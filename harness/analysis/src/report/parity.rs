//! What tells the two sides of a comparison apart, setting by setting.

use serde_json::Value;

use super::markdown::{code, heading, plain, table};
use crate::{compare::Compared, summary::ComparisonSummary};

/// One comparison: its sides, why it is not comparable, and a table of what is not identical.
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
    if !result.identical.is_empty() {
        out += &format!(
            "\n<details><summary>{} settings are identical</summary>\n\n{}\n\n</details>\n",
            result.identical.len(),
            names(&result.identical)
        );
    }
    out
}

fn rows(result: &Compared) -> Vec<Vec<String>> {
    let differences = result.differences.iter().map(|d| {
        let what = if d.declared { "declared difference" } else { "**undeclared difference**" };
        vec![code(&d.name), show(Some(&d.case)), show(Some(&d.against)), what.to_string()]
    });
    let unobservable = result.unobservable.iter().map(|u| {
        let what = "unobservable: one side alone reports it";
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
