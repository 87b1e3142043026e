//! The ACL: (source tag, destination tag, service) to an action.

use crate::snapshot::{RuleAction, Tag};
use crate::verdict::Cause;

/// What the ACL says of one conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Allow, deny or reject; never pass.
    pub action: RuleAction,
    /// The rule that decided, or the default.
    pub cause: Cause,
    /// True if ports or ICMP type took part: some rule for this pair and protocol names them.
    pub used_ports: bool,
}

/// One conversation, as rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Source tag.
    pub from: Tag,
    /// Destination tag.
    pub to: Tag,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port, or ICMP `type << 8 | code`.
    pub dst_port: u16,
}
