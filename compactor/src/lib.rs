//! The compactor: keeps the tree in shape and deletes what nobody needs.

pub mod job;
pub mod pick;
pub mod plan;
