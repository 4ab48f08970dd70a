//! A profile as files.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{By, Profile, Row, Span, Table};
use crate::error::Error;

impl Profile {
    /// Writes `trace.json`, `profile.md`, `profile.csv` and `profile.json` to a folder, which is made.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<Vec<PathBuf>, Error> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, &e))?;
        let table = Table::of(self);
        let files = [
            ("trace.json", self.trace().to_string()),
            ("profile.md", self.markdown()),
            ("profile.csv", csv(&table)),
            ("profile.json", format!("{:#}\n", self.summary(&table))),
        ];
        let write = |(name, text): (&str, String)| {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(|e| Error::io(&path, &e))?;
            Ok(path)
        };
        files.into_iter().map(write).collect()
    }

    /// In the format of Chrome's `about:tracing`, which Perfetto reads too: times in µs from the first step on.
    pub fn trace(&self) -> Value {
        let begin = self
            .spans
            .iter()
            .map(|s| s.start_ns)
            .chain(self.steps.iter().map(|s| s.start_ns))
            .min()
            .unwrap_or(0);
        let us = |ns: u64| (ns - begin) as f64 / 1e3;
        let name = |kind: &str, tid: u32, name: &str| json!({"ph": "M", "name": kind, "pid": 0, "tid": tid, "args": {"name": name}});
        let mut events = vec![name("process_name", 0, &self.device), name("thread_name", STEPS, "steps")];
        let mut streams: Vec<u32> = self.spans.iter().map(|s| s.stream).collect();
        streams.sort_unstable();
        streams.dedup();
        let of_stream = if self.by == By::Wall { "calls" } else { "stream" };
        events.extend(
            streams.iter().map(|s| name("thread_name", FIRST_STREAM + s, &format!("{of_stream} {s}"))),
        );
        events.extend(self.steps.iter().map(|s| {
            json!({
                "ph": "X", "cat": "step", "name": format!("step {}", s.step), "pid": 0, "tid": STEPS,
                "ts": us(s.start_ns), "dur": us(s.end_ns) - us(s.start_ns), "args": {"step": s.step},
            })
        }));
        events.extend(self.spans.iter().map(|s| {
            json!({
                "ph": "X", "cat": s.seam, "name": s.name, "pid": 0, "tid": FIRST_STREAM + s.stream,
                "ts": us(s.start_ns), "dur": s.ns() as f64 / 1e3, "args": self.args(s),
            })
        }));
        json!({"displayTimeUnit": "ms", "otherData": {"by": self.by.name(), "clock": self.clock}, "traceEvents": events})
    }

    fn args(&self, s: &Span) -> Value {
        let mut args = json!({
            "seam": s.seam, "variant": s.variant, "kernel": s.kernel, "step": s.step, "graph": s.in_graph, "stream": s.stream,
        });
        match s.cost {
            Some(cost) => {
                args["bytes"] = cost.bytes.into();
                args["flops"] = cost.flops.into();
                if s.ns() > 0 {
                    args["percent_of_limit"] = (1e11 * self.limits.seconds(cost) / s.ns() as f64).into();
                }
            }
            None if s.part => args["cost"] = "that of the kernel before".into(),
            None => args["cost"] = "no model".into(),
        }
        args
    }

    /// The table with what to know of it.
    pub fn markdown(&self) -> String {
        let t = Table::of(self);
        let mut out = String::new();
        let steps = match &self.steps[..] {
            [one] => format!("Step {}", one.step),
            all => format!("Steps {} to {}, means", all[0].step, all[all.len() - 1].step),
        };
        let l = &self.limits;
        let _ = writeln!(out, "# Where a step goes\n");
        let _ = writeln!(out, "{steps}, on {}: {:.1} µs a step.", self.device, t.step_us);
        let _ = writeln!(out, "Times by {} ({}): {}.", self.by.name(), self.clock, self.by.meaning());
        let _ = writeln!(
            out,
            "Limits, measured in this process: {:.3} TB/s by a copy, {:.1} TFLOP/s by a {}; \
             a call's limit is the longer of moving its bytes and of computing.\n",
            l.bytes_a_second / 1e12,
            l.flops_a_second / 1e12,
            l.product
        );
        let _ = writeln!(
            out,
            "| seam | variant | kernel | calls | µs | % of step | MB | GFLOP | TB/s | TFLOP/s | % of limit |"
        );
        let _ = writeln!(out, "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|");
        for (all, rows) in &t.seams {
            let _ = writeln!(out, "{}", line(all, "**"));
            for row in rows {
                let _ = writeln!(out, "{}", line(row, ""));
            }
        }
        for (name, us) in
            [("nothing ran", t.idle_us), ("two at once", 0.0 - t.overlap_us), ("step", t.step_us)]
        {
            let _ = writeln!(out, "| **{name}** | | | | {us:.1} | {:.1} | | | | | |", 100.0 * us / t.step_us);
        }
        if !t.without_cost.is_empty() {
            let _ = writeln!(out, "\nNo model of bytes and FLOPs: {}.", t.without_cost.join(", "));
        }
        for note in &self.notes {
            let _ = writeln!(out, "\nNote: {note}.");
        }
        out
    }

    fn summary(&self, t: &Table) -> Value {
        json!({
            "by": self.by.name(),
            "clock": self.clock,
            "device": self.device,
            "bytes_a_second": self.limits.bytes_a_second,
            "flops_a_second": self.limits.flops_a_second,
            "product": self.limits.product,
            "steps": self.steps.iter().map(|s| json!({"step": s.step, "us": (s.end_ns - s.start_ns) as f64 / 1e3})).collect::<Vec<_>>(),
            "step_us": t.step_us,
            "idle_us": t.idle_us,
            "overlap_us": t.overlap_us,
            "seams": t.seams.iter().map(|(all, _)| all).collect::<Vec<_>>(),
            "kernels": t.seams.iter().flat_map(|(_, rows)| rows).collect::<Vec<_>>(),
            "no_model": t.without_cost,
            "notes": self.notes,
        })
    }
}

/// Track of the steps, and of the stream numbered 0.
const STEPS: u32 = 0;
const FIRST_STREAM: u32 = 1;

fn line(r: &Row, strong: &str) -> String {
    let number = |v: Option<f64>, digits| v.map_or_else(|| "–".into(), |v| format!("{v:.digits$}"));
    let some = |v: f64, unit: f64| number((v > 0.0).then_some(v / unit), 2);
    format!(
        "| {strong}{}{strong} | {} | {} | {:.1} | {:.1} | {:.1} | {} | {} | {} | {} | {} |",
        r.seam,
        r.variant,
        r.name,
        r.calls,
        r.us,
        100.0 * r.share,
        some(r.bytes, 1e6),
        some(r.flops, 1e9),
        number(r.terabytes_a_second(), 3),
        number(r.teraflops(), 1),
        number(r.of_limit().map(|v| 100.0 * v), 0),
    )
}

/// A row a kernel; a step in the mean. What is not known is empty.
fn csv(t: &Table) -> String {
    let mut out =
        String::from("seam,variant,kernel,calls,us,share,bytes,flops,tb_per_s,tflop_per_s,of_limit\n");
    for r in t.seams.iter().flat_map(|(_, rows)| rows) {
        let known = |v: Option<f64>| v.map_or_else(String::new, |v| v.to_string());
        let rates = [r.terabytes_a_second(), r.teraflops(), r.of_limit()].map(known).join(",");
        // Names have neither commas nor quotes: kernels' are identifiers of C++, but a template's arguments.
        let name = if r.name.contains([',', '"']) {
            format!("\"{}\"", r.name.replace('"', "\"\""))
        } else {
            r.name.clone()
        };
        let _ = writeln!(
            out,
            "{},{},{name},{},{},{},{},{},{rates}",
            r.seam, r.variant, r.calls, r.us, r.share, r.bytes, r.flops
        );
    }
    let _ = writeln!(out, "idle,,,,{},{},,,,,", t.idle_us, t.idle_us / t.step_us);
    out
}
