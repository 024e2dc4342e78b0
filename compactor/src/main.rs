//! The process `cairn-compactor`.

fn main() {}
