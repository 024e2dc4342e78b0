//! Why a command failed, and with which exit code.

use std::fmt;
use std::io;

/// The result of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// One line for stderr, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) text: String,
    pub(crate) reaction: Reaction,
}

/// Whether the same may work later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    GiveUp,
    TryAgain,
    /// Whoever read our output wants no more of it: end in silence.
    Hush,
}

impl Failure {
    /// Not found, or anything unexpected.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into(), reaction: Reaction::GiveUp }
    }

    /// A wrong argument.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(text) }
    }

    /// Something that may pass.
    pub(crate) fn passing(text: impl Into<String>) -> Self {
        Self { reaction: Reaction::TryAgain, ..Self::new(text) }
    }

    /// The same about this file.
    pub(crate) fn at(path: &std::path::Path, error: impl fmt::Display) -> Self {
        Self::new(format!("{}: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<cairn_common::Error> for Failure {
    fn from(error: cairn_common::Error) -> Self {
        Self { code: cairn_common::process::exit_code(&error), ..Self::new(error.to_string()) }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let reaction = match error.kind() {
            io::ErrorKind::BrokenPipe => Reaction::Hush,
            _ => Reaction::GiveUp,
        };
        Self { reaction, ..Self::new(error.to_string()) }
    }
}

impl From<reqwest::Error> for Failure {
    /// With all causes: reqwest's own text says little more than "error sending request".
    fn from(error: reqwest::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(deeper) = cause {
            text = format!("{text}: {deeper}");
            cause = deeper.source();
        }
        Self::passing(text)
    }
}
