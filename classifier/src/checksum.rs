//! Internet checksums (RFC 1071), SCTP's CRC32c (RFC 9260 §6.8), and the completion of partial
//! checksums that a sender with checksum offload left behind.

use crate::extract::Headers;

/// Completes the transport checksum of `frame` in place if its sender left it partial. Returns
/// whether it did.
///
/// A container or guest with checksum offload sends TCP and UDP with only the pseudo-header's sum in
/// the checksum field (`CHECKSUM_PARTIAL` in the kernel's skbuff.h), and SCTP with zero.
pub fn complete_partial(frame: &mut [u8], headers: &Headers) -> bool {
    let _ = (frame, headers);
    todo!()
}
