//! The answers that a `reject` rule sends to the refused frame's sender.

use crate::extract::Headers;

/// Most bytes an answer can have.
pub const MAX_REPLY: usize = 14 + 4 + 40 + 8 + 576;

/// Writes into `out` the answer to the refused `frame`: a TCP RST (RFC 9293 §3.5.2), or an ICMP or
/// ICMPv6 "administratively prohibited" (RFC 1812 §5.2.7.1, RFC 4443 §3.1). Returns its length, or
/// `None` if this frame must not be answered (an RST, an ICMP error, a group address).
pub fn refuse(frame: &[u8], headers: &Headers, out: &mut [u8; MAX_REPLY]) -> Option<usize> {
    let _ = (frame, headers, out);
    todo!()
}
