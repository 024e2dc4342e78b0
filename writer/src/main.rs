//! The process `cairn-writer`.

fn main() {}
