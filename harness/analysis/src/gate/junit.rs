//! JUnit's XML, which CI systems read: one test case a case of the gate.

use super::{GateReport, GateVerdict, change};

/// The report as a JUnit test suite. A FAIL of an advisory gate is told, and is no failure.
pub fn junit_xml(report: &GateReport) -> String {
    let count = |v: GateVerdict| report.cases.iter().filter(|c| c.verdict == v).count();
    let failures = if report.enforced { count(GateVerdict::Fail) } else { 0 };
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    out += &format!(
        "<testsuite name=\"chronibench gate {}\" tests=\"{}\" failures=\"{failures}\" errors=\"{}\" skipped=\"{}\">\n",
        escape(&report.scenario),
        report.cases.len(),
        count(GateVerdict::Invalid),
        count(GateVerdict::Inconclusive),
    );
    for case in &report.cases {
        let figures = case.looks.last().map(change).unwrap_or_default();
        let text = escape(&format!("{} {figures}", case.words()));
        let body = match case.verdict {
            GateVerdict::Pass => None,
            GateVerdict::Fail if report.enforced => Some(format!("<failure message=\"{text}\"/>")),
            GateVerdict::Fail => Some(format!("<system-out>advisory: {text}</system-out>")),
            GateVerdict::Invalid => Some(format!("<error message=\"{text}\"/>")),
            GateVerdict::Inconclusive => Some(format!("<skipped message=\"{text}\"/>")),
        };
        let head =
            format!("  <testcase classname=\"{}\" name=\"{}\"", escape(&report.scenario), escape(&case.case));
        out += &match body {
            None => format!("{head}/>\n"),
            Some(body) => format!("{head}>\n    {body}\n  </testcase>\n"),
        };
    }
    out + "</testsuite>\n"
}

/// Text inside an attribute or an element; what XML 1.0 has no place for becomes a space.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
