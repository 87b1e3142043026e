//! ICMPv6 (RFC 4443). Its messages begin as ICMP's do: [`icmp::Message`](super::icmp::Message) is
//! the view of both. Types 133 to 137 are [neighbour discovery](super::nd).

/// Message types (IANA "ICMPv6 Parameters").
pub mod kind {
    /// Error: destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Error: packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Error: hop limit exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Error: bad header field.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Asks for an echo.
    pub const ECHO_REQUEST: u8 = 128;
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 129;
    /// Asks about an interface (RFC 8335).
    pub const EXTENDED_ECHO_REQUEST: u8 = 160;
    /// Answer to an extended echo request.
    pub const EXTENDED_ECHO_REPLY: u8 = 161;
}

/// Code of [`kind::UNREACHABLE`]: communication administratively prohibited (RFC 4443 §3.1).
pub const PROHIBITED: u8 = 1;

/// True for the errors whose layout is known: they quote the packet they are about. (All types
/// below 128 are errors, but nobody has defined the others.)
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, kind::UNREACHABLE..=kind::PARAMETER_PROBLEM)
}

/// True for requests that carry an identifier, which their reply repeats.
pub const fn is_request(kind: u8) -> bool {
    matches!(kind, kind::ECHO_REQUEST | kind::EXTENDED_ECHO_REQUEST)
}

/// True for replies that carry their request's identifier.
pub const fn is_reply(kind: u8) -> bool {
    matches!(kind, kind::ECHO_REPLY | kind::EXTENDED_ECHO_REPLY)
}
