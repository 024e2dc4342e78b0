//! The `cairn` command: a cluster on this machine, a client, and a look into the bucket.
//!
//! **Exit codes**: 0 done, 1 not found or failed, 2 usage, 5 corruption. Each but 0 comes with one
//! line on stderr.

use std::process::ExitCode;

mod args;
mod client;
mod failure;
mod inspect;
mod output;
mod up;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    args::run(std::env::args_os().collect())
}
