//! The messages that Firedoor's roles exchange. No I/O: bytes in, messages out, and back.
//!
//! Two conversations share one framing ([`codec`]): control asks the data plane
//! ([`dataplane`]), and the command line asks control ([`control`]). Each message is a four-byte
//! big-endian length, a two-byte big-endian protocol version, and a
//! [postcard](https://postcard.jamesmunns.com/wire-format) body of `length - 2` bytes.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod codec;
pub mod control;
pub mod dataplane;

pub use codec::{Decoder, ProtocolError, VERSION, encode};
