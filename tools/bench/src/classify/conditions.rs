//! What rules may ask for, or do, beyond ClassBench: given to some of them, and the search rule by rule
//! that says what they come to.

use firedoor_classifier::acl::Opening;
use firedoor_classifier::snapshot::{Conditions, Direction, FlagMatch, Rule, RuleAction};
use firedoor_classifier::wire::ethernet::ether_type;
use firedoor_classifier::wire::protocol::TCP;
use firedoor_classifier::wire::tcp::TcpFlags;

use super::files::{Header, Line};

/// VLANs that headers and rules are of.
const VLANS: [u16; 3] = [0, 10, 20];

/// Gives `percent` of the rules, drawn at random, one of: a direction, TCP flags, a VLAN, an ethertype,
/// audit, pass.
pub fn give(rules: &mut [Rule], percent: u32) {
    let mut rng = fastrand::Rng::with_seed(2);
    for rule in rules {
        if rng.u32(..100) >= percent {
            continue;
        }
        let Conditions { ether_type, vlan, tcp_flags, .. } = &mut rule.conditions;
        match rng.u8(..6) {
            0 => rule.direction = [Direction::Egress, Direction::Ingress][rng.usize(..2)],
            1 => *tcp_flags = Some([SYN, ACK][rng.usize(..2)]),
            2 => *vlan = Some(VLANS[rng.usize(..VLANS.len())]),
            3 => *ether_type = Some([ether_type::IPV4, ether_type::IPV6][rng.usize(..2)]),
            4 => rule.audit = true,
            _ => rule.action = RuleAction::Pass,
        }
    }
}

/// A segment that begins a connection.
const SYN: FlagMatch = flags(TcpFlags::SYN.union(TcpFlags::ACK), TcpFlags::SYN);
/// Any other.
const ACK: FlagMatch = flags(TcpFlags::ACK, TcpFlags::ACK);

const fn flags(mask: TcpFlags, value: TcpFlags) -> FlagMatch {
    FlagMatch { mask: mask.bits(), value: value.bits() }
}

/// How the conversation of a header begins: in a VLAN by its source port, and with SYN.
pub(super) fn opening(header: &Header) -> Opening {
    let &Header { src_port, protocol, .. } = header;
    let tcp_flags = if protocol == TCP { TcpFlags::SYN.bits() } else { 0 };
    let vlan = VLANS[usize::from(src_port) % VLANS.len()];
    Opening { ether_type: ether_type::IPV4, vlan, src_port, tcp_flags }
}

/// The rule that decides, as [`Judgement::cause`](firedoor_classifier::acl::Judgement) names it, found
/// rule by rule. All rules are of one tier.
pub(super) fn search(lines: &[Line], rules: &[Rule], header: &Header) -> Option<u32> {
    let decides = |other: Direction| {
        let mut matching = lines.iter().zip(rules).enumerate().filter(|(_, (line, rule))| {
            !rule.audit
                && rule.direction != other
                && line.matches(header)
                && meets(&rule.conditions, header)
        });
        let (at, (_, rule)) = matching.next()?;
        // It leaves the only tier there is.
        (rule.action != RuleAction::Pass).then_some(at as u32)
    };
    let send = decides(Direction::Ingress)?;
    decides(Direction::Egress).map(|_| send)
}

fn meets(conditions: &Conditions, header: &Header) -> bool {
    let Opening { ether_type, vlan, tcp_flags, .. } = opening(header);
    conditions.ether_type.is_none_or(|named| named == ether_type)
        && conditions.vlan.is_none_or(|named| named == vlan)
        && conditions
            .tcp_flags
            .is_none_or(|flags| header.protocol == TCP && tcp_flags & flags.mask == flags.value)
}
