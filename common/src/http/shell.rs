//! The shell of a process.
