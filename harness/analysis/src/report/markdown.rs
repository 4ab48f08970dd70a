//! Small pieces of GitHub-flavoured Markdown.

/// A table; the first row is the heading. Cells must be escaped.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let line = |row: &[String]| format!("| {} |\n", row.join(" | "));
    let Some((head, body)) = rows.split_first() else { return String::new() };
    let rule = vec!["---".to_string(); head.len()];
    std::iter::once(line(head)).chain([line(&rule)]).chain(body.iter().map(|r| line(r))).collect()
}

/// A heading row.
pub(crate) fn heading(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}

/// Text of unknown origin on one line, with nothing in it that Markdown or HTML would act on.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '|' | '*' | '_' | '~' | '`' | '[' | ']' | '\\' | '#' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// A name as code.
pub(crate) fn code(name: &str) -> String {
    format!("`{}`", name.replace(['`', '\n'], " ").replace('|', "\\|"))
}

/// A plot beside the report.
pub(crate) fn image(file: &str, alt: &str) -> String {
    format!("![{alt}](plots/{file})\n")
}
