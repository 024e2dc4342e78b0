//! The tree and its edits.
