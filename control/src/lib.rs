//! The control role: compiles intent to a snapshot, installs it, receives denied frames, answers
//! the command line.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod compile;
pub mod diagnostic;
pub mod edit;
pub mod intent;
pub mod service;
