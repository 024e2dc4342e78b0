//! What entries mean: the memtable, the k-way merge, visibility, the tree and its edits. Pure.

pub mod memtable;
pub mod merge;
pub mod tree;
pub mod visible;
