//! The read path that writer and reader share.

pub mod cursor;
pub mod get;
pub mod scan;
pub mod view;
