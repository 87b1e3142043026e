//! Lab networks.
#![forbid(unsafe_code)]
