//! The memtable.
