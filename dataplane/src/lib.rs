//! The data plane role: ports, umem, workers, and the path of a frame.
#![deny(unsafe_code)]
#![deny(missing_docs)]

pub mod frame;
pub mod link;
pub mod pool;
pub mod port;
pub mod sys;
