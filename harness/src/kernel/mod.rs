//! `chronibench kernel`: every CUDA kernel checked, timed alone, and compared with references on the same shapes.
//!
//! Our kernels and the references run in processes of their own, on the protocol of every arm: ours first, then the
//! references, then some of ours again, so that a drift of the machine shows.

pub mod references;
pub mod store;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use chronibench_analysis::{
    kernels::{KernelSummary, terminal_table},
    skipped,
};
use chronibench_protocol::{
    Event, Record,
    kernels::{KernelCase, KernelHeader, KernelSpec, ResolvedKernels, SCHEMA, Side},
    record::{Line, Verdict},
    spec::PROTOCOL,
};
use chronicals_kernels::{
    cases::Workload,
    gpu::{
        self,
        bench::{FLUSH_BYTES, workloads},
        compile::Cache,
    },
};

use crate::{
    cli::KernelArgs,
    environment,
    error::{AtPath, Error, Exit, Result},
    interrupt,
    runner::{child::Worker, gpu::Gpu, watch},
    session,
};
use references::References;
use store::KernelStore;

/// No trial of kernels takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(1800);

/// Time between two looks at the process: rare, so that the clock of a kernel is left alone.
const INTERVAL: Duration = Duration::from_secs(1);

/// Runs everything and writes a run folder.
///
/// # Errors
/// Nothing matches, there is no GPU, or the folder cannot be written. A kernel or a reference that fails is a record.
pub fn run(args: &KernelArgs) -> Result<Exit> {
    let cases: Vec<KernelCase> =
        workloads().iter().filter(|w| args.op.as_ref().is_none_or(|t| w.op.contains(t))).map(case).collect();
    if cases.is_empty() {
        return Err(unmatched(args.op.as_deref().unwrap_or_default()));
    }
    let references = References::find(&args.references)?;
    interrupt::install();
    // Asked here, where a missing library is an error and no trial; the context ends at once.
    let failed = |e: gpu::GpuError| Error::environment(e.what, e.at).hint(e.hint);
    drop(gpu::Gpu::open(0, Cache::of_user()).map_err(failed)?);
    let nvml = Gpu::open().ok();
    let trials = plan(args, &cases, &references);
    let resolved = resolved(args, &trials, &references);
    let out = args.out.clone().unwrap_or_else(|| session::default_folder("kernels"));
    let store = KernelStore::create(&out, &resolved, &environment::describe(nvml.as_ref(), None)?)?;
    let mut summary = store.publish()?;
    for (position, trial) in trials.iter().enumerate() {
        eprintln!("{} ({} of {})", trial.spec.trial_id, position + 1, trials.len());
        match trial.run(&store, position as u32, nvml.as_ref()) {
            Err(e) if e.exit == Exit::Interrupted => {
                store.clean()?;
                eprintln!("interrupted; the finished trials are in {}", out.display());
                return Ok(Exit::Interrupted);
            }
            record => store.add(&record?)?,
        }
        summary = store.publish()?;
    }
    store.clean()?;
    print(&summary, &out);
    Ok(exit(&summary))
}

/// Rebuilds the report of an earlier run.
///
/// # Errors
/// The folder holds no run of kernels, or a file of it is damaged.
pub fn report(dir: &Path) -> Result<Exit> {
    let summary = KernelStore::open(dir)?.publish()?;
    print(&summary, dir);
    Ok(exit(&summary))
}

fn unmatched(text: &str) -> Error {
    let mut ops: Vec<&str> = workloads().iter().map(|w| w.op).collect();
    ops.dedup();
    ops.sort_unstable();
    ops.dedup();
    Error::usage("no operation's name contains this", format!("--op {text}"))
        .hint(format!("there are {}", ops.join(", ")))
}

fn case(w: &Workload) -> KernelCase {
    KernelCase {
        op: w.op.into(),
        case: w.case.clone(),
        dims: w.dims.iter().map(|(name, n)| (name.to_string(), *n as u64)).collect(),
        documents: w.documents.clone(),
        bytes: w.bytes,
        flops: w.flops,
    }
}

/// A process of a run.
pub struct Trial {
    /// Who runs.
    pub side: Side,
    /// What it is asked.
    pub spec: KernelSpec,
    /// Of references.
    pub python: Option<PathBuf>,
}

/// Ours, the references, and the first shape of each of our operations again.
fn plan(args: &KernelArgs, cases: &[KernelCase], references: &References) -> Vec<Trial> {
    let spec = |id: &str, cases: Vec<KernelCase>| KernelSpec {
        protocol: PROTOCOL.into(),
        trial_id: id.into(),
        cases,
        variant: args.variant.clone(),
        repetitions: args.repetitions,
        device: "cuda:0".into(),
        flush_bytes: FLUSH_BYTES as u64,
    };
    let native = |id: &str, cases| Trial { side: Side::Native, spec: spec(id, cases), python: None };
    let mut all = vec![native("000-native", cases.to_vec())];
    if let References::Python(python) = references {
        let asked = KernelSpec { variant: None, ..spec("001-references", references::cases(cases)) };
        all.push(Trial { side: Side::References, spec: asked, python: Some(python.clone()) });
        let first = |(i, c): &(usize, &KernelCase)| !cases[..*i].iter().any(|o| o.op == c.op);
        let again = cases.iter().enumerate().filter(first).map(|(_, c)| c.clone()).collect();
        all.push(native("002-native", again));
    }
    all
}

fn resolved(args: &KernelArgs, trials: &[Trial], references: &References) -> ResolvedKernels {
    let skipped = match references {
        References::None(skipped) => skipped.iter().cloned().collect(),
        References::Python(_) => Vec::new(),
    };
    ResolvedKernels {
        schema: SCHEMA.into(),
        name: "kernels".into(),
        title: "CUDA kernels, one by one, bf16".into(),
        op: args.op.clone(),
        variant: args.variant.clone(),
        repetitions: args.repetitions,
        references: args.references.clone(),
        order: trials.iter().map(|t| t.spec.trial_id.clone()).collect(),
        skipped,
    }
}

impl Trial {
    /// Runs it to its end, whatever that is, and returns its record.
    ///
    /// # Errors
    /// The harness itself fails or is interrupted. An arm that fails is a record, not an error.
    pub fn run(&self, store: &KernelStore, position: u32, gpu: Option<&Gpu>) -> Result<Record> {
        let dir = store.work(&self.spec.trial_id);
        std::fs::create_dir_all(&dir).at(&dir)?;
        let spec = dir.join("spec.json");
        std::fs::write(&spec, serde_json::to_vec_pretty(&self.spec).expect("plain data")).at(&spec)?;
        let mut record = store.record(&self.spec.trial_id)?;
        record.push(Line::Kernels(Box::new(KernelHeader {
            schema: SCHEMA.into(),
            side: self.side,
            position,
            started_at: jiff::Timestamp::now().to_string(),
            spec: self.spec.clone(),
        })));
        let files = ["--spec", "spec.json", "--events", "events.jsonl"];
        let file = |word: &str| match word.starts_with("--") {
            true => word.to_string(),
            false => dir.join(word).display().to_string(),
        };
        let files = files.map(file).to_vec();
        let mut worker = match &self.python {
            None => {
                let args = [["worker", "kernels"].map(String::from).to_vec(), files].concat();
                Worker::spawn(&args, &dir, None)?
            }
            Some(python) => {
                let program = references::write_program(&dir.join("program"))?.display().to_string();
                Worker::spawn_program(python, &[vec![program], files].concat(), &dir, None)?
            }
        };
        let exit = watch::watch(&mut worker, &dir, gpu, (LIMIT, INTERVAL), &mut |line| {
            if let Line::Event { event: Event::Kernel(row), .. } = &line {
                eprintln!("  {:<24} {:<28} {}", row.op, row.case, row.variant);
            }
            record.push(line);
        })?;
        record.push(Line::Exit(exit));
        std::fs::remove_dir_all(&dir).at(&dir)?;
        Ok(record)
    }
}

fn print(summary: &KernelSummary, dir: &Path) {
    let mut rows = terminal_table(summary).into_iter();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    if let Some(header) = rows.next() {
        table.set_header(header);
    }
    table.add_rows(rows);
    println!("{table}");
    for t in &summary.trials {
        if let Some(reason) = &t.reason {
            println!("{}: {reason}", t.id);
        }
    }
    for r in &summary.rows {
        if let Some(reason) = &r.reason {
            println!("{} {} {}: {reason}", r.op, r.case, r.variant);
        }
    }
    for line in skipped::lines(&summary.skipped) {
        println!("{line}");
    }
    println!("report: {}", dir.join("report.md").display());
}

/// What fails its check is worse than what does not run: its time would have been believed.
fn exit(summary: &KernelSummary) -> Exit {
    let ours = || summary.rows.iter().filter(|r| r.side == Side::Native).map(|r| r.verdict);
    if ours().any(|v| v == Verdict::Invalid) {
        Exit::NotValid
    } else if summary.verdict != Verdict::Valid {
        Exit::Trial
    } else {
        Exit::Pass
    }
}
