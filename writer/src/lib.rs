//! `cairn-writer`: the one process that writes a database.

pub mod commit;
pub mod condition;
pub mod config;
pub mod engine;
pub mod flush;
pub mod front;
pub mod lease;
pub mod open;
pub mod peers;
pub mod pressure;
pub mod service;
pub mod standby;
#[cfg(test)]
mod tests;
