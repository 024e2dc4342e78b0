//! The errors of Cairn: one variant per reaction of the caller.
//!
//! A new variant needs a new reaction. Causes chain through `source()`.

use std::error::Error as StdError;
use std::fmt;

use crate::types::Epoch;

/// A cause, kept for the log.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// What can be done about an object that is missing or damaged: nothing is rebuilt from what is
/// left, for that would be a guess.
pub const REMEDY: &str = "restore it from a version or a backup of the bucket, or start a new \
                          database at another root";

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by what the caller does next.
#[derive(Debug)]
pub enum Error {
    /// Fix the request or the setting; nothing happened.
    Invalid(String),
    /// Another process holds the role: stop this one.
    Fenced {
        /// The epoch under which this process worked.
        held: Epoch,
        /// The newer epoch that it met.
        found: Epoch,
    },
    /// This process is stopping: take the request elsewhere.
    Closed,
    /// The object is not there: reload the manifest, then decide.
    NotFound(String),
    /// A create or a compare-and-swap lost: rebase on what is there now.
    Conflict(String),
    /// It certainly did not happen: try again.
    Unavailable(Failure),
    /// It may have happened: read back.
    Indeterminate(Failure),
    /// Bytes that are not what was written: never retry, alert.
    Corrupt(Failure),
    /// The store does not honour conditional writes: stop before anything is written to it.
    Unfit(String),
}

/// What was attempted, and why it failed.
#[derive(Debug)]
pub struct Failure {
    /// The act and its object, for a person.
    pub what: String,
    /// What lies beneath.
    pub cause: Option<Cause>,
}

impl Error {
    /// It certainly did not happen.
    pub fn unavailable(what: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self::Unavailable(Failure { what: what.into(), cause: Some(cause.into()) })
    }

    /// It may have happened.
    pub fn indeterminate(what: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self::Indeterminate(Failure { what: what.into(), cause: Some(cause.into()) })
    }

    /// Bytes that are not what was written.
    pub fn corrupt(what: impl Into<String>, cause: impl Into<Cause>) -> Self {
        Self::Corrupt(Failure { what: what.into(), cause: Some(cause.into()) })
    }

    /// The same error for one more caller; its causes are kept as text.
    #[must_use]
    pub fn repeat(&self) -> Self {
        let again = |failure: &Failure| Failure {
            what: failure.what.clone(),
            cause: failure.cause.as_ref().map(|cause| cause.to_string().into()),
        };
        match self {
            Self::Invalid(what) => Self::Invalid(what.clone()),
            Self::Fenced { held, found } => Self::Fenced { held: *held, found: *found },
            Self::Closed => Self::Closed,
            Self::Unfit(what) => Self::Unfit(what.clone()),
            Self::NotFound(object) => Self::NotFound(object.clone()),
            Self::Conflict(object) => Self::Conflict(object.clone()),
            Self::Unavailable(failure) => Self::Unavailable(again(failure)),
            Self::Indeterminate(failure) => Self::Indeterminate(again(failure)),
            Self::Corrupt(failure) => Self::Corrupt(again(failure)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(what) | Self::Unfit(what) => f.write_str(what),
            Self::Fenced { held, found } => {
                write!(f, "fenced: this process holds epoch {held}, the bucket says {found}")
            }
            Self::Closed => f.write_str("this process is stopping"),
            Self::NotFound(object) => write!(f, "{object} is not there"),
            Self::Conflict(object) => write!(f, "{object} was changed by another process"),
            Self::Unavailable(failure) => write!(f, "{failure} failed and had no effect"),
            Self::Indeterminate(failure) => write!(f, "{failure} failed and may have had effect"),
            Self::Corrupt(failure) => write!(f, "corrupt: {failure}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.cause {
            Some(cause) => write!(f, " ({cause})"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Unavailable(failure) | Self::Indeterminate(failure) | Self::Corrupt(failure) => {
                failure.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
            }
            _ => None,
        }
    }
}
