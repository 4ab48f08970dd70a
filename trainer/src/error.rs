//! The one error of this library: what went wrong, where, and how to mend it.

use std::{fmt, path::Path};

use chronibench_protocol::event::Failure;

/// Something that the user can mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    what: String,
    at: String,
    hint: String,
    environment: bool,
}

/// Result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error about `at`: a file, a setting, a step.
    pub fn new(what: impl Into<String>, at: impl Into<String>) -> Self {
        Self { what: what.into(), at: at.into(), hint: String::new(), environment: false }
    }

    /// Adds how to mend it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Adds to how to mend it.
    pub fn hinted(self, more: impl fmt::Display) -> Self {
        let hint = if self.hint.is_empty() { more.to_string() } else { format!("{}; {more}", self.hint) };
        Self { hint, ..self }
    }

    /// Says in which larger thing it happened.
    pub fn within(self, outer: impl fmt::Display) -> Self {
        Self { at: format!("{outer}: {}", self.at), ..self }
    }

    /// Marks it as something that the machine lacks: a GPU, a library, memory.
    pub fn environment(self) -> Self {
        Self { environment: true, ..self }
    }

    /// Whether the machine lacks something, and settings and data are not to blame.
    pub fn is_environment(&self) -> bool {
        self.environment
    }

    /// A file that could not be read or written.
    pub fn io(path: &Path, e: &std::io::Error) -> Self {
        let hint = match e.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check the permissions",
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => {
                "make room on the disk; what was there before is as it was, and `--resume` goes on from it"
            }
            _ => "check the file and the disk",
        };
        Self::new(e.to_string(), path.display().to_string()).hint(hint)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  where: {}", self.what, self.at)?;
        if !self.hint.is_empty() {
            write!(f, "\n  mend:  {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure { what: e.what, at: e.at, hint: e.hint }
    }
}
