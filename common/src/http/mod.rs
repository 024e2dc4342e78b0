//! What the HTTP surfaces of the three processes share.

pub mod api;
pub mod keys;
pub mod metrics;
pub mod problem;
pub mod reads;
pub mod shell;
