//! What did not run, in few lines: what has one reason is told together.

use chronibench_protocol::resolved::Skipped;

use crate::{
    judge::some,
    report::markdown::{code, plain},
};

/// Names with one reason, in the order of the first of each.
fn by_reason(skipped: &[Skipped]) -> Vec<(Vec<&str>, &Skipped)> {
    let mut groups: Vec<(Vec<&str>, &Skipped)> = Vec::new();
    for s in skipped {
        match groups.iter_mut().find(|(_, first)| (&first.why, &first.hint) == (&s.why, &s.hint)) {
            Some((names, _)) => names.push(&s.what),
            None => groups.push((vec![&s.what], s)),
        }
    }
    groups
}

/// For a terminal.
pub fn lines(skipped: &[Skipped]) -> Vec<String> {
    let line = |(names, of): (Vec<&str>, &Skipped)| {
        let names: Vec<String> = names.into_iter().map(String::from).collect();
        format!("skipped: {}: {} ({})", some(&names), of.why, of.hint)
    };
    by_reason(skipped).into_iter().map(line).collect()
}

/// A section of a report, empty where everything ran.
pub(crate) fn section(skipped: &[Skipped]) -> String {
    let item = |(names, of): (Vec<&str>, &Skipped)| {
        let them = if names.len() == 1 { "it" } else { "them" };
        let names: Vec<String> = names.into_iter().map(code).collect();
        format!("- {}: {}; to have {them}: {}\n", some(&names), plain(&of.why), plain(&of.hint))
    };
    let items: String = by_reason(skipped).into_iter().map(item).collect();
    if items.is_empty() { items } else { format!("## Skipped\n\n{items}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_told_once() {
        let skipped =
            |what: &str, why: &str| Skipped { what: what.into(), why: why.into(), hint: "do so".into() };
        let mut all: Vec<Skipped> = (0..84).map(|i| skipped(&format!("case-{i}"), "not selected")).collect();
        all.insert(1, skipped("trl", "no environment"));
        let told = lines(&all);
        assert_eq!(
            told,
            [
                "skipped: case-0, case-1, case-2, case-3 and 80 more: not selected (do so)",
                "skipped: trl: no environment (do so)"
            ]
        );
        assert!(section(&all).contains("- `trl`: no environment; to have it: do so\n"));
        assert!(section(&all).contains("`case-3` and 80 more: not selected; to have them: do so\n"));
        assert_eq!(section(&[]), "");
    }
}
