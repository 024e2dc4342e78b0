//! The k-way merge.
