//! The one executable.
#![forbid(unsafe_code)]

fn main() {}
