//! The page around a report's text.

use std::collections::BTreeMap;

use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html::push_html};

use super::charts::Chart;

/// The page of `markdown`; `plots` are drawn plots by file name, for where there is no chart and where scripts are off.
pub(super) fn page(markdown: &str, charts: &[Chart], plots: &[(String, String)]) -> String {
    let mut writer = Writer {
        charts,
        plots,
        title: String::new(),
        contents: Vec::new(),
        drawn: Vec::new(),
        events: Vec::new(),
    };
    writer.read(markdown);
    let mut body = String::new();
    push_html(&mut body, writer.events.into_iter());
    let body = numbers_to_the_right(&body);
    let contents: String = writer
        .contents
        .iter()
        .enumerate()
        .map(|(i, h)| format!("<a href=\"#s{i}\">{}</a>", escape(h)))
        .collect();
    let data: BTreeMap<&str, &Chart> = charts.iter().map(|c| (c.id, c)).collect();
    let data = serde_json::to_string(&data).expect("plain data").replace('<', "\\u003c");
    let script = if charts.is_empty() {
        String::new()
    } else {
        let script = include_str!("script.js");
        format!(
            "<script type=\"application/json\" id=\"data\">{data}</script>\n<script>\n{script}</script>\n"
        )
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n<nav aria-label=\"Sections\">{contents}</nav>\n{body}</main>\n{script}</body>\n</html>\n",
        escape(&writer.title),
        include_str!("style.css"),
    )
}

struct Writer<'a> {
    charts: &'a [Chart],
    plots: &'a [(String, String)],
    title: String,
    /// Sections so far; the last is the one that is being written.
    contents: Vec<String>,
    /// Charts that stand in the page already.
    drawn: Vec<&'static str>,
    events: Vec<Event<'a>>,
}

impl<'a> Writer<'a> {
    fn read(&mut self, markdown: &str) {
        let mut events = Parser::new_ext(markdown, Options::ENABLE_TABLES).map(Event::into_static);
        while let Some(event) = events.next() {
            match event {
                Event::Start(Tag::Heading { level, .. }) => self.heading(level, &mut events),
                Event::Start(Tag::Image { dest_url, .. }) => {
                    let alt = text_until(&mut events, |e| *e == TagEnd::Image);
                    self.figure(dest_url.trim_start_matches("plots/"), &alt);
                }
                Event::Start(Tag::Link { dest_url, .. }) if !is_safe(&dest_url) => {
                    self.events.push(Event::Text(text_until(&mut events, |e| *e == TagEnd::Link).into()));
                }
                Event::Start(Tag::Table(alignment)) => {
                    self.raw("<div class=\"scroll\" tabindex=\"0\">".into());
                    self.events.push(Event::Start(Tag::Table(alignment)));
                }
                Event::End(TagEnd::Table) => {
                    self.events.push(Event::End(TagEnd::Table));
                    self.raw("</div>".into());
                }
                Event::Start(Tag::HtmlBlock) | Event::End(TagEnd::HtmlBlock) => {}
                Event::Html(html) | Event::InlineHtml(html) => self.html(&html),
                other => self.events.push(other),
            }
        }
        self.end_of_section();
    }

    /// Charts without a drawn plot stand at the end of their section.
    fn end_of_section(&mut self) {
        let Some(section) = self.contents.last().cloned() else { return };
        for chart in self.charts.iter().filter(|c| c.section == section) {
            if !self.drawn.contains(&chart.id) {
                self.figure(chart.id, &chart.title);
            }
        }
    }

    fn raw(&mut self, html: String) {
        self.events.push(Event::Html(html.into()));
    }

    fn html(&mut self, html: &str) {
        match is_own(html.trim()) {
            true => self.raw(html.to_string()),
            false => self.events.push(Event::Text(CowStr::from(html.to_string()))),
        }
    }

    fn heading(&mut self, level: HeadingLevel, events: &mut dyn Iterator<Item = Event<'static>>) {
        let text = text_until(events, |e| matches!(e, TagEnd::Heading(_)));
        match level {
            HeadingLevel::H1 => self.title = text.clone(),
            HeadingLevel::H2 => {
                self.end_of_section();
                self.contents.push(text.clone());
            }
            _ => {}
        }
        let id = match level {
            HeadingLevel::H2 => format!(" id=\"s{}\"", self.contents.len() - 1),
            _ => String::new(),
        };
        self.raw(format!("<{level}{id}>{}</{level}>\n", escape(&text)));
    }

    /// A chart that the script draws, with the drawn plot where scripts are off; else that alone.
    fn figure(&mut self, file: &str, alt: &str) {
        let svg = self.plots.iter().find(|(name, _)| name == file).map_or("", |(_, svg)| svg);
        let html = match self.charts.iter().find(|c| c.id == file) {
            Some(chart) => {
                self.drawn.push(chart.id);
                format!(
                    "<figure data-chart=\"{file}\"><figcaption>{}</figcaption><noscript>{svg}</noscript></figure>\n",
                    escape(&chart.title)
                )
            }
            None if svg.is_empty() => escape(alt),
            None => format!("<figure>{svg}</figure>\n"),
        };
        self.raw(html);
    }
}

/// All text up to the end of an element.
fn text_until(events: &mut dyn Iterator<Item = Event<'static>>, end: impl Fn(&TagEnd) -> bool) -> String {
    let mut text = String::new();
    for event in events {
        match event {
            Event::End(tag) if end(&tag) => break,
            Event::Text(t) | Event::Code(t) => text += &t,
            _ => {}
        }
    }
    text
}

/// Links to pages, and to places in this one or beside it; nothing that runs.
fn is_safe(link: &str) -> bool {
    let scheme = link.split(['/', '#', '?']).next().unwrap_or_default();
    !scheme.contains(':') || link.starts_with("https://") || link.starts_with("http://")
}

/// Raw HTML that the harness itself writes: what folds a part away. Any other is shown as text.
fn is_own(html: &str) -> bool {
    let summary = html.strip_prefix("<details><summary>").and_then(|s| s.strip_suffix("</summary>"));
    html == "</details>" || summary.is_some_and(|text| !text.contains(['<', '>']))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Cells that begin with a figure are set to the right, and verdicts get their colour.
fn numbers_to_the_right(html: &str) -> String {
    let mut out = String::with_capacity(html.len());
    let mut parts = html.split("<td>");
    out += parts.next().unwrap_or_default();
    for part in parts {
        let cell = part.split("</td>").next().unwrap_or_default();
        let first = cell.chars().next().unwrap_or(' ');
        let number = (first.is_ascii_digit() || first == '–') && cell.chars().count() < 40;
        // A verdict may say in brackets whose figures it rests on.
        out += match cell.split(" (").next().unwrap_or(cell) {
            _ if number => "<td class=\"n\">",
            "VALID" | "REPRODUCED" | "yes" => "<td class=\"ok\">",
            "INVALID" | "NOT_COMPARABLE" | "ERROR" | "TIMEOUT" | "REFUTED" | "INCONSISTENT" => {
                "<td class=\"bad\">"
            }
            _ => "<td>",
        };
        out += part;
    }
    out
}
