//! The one error type of the project.
//!
//! An [`Error`] says what happened, where (a trail of contexts, outermost first when printed), and what to do
//! (a hint). Its [`Class`] decides the exit code of the binary, so that scripts can tell a typo from a full disk.

use std::fmt;
use std::path::Path;

/// `Result` with the project's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who has to act on an error; it fixes the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The command line or a config is wrong: exit code 2.
    Input,
    /// A file's contents are missing, damaged or do not fit together: exit code 3.
    Data,
    /// The machine refuses: disk, memory, device, network, permissions: exit code 4.
    Environment,
    /// A mistake in this program: exit code 70.
    Defect,
    /// Stopped on request; the same command goes on from there: exit code 75.
    Stopped,
}

impl Class {
    /// The process exit code of this class.
    pub fn exit_code(self) -> u8 {
        match self {
            Class::Input => 2,
            Class::Data => 3,
            Class::Environment => 4,
            Class::Defect => 70,
            Class::Stopped => 75,
        }
    }

    /// The class of an exit code; a mistake in this program where none has it.
    pub fn of_exit_code(code: u8) -> Self {
        let all = [Class::Input, Class::Data, Class::Environment, Class::Stopped];
        all.into_iter().find(|class| class.exit_code() == code).unwrap_or(Class::Defect)
    }
}

/// What went wrong, where, and what to do about it.
pub struct Error(Box<Inner>);

struct Inner {
    class: Class,
    message: String,
    trail: Vec<String>,
    hint: Option<String>,
    isolated: bool,
}

impl Error {
    /// An error of `class` with its message.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { class, message: message.into(), trail: Vec::new(), hint: None, isolated: false }))
    }

    /// The person's input is wrong.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Class::Input, message)
    }

    /// A file or data set is wrong.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Class::Data, message)
    }

    /// The machine refuses.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(Class::Environment, message)
    }

    /// This program is wrong.
    pub fn defect(message: impl Into<String>) -> Self {
        Self::new(Class::Defect, message)
    }

    /// The run was asked to stop.
    pub fn stopped() -> Self {
        Self::new(Class::Stopped, "stopped on request")
    }

    /// An operation on `path` failed in the operating system.
    pub fn io(doing: &str, path: &Path, cause: std::io::Error) -> Self {
        let class = match cause.kind() {
            std::io::ErrorKind::NotFound => Class::Input,
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => Class::Data,
            _ => Class::Environment,
        };
        let error = Self::new(class, format!("cannot {doing} {}: {cause}", path.display()));
        match cause.kind() {
            std::io::ErrorKind::IsADirectory => error.hint("a folder lies there, and a file is expected"),
            _ => error,
        }
    }

    /// The same about a file that was written before: that it is missing is damage, and no mistyped name.
    pub fn of_kept(mut self) -> Self {
        if self.0.class == Class::Input {
            self.0.class = Class::Data;
        }
        self
    }

    /// Adds what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Says that one piece of work failed by itself, and others beside it need not: its training diverged, it panicked.
    pub fn isolated(mut self) -> Self {
        self.0.isolated = true;
        self
    }

    /// Whether it is the failure of one piece of work.
    pub fn is_isolated(&self) -> bool {
        self.0.isolated
    }

    /// Adds lines below the message: the text that it is about.
    pub fn detail(mut self, text: impl AsRef<str>) -> Self {
        self.0.message.push('\n');
        self.0.message.push_str(text.as_ref());
        self
    }

    /// Adds where it happened; later calls are further out.
    pub fn context(mut self, place: impl Into<String>) -> Self {
        self.0.trail.push(place.into());
        self
    }

    /// The class, which fixes the exit code.
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// All of it on one line, without the hint: where, then what.
    pub fn plain(&self) -> String {
        let trail = self.0.trail.iter().rev().map(String::as_str);
        trail.chain([self.0.message.as_str()]).collect::<Vec<_>>().join(": ").replace('\n', " ")
    }

    /// What to do about it, where something is known.
    pub fn advice(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The innermost message, without contexts and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in self.0.trail.iter().rev() {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}", self.0.message)?;
        if let Some(hint) = &self.0.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:?}] {self}", self.0.class)
    }
}

impl std::error::Error for Error {}

/// candle's errors already carry the operation and both shapes; a call that knows more adds a context.
impl From<candle_core::Error> for Error {
    fn from(e: candle_core::Error) -> Self {
        Error::defect(format!("candle: {e}"))
    }
}

/// Adds a context to the error of a `Result`.
pub trait Place<T> {
    /// Says where the error happened; the closure runs only on failure.
    fn at<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Place<T> for std::result::Result<T, E> {
    fn at<S: Into<String>>(self, place: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.into().context(place()))
    }
}

/// The name in `valid` closest to `name`, if one is close enough to be a typo of it.
pub fn closest<'a>(name: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    valid
        .into_iter()
        .map(|v| (strsim::jaro_winkler(name, v), v))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, v)| v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_print_outermost_first_and_the_hint_last() {
        let e = Error::data("4 bytes missing").context("shard 2").context("pool").hint("fetch it again");
        assert_eq!(e.to_string(), "pool: shard 2: 4 bytes missing\nhint: fetch it again");
        assert_eq!(e.class().exit_code(), 3);
    }

    #[test]
    fn a_missing_file_is_a_wrong_name_but_for_one_that_was_kept() {
        let e = Error::io("open", Path::new("x"), std::io::ErrorKind::NotFound.into());
        assert_eq!((e.class(), e.of_kept().class()), (Class::Input, Class::Data));
        assert!(Error::io("read", Path::new("x"), std::io::ErrorKind::IsADirectory.into()).advice().is_some());
    }

    #[test]
    fn a_typo_finds_its_name_and_nonsense_finds_none() {
        assert_eq!(closest("fedprx", ["fedavg", "fedprox"]), Some("fedprox"));
        assert_eq!(closest("zzz", ["fedavg", "fedprox"]), None);
    }
}
