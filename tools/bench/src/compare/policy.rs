//! The same policy in every system's language.
//!
//! N rules that the measured traffic does not match, and a last one that lets it through, so that
//! whoever looks at rules one after the other looks at all of them. Half of them are about the
//! sender and half about networks that nobody here is in; services are TCP or UDP ports that no
//! measurement uses; every fifth denies. All of them are stateful: what a rule lets begin may go
//! on, in both directions. Without rules (N = 0) everything may begin.
//!
//! A second policy is made for attacks: four rules, each about another field, and nothing else may
//! pass.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::topology::{ATTACKER, Host, Topology};

/// First of the ports that rules speak of. Measurements use others.
const FIRST_PORT: u16 = 10_000;
/// Most rules: each has a port of its own.
pub(super) const MAX_RULES: usize = 10_000;
/// Networks that half of the rules are about.
const NETWORKS: usize = 64;

/// Who may not, or may, begin a conversation with the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Anyone,
    Sender,
    Network(usize),
    /// The one address that the policy for attacks trusts.
    Trusted,
}

/// One rule. Its destination is the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    from: From,
    protocol: Protocol,
    /// The source's port, if it matters.
    source_port: Option<u16>,
    /// The receiver's port, if it matters.
    port: Option<u16>,
    allow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Rules, and whether what none of them matches may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    rest: bool,
}

/// Port of the receiver that the policy for attacks lets anyone open TCP connections to.
pub(super) const OPEN_PORT: u16 = 80;
/// Source address that the policy for attacks trusts. Whichever bit of it is flipped, it remains a
/// possible source.
pub(super) const TRUSTED_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Source port that the policy for attacks trusts.
pub(super) const TRUSTED_SOURCE_PORT: u16 = 12_345;

impl Policy {
    /// A policy of `rules` rules, at most [`MAX_RULES`]; the same each time.
    pub fn new(rules: usize) -> Self {
        let rule = |i: usize| Rule {
            from: if i.is_multiple_of(2) { From::Sender } else { From::Network(i / 2 % NETWORKS) },
            protocol: if i % 4 < 2 { Protocol::Tcp } else { Protocol::Udp },
            source_port: None,
            port: Some(FIRST_PORT + i as u16),
            allow: i % 5 != 4,
        };
        Self { rules: (0..rules.min(MAX_RULES)).map(rule).collect(), rest: true }
    }

    /// A policy of the kind that invites tuple space explosion (Csikor et al., CoNEXT '19): allowed
    /// are one port, one address and one source port, and the sender's UDP.
    pub fn for_attacks() -> Self {
        let (protocol, source_port, port) = (Protocol::Tcp, None, None);
        let any = Rule { from: From::Anyone, protocol, source_port, port, allow: true };
        let rules = vec![
            Rule { port: Some(OPEN_PORT), ..any },
            Rule { from: From::Trusted, ..any },
            Rule { source_port: Some(TRUSTED_SOURCE_PORT), ..any },
            Rule { from: From::Sender, protocol: Protocol::Udp, ..any },
        ];
        Self { rules, rest: false }
    }

    /// As Firedoor's config, for a switch called `name` with every port on `lane`. `settings` is added
    /// to its `[switch]`.
    ///
    /// Under attack, the attacker is a router: it may then send from any address, and its frames
    /// are judged instead of being dropped as spoofed.
    pub fn firedoor(&self, name: &str, settings: &str, lane: &str, topology: &Topology) -> String {
        let mut text = format!("[switch]\nname = \"{name}\"\n{settings}\n");
        for (position, host) in topology.hosts.iter().enumerate() {
            let Host { name, port, mac, ip, .. } = host;
            let router = position == ATTACKER && !self.rest;
            let _ = write!(
                text,
                "\n[[workload]]\nname = \"{name}\"\nkind = \"external\"\nifname = \"{port}\"\n\
                 mac = \"{mac}\"\nip = [\"{ip}/16\"]\nlane = \"{lane}\"\nrouter = {router}\n"
            );
        }
        let networks = (0..NETWORKS).map(From::Network).chain([From::Trusted]);
        let named = |from: &From| self.rules.iter().any(|rule| rule.from == *from);
        for network in networks.filter(named) {
            let _ = write!(
                text,
                "\n[[group]]\nname = \"{}\"\ncidr = [\"{}\"]\n",
                group_of(network),
                source(network, topology).unwrap_or_default(),
            );
        }
        for (i, rule) in self.rules.iter().enumerate() {
            text += &firedoor_rule(i, rule);
        }
        if self.rest {
            text += "\n[[rule]]\nname = \"rest\"\nfrom = { any = true }\nto = { any = true }\n\
                     action = \"allow\"\n";
        }
        text
    }

    /// As a script for `nft -f -`: a chain at the `forward` hook of `family` (`bridge`, or `ip` by
    /// way of br_netfilter).
    ///
    /// The kernel calls a UDP conversation established only once it was answered. Marking what a
    /// rule has let begin spares the rest of an unanswered one the walk through all rules.
    pub fn nft(&self, family: &str, topology: &Topology) -> String {
        let receiver = topology.receiver().ip;
        let mut text = format!(
            "table {family} firedoor_bench {{\n\
             chain forward {{\n\
             type filter hook forward priority 0; policy accept;\n\
             ct state established,related accept\n\
             ct mark 1 accept\n"
        );
        for rule in &self.rules {
            if let Some(source) = source(rule.from, topology) {
                let _ = write!(text, "ip saddr {source} ");
            }
            let protocol = rule.protocol.name();
            let _ = write!(text, "ip daddr {receiver} ip protocol {protocol} ");
            if let Some(port) = rule.source_port {
                let _ = write!(text, "{protocol} sport {port} ");
            }
            if let Some(port) = rule.port {
                let _ = write!(text, "{protocol} dport {port} ");
            }
            text += if rule.allow { NFT_PASS } else { "drop\n" };
        }
        // Other than IPv4 passes as it does elsewhere: there is ARP only.
        text += if self.rest { NFT_PASS } else { "ip protocol { tcp, udp } drop\n" };
        text += "}\n}\n";
        text
    }

    /// As flows for `ovs-ofctl add-flows BRIDGE -`: table 0 sends IP through the connection
    /// tracker, table 1 holds the rules. A packet that may pass is switched by MAC (`NORMAL`).
    pub fn open_vswitch(&self, topology: &Topology) -> String {
        const PASS: &str = "ct(commit),NORMAL";
        let receiver = topology.receiver().ip;
        let mut text = String::from(
            "table=0,priority=100,ip,ct_state=-trk,actions=ct(table=1)\n\
             table=0,priority=1,actions=NORMAL\n\
             table=1,priority=65000,ct_state=+trk+est,actions=NORMAL\n\
             table=1,priority=65000,ct_state=+trk+rel,actions=NORMAL\n",
        );
        for (i, rule) in self.rules.iter().enumerate() {
            let (priority, protocol) = (60_000 - i, rule.protocol.name());
            let _ = write!(
                text,
                "table=1,priority={priority},ct_state=+trk+new,{protocol},nw_dst={receiver},"
            );
            if let Some(source) = source(rule.from, topology) {
                let _ = write!(text, "nw_src={source},");
            }
            if let Some(port) = rule.source_port {
                let _ = write!(text, "tp_src={port},");
            }
            if let Some(port) = rule.port {
                let _ = write!(text, "tp_dst={port},");
            }
            let _ = writeln!(text, "actions={}", if rule.allow { PASS } else { "drop" });
        }
        let rest = if self.rest { PASS } else { "drop" };
        let _ = writeln!(text, "table=1,priority=1,ct_state=+trk+new,ip,actions={rest}");
        text
    }
}

/// What an nft rule that allows does.
const NFT_PASS: &str = "ct mark set 1 accept\n";

/// One `[[rule]]`.
fn firedoor_rule(number: usize, rule: &Rule) -> String {
    let from = match rule.from {
        From::Anyone => "{ any = true }".to_owned(),
        From::Sender => "{ workload = \"sender\" }".to_owned(),
        network => format!("{{ group = \"{}\" }}", group_of(network)),
    };
    let protocol = rule.protocol.name();
    let service = rule.port.map_or(protocol.to_owned(), |port| format!("{protocol}/{port}"));
    let source_port = rule.source_port.map(|port| format!("source_port = {port}\n"));
    format!(
        "\n[[rule]]\nname = \"rule-{number}\"\nfrom = {from}\nto = {{ workload = \"receiver\" }}\n\
         service = \"{service}\"\n{}action = \"{}\"\n",
        source_port.unwrap_or_default(),
        if rule.allow { "allow" } else { "deny" },
    )
}

/// What Firedoor's config calls a network.
fn group_of(network: From) -> String {
    match network {
        From::Network(number) => format!("network-{number}"),
        _ => "trusted".to_owned(),
    }
}

/// The addresses of a source, if not all.
fn source(from: From, topology: &Topology) -> Option<String> {
    match from {
        From::Anyone => None,
        From::Sender => Some(topology.sender().ip.to_string()),
        From::Trusted => Some(format!("{TRUSTED_SOURCE}/32")),
        From::Network(number) => {
            let (address, length) = network_of(number);
            Some(format!("{address}/{length}"))
        }
    }
}

/// A network of its own for each number, with prefixes of 16 to 24 bits.
fn network_of(number: usize) -> (Ipv4Addr, usize) {
    (Ipv4Addr::new(172, (number % NETWORKS) as u8 + 100, 0, 0), 16 + number % 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_the_same_each_time_and_each_rule_has_its_port() {
        let policy = Policy::new(10_000);
        assert_eq!(policy, Policy::new(10_000));
        let ports: std::collections::BTreeSet<_> = policy.rules.iter().map(|r| r.port).collect();
        assert_eq!(ports.len(), 10_000);
        assert!(Policy::new(0).rules.is_empty());
        assert_eq!(Policy::new(usize::MAX).rules.len(), MAX_RULES);
    }

    #[test]
    fn half_of_the_rules_are_about_the_sender_and_a_fifth_denies() {
        let Policy { rules, .. } = Policy::new(1_000);
        let count = |which: fn(&&Rule) -> bool| rules.iter().filter(which).count();
        assert_eq!(count(|rule| rule.from == From::Sender), 500);
        assert_eq!(count(|rule| rule.protocol == Protocol::Udp), 500);
        assert_eq!(count(|rule| !rule.allow), 200);
    }

    #[test]
    fn networks_hold_no_host_bits() {
        for number in 0..NETWORKS {
            let (address, length) = network_of(number);
            assert_eq!(u32::from(address) << length, 0, "{address}/{length}");
        }
    }
}
