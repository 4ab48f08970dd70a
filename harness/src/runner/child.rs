//! Child processes, each in a process group of its own, which ends as a whole.

use std::{
    fs::File,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use chronibench_protocol::event::Failure;
use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

use super::orphans::{self, Mark};
use crate::{
    error::{AtPath, Error, Exit, Result},
    interrupt,
};

/// How often a waiting harness looks at its child.
pub const POLL: Duration = Duration::from_millis(20);

/// What every worker finds in its environment, whatever its arm.
///
/// glibc gives a freed block of some size back to the system at once, and the next step faults it in page by page.
/// An autograd arm allocates its activations anew at every step: half of its time went into that. No block on a map
/// of its own and no trimming keeps the pages. Other allocators ignore the variables.
pub const ENVIRONMENT: [(&str, &str); 2] =
    [("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "9223372036854775807")];

/// A child process that works for the harness, mostly this program run again.
pub struct Worker {
    child: std::process::Child,
    started: Instant,
    ended: bool,
    mark: Mark,
}

impl Worker {
    /// Starts `chronibench ARGS…` with its output in `dir/stdout.log` and `dir/stderr.log`.
    ///
    /// The thread count goes by the environment too: libraries that size their pool before an arm can say anything
    /// read it there. candle's own variable would overrule it.
    pub fn spawn(args: &[String], dir: &Path, threads: Option<usize>) -> Result<Self> {
        Self::spawn_program(&this_program()?, args, dir, threads)
    }

    /// Starts another program in the same way.
    pub fn spawn_program(
        program: &Path,
        args: &[String],
        dir: &Path,
        threads: Option<usize>,
    ) -> Result<Self> {
        Self::spawn_with(program, args, dir, threads, &[])
    }

    /// The same with some more variables.
    pub fn spawn_with(
        program: &Path,
        args: &[String],
        dir: &Path,
        threads: Option<usize>,
        variables: &[(String, String)],
    ) -> Result<Self> {
        let log = |name: &str| {
            let path = dir.join(name);
            // Appended to, so that cutting a log while it grows moves the writer back too.
            File::options().create(true).append(true).open(&path).at(&path)
        };
        orphans::adopt();
        let mark = Mark::new();
        let child = Command::new(program)
            .args(args)
            .envs(ENVIRONMENT)
            .env_remove("CANDLE_NUM_THREADS")
            .envs([mark.variable()])
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .envs(threads.map(|n| ("RAYON_NUM_THREADS", n.to_string())))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log("stdout.log")?)
            .stderr(log("stderr.log")?)
            .process_group(0)
            .spawn()
            .at(program)?;
        Ok(Self { child, started: Instant::now(), ended: false, mark })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Time since the spawn.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The exit status once the process has ended; processes that it left behind are ended too.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.group()), flags) {
            Ok(WaitStatus::StillAlive) => Ok(None),
            // Not reaped yet, so the group id cannot have been given to anybody else.
            _ => self.end().map(Some),
        }
    }

    /// Ends the whole group and reaps the worker.
    pub fn end(&mut self) -> Result<ExitStatus> {
        // An empty group is as good as an ended one.
        let _ = killpg(self.group(), Signal::SIGKILL);
        self.ended = true;
        let status = self.child.wait().at(Path::new("worker"));
        // Those that left the group have become children of this process.
        orphans::end(&self.mark);
        status
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

/// The program that is running.
pub fn this_program() -> Result<PathBuf> {
    std::env::current_exe().at(Path::new("chronibench"))
}

/// Waits until a worker has ended by itself.
///
/// # Errors
/// A signal came; the worker is ended then.
pub fn wait(worker: &mut Worker) -> Result<ExitStatus> {
    loop {
        if let Some(status) = wait_at_most(worker, Duration::MAX)? {
            return Ok(status);
        }
    }
}

/// Waits until a worker has ended by itself; one that has lived longer than `limit` is ended, and has no status.
fn wait_at_most(worker: &mut Worker, limit: Duration) -> Result<Option<ExitStatus>> {
    loop {
        if interrupt::requested() {
            worker.end()?;
            return Err(interrupt::error());
        }
        if let Some(status) = worker.poll()? {
            return Ok(Some(status));
        }
        if worker.elapsed() >= limit {
            worker.end()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// Runs a worker that says one thing on standard output: its answer, or a [`Failure`] with exit code 2 or 5.
///
/// # Errors
/// It fails, a signal came, or it has not ended within `limit`: that error is fatal, as a device or a file system hangs.
pub fn answer(args: &[String], dir: &Path, name: &str, limit: Duration) -> Result<String> {
    let logs = dir.join(format!("{name}-log"));
    if logs.exists() {
        // Of a harness that was killed: its worker's answer is none to this one's question.
        std::fs::remove_dir_all(&logs).at(&logs)?;
    }
    std::fs::create_dir_all(&logs).at(&logs)?;
    let mut worker = Worker::spawn(args, &logs, None)?;
    let Some(status) = wait_at_most(&mut worker, limit)? else {
        return Err(hung(name, &logs, limit));
    };
    let path = logs.join("stdout.log");
    let answer = std::fs::read_to_string(&path).at(&path)?;
    if status.success() {
        std::fs::remove_dir_all(&logs).at(&logs)?;
        return Ok(answer);
    }
    let exit = if status.code() == Some(Exit::Environment as i32) { Exit::Environment } else { Exit::Usage };
    match serde_json::from_str::<Failure>(&answer) {
        Ok(failure) => Err(Error::from_failure(exit, failure)),
        Err(_) => {
            let how = match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, signal) => format!("signal {}", signal.unwrap_or_default()),
            };
            let what = format!("the {name} step ended with {how}\n{}", stderr_tail(&logs));
            Err(Error::new(Exit::Trial, what, logs.display().to_string()))
        }
    }
}

fn hung(name: &str, logs: &Path, limit: Duration) -> Error {
    let what = format!("the {name} step did not end within {} s, and was ended", limit.as_secs_f64());
    let tail = stderr_tail(logs);
    let what = if tail.is_empty() { what } else { format!("{what}; its last words:\n{tail}") };
    Error::new(Exit::Trial, what, logs.display().to_string()).fatal().hint(
        "a GPU or a file system that hangs looks like this: see `nvidia-smi` and `dmesg`; where it merely takes long, raise helper_timeout_s of the scenario. `--resume` goes on with the run",
    )
}

/// The last lines that a worker wrote to standard error.
pub fn stderr_tail(dir: &Path) -> String {
    const LINES: usize = 20;
    let bytes = std::fs::read(dir.join("stderr.log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(8192)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
