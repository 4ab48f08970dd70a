//! The report as one page: in a real browser it draws every chart, in light and in dark, and says nothing on the console.
//!
//! Skipped where there is no Chromium, unless `CHRONIBENCH_REQUIRE_BROWSER` is set.

mod common;

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use chronibench::store::{Store, Stored};
use chronibench_analysis::{
    html, report, shapley::Division, shapley::Factor, summarise, summary::DivisionSummary,
};
use common::{HEAD, Ran};

const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
const REQUIRE: &str = "CHRONIBENCH_REQUIRE_BROWSER";

fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).flat_map(|dir| NAMES.map(|n| dir.join(n))).find(|p| p.is_file());
    assert!(
        found.is_some() || std::env::var_os(REQUIRE).is_none(),
        "{REQUIRE} is set, and there is no Chromium"
    );
    if found.is_none() {
        eprintln!("skipped: no Chromium on the PATH");
    }
    found
}

fn published(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../reports").join(name)
}

fn page_of(run: &Path) -> String {
    let (_, files) = Store::open(run).unwrap().render().unwrap();
    let (_, bytes) = files.into_iter().find(|(name, _)| name == "report.html").unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A published ablation with a division of its gain, as a factorial design has it.
fn with_division(run: &Path) -> String {
    let Stored { resolved, environment, logs } = Store::open(run).unwrap().load().unwrap();
    let mut summary = summarise(&resolved, &logs);
    let factor = |f: f64| Factor { factor: f, interval: Some((f * 0.95, f * 1.05)) };
    summary.divisions.push(DivisionSummary {
        of: "chronicals/full/on".into(),
        division: Division {
            players: vec!["attention".into(), "norm".into()],
            factors: vec![factor(1.4), factor(0.98)],
            total: factor(1.37),
            interactions: Vec::new(),
            cumulative: vec![1.0, 1.4, 1.37],
            orders: Vec::new(),
        },
    });
    let plots = report::plots(&resolved, &summary, &logs);
    let text = report::report_md(&resolved, &summary, &environment);
    html::report_html(&resolved, &summary, &logs, &text, &plots)
}

/// Runs the browser on a page; what it prints, and what it logs.
fn browse(browser: &Path, page: &str, args: &[&str]) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.html");
    std::fs::write(&file, page).unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--hide-scrollbars", "--virtual-time-budget=4000", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .args(args)
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The page after its script, as a user has left it who pressed every button and touched every chart.
fn used(page: &str) -> String {
    let script = "<script>addEventListener('load', () => {\n\
        for (const b of [...document.querySelectorAll('.controls button')]) { b.click(); if (!b.className) b.click(); }\n\
        const at = { bubbles: true, clientX: 300, clientY: 200 };\n\
        for (const n of document.querySelectorAll('figure.live [tabindex]')) n.dispatchEvent(new PointerEvent('pointermove', at));\n\
        });</script>\n</body>";
    page.replace("</body>", script)
}

/// Every figure of the page has a drawing with marks of a series in it.
fn assert_drawn(dom: &str, wanted: &[&str]) {
    let figures: Vec<&str> = dom.split("<figure data-chart=\"").skip(1).collect();
    let drawn = |id: &str| {
        let of = figures.iter().find(|f| f.starts_with(&format!("{id}\"")));
        let of = of.unwrap_or_else(|| panic!("no chart {id}"));
        let svg = of.split("</figure>").next().unwrap().rsplit("</noscript>").next().unwrap();
        svg.matches("var(--c").count() > 1 && svg.contains("<svg") && svg.contains("<text")
    };
    wanted.iter().for_each(|id| assert!(drawn(id), "chart {id} is empty"));
    assert_eq!(dom.matches("class=\"tip\"").count(), figures.len());
    assert!(dom.contains("class=\"tip\" style=\"display: block"), "no chart answers to the pointer");
}

/// Width, height and the pixels of an 8-bit PNG, as RGB.
fn pixels(path: &Path) -> (usize, usize, Vec<[u8; 3]>) {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (width, height, channels) = (word(16), word(20), if bytes[25] == 6 { 4 } else { 3 });
    let (mut packed, mut at) = (Vec::new(), 8);
    while at < bytes.len() {
        let (length, kind) = (word(at), &bytes[at + 4..at + 8]);
        if kind == b"IDAT" {
            packed.extend_from_slice(&bytes[at + 8..at + 8 + length]);
        }
        at += length + 12;
    }
    let mut raw = Vec::new();
    flate2::read::ZlibDecoder::new(packed.as_slice()).read_to_end(&mut raw).unwrap();
    let stride = width * channels;
    let mut above = vec![0u8; stride];
    let mut out = Vec::with_capacity(width * height);
    for line in raw.chunks(stride + 1) {
        let mut row = line[1..].to_vec();
        for i in 0..row.len() {
            let (a, b) = (if i < channels { 0 } else { row[i - channels] }, above[i]);
            let c = if i < channels { 0 } else { above[i - channels] };
            let paeth = || {
                let p = i32::from(a) + i32::from(b) - i32::from(c);
                [a, b, c].into_iter().min_by_key(|v| (p - i32::from(*v)).abs()).unwrap()
            };
            let predicted = match line[0] {
                0 => 0,
                1 => a,
                2 => b,
                3 => ((u16::from(a) + u16::from(b)) / 2) as u8,
                _ => paeth(),
            };
            row[i] = row[i].wrapping_add(predicted);
        }
        out.extend(row.chunks(channels).map(|p| [p[0], p[1], p[2]]));
        above = row;
    }
    (width, height, out)
}

/// A screenshot has this ground, and a good many pixels of the first arm's colour.
fn assert_seen(browser: &Path, page: &str, args: &[&str], (ground, first): ([u8; 3], [u8; 3])) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("page.png");
    let shot = format!("--screenshot={}", file.display());
    let (_, log) = browse(browser, page, &[args, &["--window-size=1100,2400", &shot]].concat());
    assert!(!log.contains("CONSOLE"), "{log}");
    let (width, height, seen) = pixels(&file);
    assert_eq!((width, height), (1100, 2400));
    assert_eq!(seen[0], ground, "{args:?}");
    let count = |colour: [u8; 3]| seen.iter().filter(|p| **p == colour).count();
    assert!(count(first) > 2_000, "{} pixels of the first arm's colour, {args:?}", count(first));
}

#[test]
fn a_page_draws_its_charts_in_a_browser() {
    let Some(browser) = browser() else { return };
    let gpu = page_of(&published("2026-11-26-dense-2048-h100"));
    let ablation = with_division(&published("2026-11-28-ablation-cpu"));
    let charts: [(&str, &[&str]); 2] = [
        (
            &gpu,
            &[
                "throughput.svg",
                "shapes",
                "loss.svg",
                "memory.svg",
                "timeline",
                "packing.svg",
                "mfu",
                "power",
                "energy",
                "power-over-time",
            ],
        ),
        (
            &ablation,
            &[
                "throughput.svg",
                "ablation.svg",
                "waterfall.svg",
                "shapley",
                "loss.svg",
                "memory.svg",
                "timeline",
            ],
        ),
    ];
    for (page, wanted) in charts {
        let (dom, log) = browse(&browser, &used(page), &["--dump-dom", "--window-size=1100,900"]);
        assert!(!log.contains("CONSOLE"), "{log}");
        assert_drawn(&dom, wanted);
        // On a telephone.
        let (dom, log) = browse(&browser, &used(page), &["--dump-dom", "--window-size=500,900"]);
        assert!(!log.contains("CONSOLE"), "{log}");
        assert_drawn(&dom, wanted);
        assert_seen(&browser, page, &[], ([255, 255, 255], [0, 0x72, 0xb2]));
        assert_seen(&browser, page, &["--force-dark-mode"], ([0x0f, 0x14, 0x19], [0x4b, 0xa3, 0xdd]));
    }
}

#[test]
fn a_run_has_its_page_and_nothing_in_it_is_fetched() {
    let arms = "arms:\n  fast: { runner: mock, mock: { step_ms: 20 } }\n  slow: { runner: mock, mock: { step_ms: 40 } }\n";
    let text = format!("{HEAD}{arms}only: [{{ method: full }}]\n")
        .replace("Mock arms", "\"<script>alert(1)</script> & more\"");
    let ran = Ran::new(&text, &["--trials", "1"]);
    let page = ran.read("report.html");
    assert!(page.contains("&lt;script&gt;alert(1)") && !page.contains("<script>alert"), "{}", &page[..2000]);
    for word in ["http://", "https://", "src=", "url(", "@import", "fetch("] {
        let own = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!own.contains(word), "{word}");
    }
    assert!(page.len() < 300_000, "{}", page.len());
    assert!(page.contains("data-chart=\"throughput.svg\"") && page.contains("data-chart=\"loss.svg\""));
    if let Some(browser) = browser() {
        let (dom, log) = browse(&browser, &used(&page), &["--dump-dom"]);
        assert!(!log.contains("CONSOLE"), "{log}");
        assert_drawn(&dom, &["throughput.svg", "loss.svg", "memory.svg", "packing.svg", "shapes"]);
    }
}

/// What a browser says of a broken page is seen: the checks above are not blind.
#[test]
fn an_error_of_a_page_is_seen() {
    let Some(browser) = browser() else { return };
    let (_, log) = browse(&browser, "<!DOCTYPE html><script>nothing.at.all()</script>", &["--dump-dom"]);
    assert!(log.contains("CONSOLE"), "{log}");
}
