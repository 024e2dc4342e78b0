//! One role as a child of `cairn up`: the same executable under a hidden command.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use cairn_common::config::Program;
use clap::{Args, ValueEnum};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// The hidden command.
pub(crate) const ROLE_COMMAND: &str = "role";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    Writer,
    Reader,
    Compactor,
}

#[derive(Debug, Args)]
pub(crate) struct RoleArgs {
    role: RoleName,
    /// The process id of `cairn up`
    parent: i32,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

impl RoleName {
    /// Every role.
    pub(super) const ALL: [Self; 3] = [Self::Writer, Self::Reader, Self::Compactor];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Reader => "reader",
            Self::Compactor => "compactor",
        }
    }

    pub(super) fn program(self) -> Program {
        match self {
            Self::Writer => cairn_writer::config::PROGRAM,
            Self::Reader => cairn_reader::config::PROGRAM,
            Self::Compactor => cairn_compactor::config::PROGRAM,
        }
    }
}

/// Becomes the role, to die with its parent.
pub(crate) fn run_role(role: RoleArgs) -> ExitCode {
    let follows = set_parent_process_death_signal(Some(Signal::TERM));
    // The parent may have died before the kernel knew.
    if follows.is_err() || getppid().map(Pid::as_raw_pid) != Some(role.parent) {
        let written = writeln!(std::io::stderr(), "cairn: `cairn up` is gone");
        drop(written);
        return ExitCode::FAILURE;
    }
    let name = OsString::from(role.role.program().name);
    let args = std::iter::once(name).chain(role.args);
    match role.role {
        RoleName::Writer => cairn_writer::main(args),
        RoleName::Reader => cairn_reader::main(args),
        RoleName::Compactor => cairn_compactor::main(args),
    }
}
