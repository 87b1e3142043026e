//! The same policy in every system's language.
//!
//! N rules that the measured traffic does not match, and a last one that lets it through, so that
//! whoever looks at rules one after the other looks at all of them. Half of them are about the
//! sender and half about networks that nobody here is in; services are TCP or UDP ports that no
//! measurement uses; every fifth denies. All of them are stateful: what a rule lets begin may go
//! on, in both directions. Without rules (N = 0) everything may begin.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::topology::{Host, Topology};

/// First of the ports that rules speak of. Measurements use others.
const FIRST_PORT: u16 = 10_000;
/// Most rules: each has a port of its own.
pub(super) const MAX_RULES: usize = 10_000;
/// Networks that half of the rules are about.
const NETWORKS: usize = 64;

/// Who may not, or may, begin a conversation with the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Sender,
    Network(usize),
}

/// One rule. Its destination is the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    from: From,
    udp: bool,
    port: u16,
    allow: bool,
}

/// N rules, and that everything else may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// A policy of `rules` rules, at most [`MAX_RULES`]; the same each time.
    pub fn new(rules: usize) -> Self {
        let rule = |i: usize| Rule {
            from: if i.is_multiple_of(2) { From::Sender } else { From::Network(i / 2 % NETWORKS) },
            udp: i % 4 >= 2,
            port: FIRST_PORT + i as u16,
            allow: i % 5 != 4,
        };
        Self { rules: (0..rules.min(MAX_RULES)).map(rule).collect() }
    }

    /// How many rules it has, besides the last one.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether everything may pass.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// As Firedoor's config, for a switch called `name`. `settings` is added to its `[switch]`.
    pub fn firedoor(&self, name: &str, settings: &str, topology: &Topology) -> String {
        let mut text = format!("[switch]\nname = \"{name}\"\n{settings}\n");
        for host in &topology.hosts {
            let Host { name, port, mac, ip, .. } = host;
            let _ = write!(
                text,
                "\n[[workload]]\nname = \"{name}\"\nkind = \"external\"\nifname = \"{port}\"\n\
                 mac = \"{mac}\"\nip = [\"{ip}/16\"]\nlane = \"switch\"\n"
            );
        }
        if !self.is_empty() {
            for network in 0..NETWORKS {
                let (address, length) = network_of(network);
                let _ = write!(
                    text,
                    "\n[[group]]\nname = \"network-{network}\"\ncidr = [\"{address}/{length}\"]\n"
                );
            }
        }
        for (i, rule) in self.rules.iter().enumerate() {
            let from = match rule.from {
                From::Sender => "{ workload = \"sender\" }".to_owned(),
                From::Network(network) => format!("{{ group = \"network-{network}\" }}"),
            };
            let _ = write!(
                text,
                "\n[[rule]]\nname = \"rule-{i}\"\nfrom = {from}\nto = {{ workload = \"receiver\" }}\n\
                 service = \"{}/{}\"\naction = \"{}\"\n",
                protocol(rule),
                rule.port,
                if rule.allow { "allow" } else { "deny" },
            );
        }
        text += "\n[[rule]]\nname = \"rest\"\nfrom = { any = true }\nto = { any = true }\n\
                 action = \"allow\"\n";
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
            let _ = writeln!(
                text,
                "ip saddr {} ip daddr {receiver} {} dport {} {}",
                source(rule, topology),
                protocol(rule),
                rule.port,
                if rule.allow { "ct mark set 1 accept" } else { "drop" },
            );
        }
        text += "ct mark set 1 accept\n}\n}\n";
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
            let _ = writeln!(
                text,
                "table=1,priority={},ct_state=+trk+new,{},nw_src={},nw_dst={receiver},tp_dst={},\
                 actions={}",
                60_000 - i,
                protocol(rule),
                source(rule, topology),
                rule.port,
                if rule.allow { PASS } else { "drop" },
            );
        }
        let _ = writeln!(text, "table=1,priority=1,ct_state=+trk+new,ip,actions={PASS}");
        text
    }
}

fn protocol(rule: &Rule) -> &'static str {
    if rule.udp { "udp" } else { "tcp" }
}

fn source(rule: &Rule, topology: &Topology) -> String {
    match rule.from {
        From::Sender => topology.sender().ip.to_string(),
        From::Network(network) => {
            let (address, length) = network_of(network);
            format!("{address}/{length}")
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
        let ports: std::collections::BTreeSet<u16> = policy.rules.iter().map(|r| r.port).collect();
        assert_eq!(ports.len(), 10_000);
        assert!(Policy::new(0).is_empty());
        assert_eq!(Policy::new(usize::MAX).len(), MAX_RULES);
    }

    #[test]
    fn half_of_the_rules_are_about_the_sender_and_a_fifth_denies() {
        let Policy { rules } = Policy::new(1_000);
        let count = |which: fn(&&Rule) -> bool| rules.iter().filter(which).count();
        assert_eq!(count(|rule| rule.from == From::Sender), 500);
        assert_eq!(count(|rule| rule.udp), 500);
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
