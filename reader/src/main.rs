//! The process `cairn-reader`.

fn main() {}
