//! The `fedllava` binary.

fn main() {}
