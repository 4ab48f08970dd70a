//! The one error of this crate: what went wrong, where, how to mend it, and the exit code it ends in.

use std::{fmt, path::Path};

use chronibench_protocol::event::Failure;

/// How the program ends; the numbers are part of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything ran and every trial is valid.
    Pass = 0,
    /// Slower than the baseline.
    Regression = 1,
    /// The command line, the scenario or the data set is wrong.
    Usage = 2,
    /// A trial or a comparison is invalid or not comparable.
    NotValid = 3,
    /// Neither a loss nor its absence could be shown.
    Inconclusive = 4,
    /// The machine lacks something: a file, a permission, a library.
    Environment = 5,
    /// A trial crashed or ran past its time limit.
    Trial = 6,
    /// A claim's verdict is not the one that its file expects.
    Claim = 7,
    /// A stored run is not what the harness wrote.
    Integrity = 8,
    /// Ctrl-C or a termination signal.
    Interrupted = 130,
}

/// Something that the user can mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Exit code it leads to.
    pub exit: Exit,
    /// What went wrong.
    pub what: String,
    /// File, setting or process.
    pub at: String,
    /// How to mend it; may be empty.
    pub hint: String,
    /// Lines of the file in question, drawn; may be empty.
    pub snippet: String,
    /// The machine hangs: what else could be done without comes to nothing either.
    pub fatal: bool,
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error about `at`.
    pub fn new(exit: Exit, what: impl Into<String>, at: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            at: at.into(),
            hint: String::new(),
            snippet: String::new(),
            fatal: false,
        }
    }

    /// A mistake in what the user wrote.
    pub fn usage(what: impl Into<String>, at: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what, at)
    }

    /// Something that the machine does not give.
    pub fn environment(what: impl Into<String>, at: impl Into<String>) -> Self {
        Self::new(Exit::Environment, what, at)
    }

    /// A file that could not be read or written.
    pub fn io(path: &Path, e: &std::io::Error) -> Self {
        let hint = match e.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check the permissions, or choose another place",
            std::io::ErrorKind::StorageFull => "free some space, or choose another disk",
            _ => "check the file and the disk",
        };
        Self::environment(e.to_string(), path.display().to_string()).hint(hint)
    }

    /// Adds how to mend it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Marks it as one that nothing can go on after.
    pub fn fatal(mut self) -> Self {
        self.fatal = true;
        self
    }

    /// An arm's or worker's own account of a failure.
    pub fn from_failure(exit: Exit, f: Failure) -> Self {
        Self::new(exit, f.what, f.at).hint(f.hint)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  where: {}", self.what, self.at)?;
        for line in self.snippet.lines() {
            write!(f, "\n  {line}")?;
        }
        if !self.hint.is_empty() {
            write!(f, "\n  mend:  {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Turns I/O results into errors that name the file.
pub trait AtPath<T> {
    /// Names the file that the operation was about.
    fn at(self, path: &Path) -> Result<T>;
}

impl<T> AtPath<T> for std::io::Result<T> {
    fn at(self, path: &Path) -> Result<T> {
        self.map_err(|e| Error::io(path, &e))
    }
}
