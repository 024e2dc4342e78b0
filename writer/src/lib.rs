//! `cairn-writer`: the one process that writes a database.
//!
//! ```text
//!  routes -> service -> front (seq, open group, memtable, view)
//!                         |            |
//!                       commit       flush        open (takeover), standby, lease
//!                         |            |
//!                       wal/n     sst/, CURRENT
//! ```

use std::ffi::OsString;
use std::process::ExitCode;

pub mod commit;
pub mod condition;
pub mod config;
pub mod engine;
pub mod flush;
pub mod front;
pub mod lease;
pub mod metrics;
pub mod node;
pub mod open;
pub mod peers;
pub mod prefetch;
pub mod pressure;
pub mod routes;
pub mod serve;
pub mod service;
pub mod standby;
#[cfg(test)]
mod tests;

/// Runs the process; `args` begins with the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    cairn_common::process::main(&config::PROGRAM, args, serve::run)
}
