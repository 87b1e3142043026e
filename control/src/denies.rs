//! Refused conversations: denied frames with the same ends, service, rule and reason, counted.
//!
//! The table is bounded, since what fills it is chosen by whoever is refused. When it is full, the
//! conversation that has been silent the longest gives way. Every change moves an entry to the end
//! of an ordered sequence, so a follower needs to remember but one number to ask for what is new.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use firedoor_api::control::Deny;
use firedoor_api::dataplane::Denied;
use firedoor_classifier::verdict::DropGroup;
use parking_lot::{Condvar, Mutex};

use crate::condition::ether_type_text;
use crate::service::conversation_text;

/// Most conversations remembered.
const MAX_CONVERSATIONS: usize = 4_096;

/// All refused conversations that are remembered. Shared between who records and who asks.
#[derive(Debug)]
pub struct Denies {
    table: Mutex<Table>,
    news: Condvar,
}

/// How far a follower has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor(u64);

/// What makes two denied frames one conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Conversation {
    from: String,
    to: String,
    service: String,
    rule: String,
    reason: &'static str,
    dropped: bool,
}

#[derive(Debug)]
struct Table {
    /// From conversation to its place in `by_change`.
    changed: HashMap<Conversation, u64>,
    /// In order of the last change.
    by_change: BTreeMap<u64, (Conversation, Deny)>,
    /// The last change.
    last: u64,
    max: usize,
}

impl Default for Denies {
    fn default() -> Self {
        Self::bounded(MAX_CONVERSATIONS)
    }
}

impl Denies {
    fn bounded(max: usize) -> Self {
        let table = Table { changed: HashMap::new(), by_change: BTreeMap::new(), last: 0, max };
        Self { table: Mutex::new(table), news: Condvar::new() }
    }

    /// Counts a denied frame; it lies in the capture at `offset` of the file named `capture`, or
    /// nowhere if that is empty.
    pub fn record(&self, denied: &Denied, capture: &str, offset: u64) {
        self.table.lock().record(denied, capture, offset);
        self.news.notify_all();
    }

    /// Corrects what every conversation says of its capture file, after a file was renamed or
    /// removed: `rename` gets the old name, and gives the new one.
    pub fn rename_captures(&self, rename: impl Fn(&str) -> &'static str) {
        for (_, deny) in self.table.lock().by_change.values_mut() {
            deny.capture = rename(&deny.capture).to_owned();
        }
    }

    /// Every conversation, the latest change last.
    pub fn list(&self) -> Vec<Deny> {
        self.table.lock().by_change.values().map(|(_, deny)| deny.clone()).collect()
    }

    /// The end of what there is now: a follower that begins here gets only what is new.
    pub fn now(&self) -> Cursor {
        Cursor(self.table.lock().last)
    }

    /// Conversations that changed after `cursor`, and the cursor to go on from. Waits at most
    /// `patience` for the first.
    pub fn since(&self, cursor: Cursor, patience: Duration) -> (Vec<Deny>, Cursor) {
        let mut table = self.table.lock();
        if table.last <= cursor.0 {
            self.news.wait_for(&mut table, patience);
        }
        let news = table.by_change.range(cursor.0 + 1..).map(|(_, (_, deny))| deny.clone());
        (news.collect(), Cursor(table.last))
    }
}

impl Table {
    fn record(&mut self, denied: &Denied, capture: &str, offset: u64) {
        let conversation = Conversation {
            from: denied.from.clone(),
            to: denied.to.clone(),
            service: service(denied),
            rule: denied.rule.clone(),
            reason: denied.reason.slug(),
            dropped: denied.dropped,
        };
        let known = self.changed.get(&conversation).and_then(|at| self.by_change.remove(at));
        let mut deny = match known {
            Some((_, deny)) => deny,
            None => first_of(&conversation, denied),
        };
        deny.last_unix_ns = denied.unix_ns;
        deny.count += 1;
        deny.capture = capture.to_owned();
        deny.capture_offset = offset;

        self.last += 1;
        self.changed.insert(conversation.clone(), self.last);
        self.by_change.insert(self.last, (conversation, deny));
        if self.by_change.len() > self.max
            && let Some((_, (silent, _))) = self.by_change.pop_first()
        {
            self.changed.remove(&silent);
        }
    }
}

fn first_of(conversation: &Conversation, denied: &Denied) -> Deny {
    Deny {
        first_unix_ns: denied.unix_ns,
        last_unix_ns: denied.unix_ns,
        from: conversation.from.clone(),
        to: conversation.to.clone(),
        service: conversation.service.clone(),
        rule: conversation.rule.clone(),
        reason: conversation.reason.to_owned(),
        dropped: conversation.dropped,
        count: 0,
        capture: String::new(),
        capture_offset: 0,
    }
}

/// One line for people about a denied frame, as in `intruder -> db tcp/5432 denied: no rule allows
/// it (default-deny, epoch 7)`.
pub fn sentence(denied: &Denied) -> String {
    let Denied { from, to, rule, reason, epoch, .. } = denied;
    let what = match (reason.group(), denied.dropped) {
        (DropGroup::Policy, true) => "denied",
        (DropGroup::Policy, false) => "would be denied",
        (_, true) => "dropped",
        (_, false) => "would be dropped",
    };
    let by = match rule.as_str() {
        "default" | "switch" | "" => String::new(),
        rule => format!(" by {rule}"),
    };
    let (service, why, slug) = (service(denied), reason.explain(), reason.slug());
    format!("{from} -> {to} {service} {what}{by}: {why} ({slug}, epoch {epoch})")
}

/// The service that a denied frame is of, in the words of the config: `tcp/8080`, `icmp/echo`,
/// `icmp6/135`, `ip/47`; `arp` and `ethertype/0x88cc` for what is not IP.
pub fn service(denied: &Denied) -> String {
    const IPV4: u16 = 0x0800;
    const ARP: u16 = 0x0806;
    const IPV6: u16 = 0x86dd;
    match denied.ether_type {
        ARP => "arp".to_owned(),
        IPV4 | IPV6 => conversation_text(denied.protocol, denied.dst_port),
        other => format!("ethertype/{}", ether_type_text(other)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use firedoor_classifier::snapshot::PortId;
    use firedoor_classifier::verdict::DropReason;

    use super::*;

    /// A denied TCP frame between two workloads.
    pub(crate) fn denied(from: &str, to: &str) -> Denied {
        Denied {
            unix_ns: 1_790_000_000_123_456_789,
            epoch: 7,
            port: PortId(0),
            from: from.to_owned(),
            to: to.to_owned(),
            rule: "default".to_owned(),
            reason: DropReason::DefaultDeny,
            dropped: true,
            protocol: 6,
            ether_type: 0x0800,
            src: Some([10, 10, 0, 66].into()),
            dst: Some([10, 10, 0, 30].into()),
            src_port: 40_000,
            dst_port: 5_432,
            length: 74,
            bytes: (0..74).collect(),
        }
    }

    #[test]
    fn frames_of_one_conversation_are_counted_together() {
        let denies = Denies::default();
        let first = denied("intruder", "db");
        denies.record(&first, "denies.pcapng", 100);
        denies.record(&denied("web", "db"), "denies.pcapng", 200);
        let last = Denied { unix_ns: first.unix_ns + 5, src_port: 40_001, ..first.clone() };
        denies.record(&last, "denies.pcapng", 300);

        let list = denies.list();
        assert_eq!(list.iter().map(|d| d.from.as_str()).collect::<Vec<_>>(), ["web", "intruder"]);
        assert_eq!(list[1].count, 2);
        assert_eq!(list[1].capture_offset, 300);
        assert_eq!(list[1].first_unix_ns, first.unix_ns);
        assert_eq!(list[1].last_unix_ns, first.unix_ns + 5);
        assert_eq!(list[1].service, "tcp/5432");
    }

    #[test]
    fn a_follower_gets_each_change_once() {
        let denies = Denies::default();
        denies.record(&denied("a", "db"), "", 0);
        let cursor = denies.now();
        let (none, cursor) = denies.since(cursor, Duration::ZERO);
        assert_eq!(none, []);
        denies.record(&denied("b", "db"), "", 0);
        denies.record(&denied("a", "db"), "", 0);
        let (news, cursor) = denies.since(cursor, Duration::ZERO);
        assert_eq!(news.iter().map(|d| d.from.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(news[1].count, 2);
        assert_eq!(denies.since(cursor, Duration::ZERO).0, []);
    }

    #[test]
    fn the_longest_silent_conversation_gives_way() {
        let denies = Denies::bounded(3);
        for from in ["a", "b", "c", "a", "d", "e"] {
            denies.record(&denied(from, "db"), "", 0);
        }
        let table = denies.table.lock();
        let kept: Vec<_> = table.by_change.values().map(|(_, d)| d.from.as_str()).collect();
        assert_eq!(kept, ["a", "d", "e"]);
        assert_eq!(table.changed.len(), 3);
    }

    #[test]
    fn sentences_name_rule_and_reason() {
        let by_rule = Denied {
            rule: "no-telnet".into(),
            reason: DropReason::Denied,
            dropped: false,
            dst_port: 23,
            ..denied("web", "db")
        };
        assert_eq!(
            sentence(&by_rule),
            "web -> db tcp/23 would be denied by no-telnet: a rule denies it (denied, epoch 7)"
        );
        let spoofed = Denied {
            rule: "switch".into(),
            reason: DropReason::SpoofedArp,
            ether_type: 0x0806,
            ..denied("web", "db")
        };
        assert_eq!(
            sentence(&spoofed),
            "web -> db arp dropped: the ARP sender is not this workload (spoofed-arp, epoch 7)"
        );
    }

    #[test]
    fn services_are_named_as_the_config_does() {
        let of = |ether_type, protocol, dst_port| {
            service(&Denied { ether_type, protocol, dst_port, ..denied("a", "b") })
        };
        assert_eq!(of(0x0800, 17, 53), "udp/53");
        assert_eq!(of(0x0800, 1, 8 << 8), "icmp/echo");
        assert_eq!(of(0x0800, 1, 3 << 8 | 1), "icmp/3/1");
        assert_eq!(of(0x86dd, 58, 128 << 8), "icmp6/echo");
        assert_eq!(of(0x86dd, 58, 135 << 8), "icmp6/135");
        assert_eq!(of(0x0800, 47, 0), "ip/47");
        assert_eq!(of(0x88cc, 0, 0), "ethertype/0x88cc");
    }
}
