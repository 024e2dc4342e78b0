//! Cursors over SSTs and runs.
