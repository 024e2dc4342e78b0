//! The read path that writer and reader share.

pub mod ahead;
pub mod cursor;
pub mod get;
mod held;
pub mod restart;
pub mod scan;
pub mod view;
