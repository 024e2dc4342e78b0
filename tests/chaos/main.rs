//! Real processes on this machine that are killed, stopped, woken and asked to leave while clients
//! write; then everything that was acknowledged is looked for.
//!
//! **Layout**: [`load`] clients that keep a ledger, and observers; [`view`] what a process shows;
//! [`kills`] SIGKILL at seeded times and in chosen moments; [`zombies`] a writer that sleeps
//! through its own succession; [`handover`] SIGTERM with a standby; [`exits`] the exit codes.
//!
//! Times are real here: each test waits for events, within generous bounds, and asserts no
//! duration. `CAIRN_CHAOS_SEED` and `CAIRN_CHAOS_KILLS` choose another course of [`kills`].

mod exits;
mod handover;
mod kills;
mod load;
mod round_trip;
mod stops;
mod view;
mod zombies;
