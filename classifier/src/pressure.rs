//! Pressure: how much of a worker's slow path one port may use.
//!
//! Most frames cost a probe or two. Those that no connection and no cached verdict knows cost an
//! upcall, and mostly a new entry in the flow cache. Whoever sends nothing but such frames would take
//! the worker's time, and its cache, from everybody else. So both are rationed by ingress port:
//!
//! - **Upcalls**: [`Settings::upcalls_per_sec`](crate::snapshot::Settings::upcalls_per_sec) a second.
//!   A frame beyond that is dropped as [`DropReason::UpcallLimit`](crate::DropReason::UpcallLimit).
//!   Frames of live connections and of cached flows need no upcall, so they are not touched.
//! - **Installs**: [`INSTALLS_PER_SEC`] entries of the flow cache a second. A verdict beyond that holds
//!   for its frame, and is not remembered.
//!
//! A router's port carries many sources, and one of them must not use up what is for all. So there
//! each source network (a /24 of IPv4, a /64 of IPv6) may use one in [`SOURCE_SHARE`] of the port's
//! upcalls. Networks share [`SOURCES`] buckets by a keyed hash: whoever has one network at most
//! hampers those in its bucket. Whoever can forge sources at will has the port's whole share, and no
//! more than that.
//!
//! What was there before a change of policy costs no ration when it is judged again: each connection and
//! each cached flow once per epoch, and they are bounded.
//!
//! Rations are per worker: nothing here is shared. State is 16 bytes a port, 2 KiB more for a router's.

use crate::hash::KeyedHash;
use crate::key::FlowKey;
use crate::policy::Policy;
use crate::snapshot::PortId;
use crate::time::Nanos;

/// Entries of the flow cache that one port may install a second.
pub const INSTALLS_PER_SEC: u32 = 20_000;
/// A ration may be used ahead by so much: one part in this many of a second's.
const BURST_SHARE: u32 = 10;
/// A ration may always be used ahead by this many.
const LEAST_BURST: u32 = 64;
/// Buckets that the sources of a router's port share.
const SOURCES: usize = 256;
/// A source network has one in so many of its port's upcalls.
const SOURCE_SHARE: u32 = 4;

/// How often something may happen: a token bucket's rate and depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    /// Nanoseconds between two tokens.
    interval: u64,
    /// How far ahead of time tokens may be taken, in nanoseconds.
    ahead: u64,
}

impl Rate {
    /// At most `per_sec` a second: rounded down to a whole number of nanoseconds between two.
    fn new(per_sec: u32) -> Self {
        let interval = 1_000_000_000_u64.div_ceil(per_sec.max(1).into());
        let burst = (per_sec / BURST_SHARE).max(LEAST_BURST);
        Self { interval, ahead: interval * u64::from(burst - 1) }
    }
}

/// A token bucket, as the time when it is full again (the generic cell rate algorithm, ITU-T I.371).
#[derive(Clone, Copy, Debug, Default)]
struct Bucket(Nanos);

impl Bucket {
    fn has_token(self, rate: Rate, now: Nanos) -> bool {
        self.0.since(now) <= rate.ahead
    }

    fn take(&mut self, rate: Rate, now: Nanos) -> bool {
        let has_token = self.has_token(rate, now);
        if has_token {
            self.0 = self.0.max(now).plus(rate.interval);
        }
        has_token
    }
}

/// What is left of one port's rations.
#[derive(Debug, Default)]
struct Rations {
    upcalls: Bucket,
    installs: Bucket,
    /// Upcalls by source network; of a router's port only.
    sources: Option<Box<[Bucket; SOURCES]>>,
}

/// All ports' rations at one worker.
#[derive(Debug)]
pub struct Pressure {
    upcalls: Rate,
    upcalls_by_source: Rate,
    installs: Rate,
    ports: Vec<Rations>,
    hash: KeyedHash,
}

impl Pressure {
    /// Full rations for the policy's ports.
    pub fn new(policy: &Policy) -> Self {
        let mut pressure = Self {
            upcalls: Rate::new(1),
            upcalls_by_source: Rate::new(1),
            installs: Rate::new(INSTALLS_PER_SEC),
            ports: Vec::new(),
            hash: KeyedHash::random(),
        };
        pressure.configure(policy);
        pressure
    }

    /// Follows another policy's ports and settings. What ports have used stays used.
    pub fn configure(&mut self, policy: &Policy) {
        let per_sec = policy.settings().upcalls_per_sec;
        self.upcalls = Rate::new(per_sec);
        self.upcalls_by_source = Rate::new(per_sec / SOURCE_SHARE);
        let workloads = &policy.snapshot().workloads;
        let ports = workloads.iter().map(|workload| usize::from(workload.port.0) + 1).max();
        self.ports.resize_with(ports.unwrap_or(0), Rations::default);
        for workload in workloads {
            let rations = &mut self.ports[usize::from(workload.port.0)];
            if !workload.router {
                rations.sources = None;
            } else if rations.sources.is_none() {
                rations.sources = Some(Box::new([Bucket::default(); SOURCES]));
            }
        }
    }

    /// Whether the frame with this key may have an upcall; if so, it is taken from its port's ration.
    /// Cost: a compare; at a router's port, a hash more.
    pub fn take_upcall(&mut self, key: &FlowKey, now: Nanos) -> bool {
        let Some(rations) = self.ports.get_mut(usize::from(key.ingress.0)) else { return false };
        let Some(sources) = &mut rations.sources else {
            return rations.upcalls.take(self.upcalls, now);
        };
        let source = &mut sources[self.hash.hash_word(network(key.src)) as usize % SOURCES];
        rations.upcalls.has_token(self.upcalls, now)
            && source.take(self.upcalls_by_source, now)
            && rations.upcalls.take(self.upcalls, now)
    }

    /// Whether a verdict on a frame of this port may be cached; if so, it is taken from its ration.
    pub fn take_install(&mut self, port: PortId, now: Nanos) -> bool {
        let rations = self.ports.get_mut(usize::from(port.0));
        rations.is_some_and(|rations| rations.installs.take(self.installs, now))
    }
}

/// The network of an address (as in [`FlowKey::src`]): its /64, or of IPv4 its /24.
fn network(addr: u128) -> u64 {
    if addr >> 32 == 0xffff { (addr >> 8) as u64 } else { (addr >> 64) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{GATEWAY, WEB, policy, snapshot};

    const SECOND: u64 = 1_000_000_000;

    /// How many of `tries` upcalls, evenly spread over ten seconds, are granted.
    fn granted(tries: u64, key: impl Fn(u64) -> FlowKey, upcalls_per_sec: u32) -> u64 {
        let mut snapshot = snapshot();
        snapshot.settings.upcalls_per_sec = upcalls_per_sec;
        let mut pressure = Pressure::new(&policy(snapshot));
        let grant = |n: &u64| pressure.take_upcall(&key(*n), Nanos(n * 10 * SECOND / tries));
        (0..tries).filter(grant).count() as u64
    }

    fn from(port: u16, src: u128) -> FlowKey {
        FlowKey { ingress: PortId(port), src, ..FlowKey::default() }
    }

    #[test]
    fn a_port_gets_its_rate_and_one_burst() {
        let web = |_| from(WEB, 1);
        assert_eq!(granted(5_000, web, 1_000), 5_000, "half of its rate");
        let flooded = granted(1_000_000, web, 1_000);
        assert!((10_000..=10_000 + 100).contains(&flooded), "{flooded}");
    }

    #[test]
    fn a_quiet_port_saves_up_one_burst_and_no_more() {
        let rate = Rate::new(1_000);
        for quiet in [0, 10, 10_000] {
            let mut bucket = Bucket::default();
            assert!(bucket.take(rate, Nanos(SECOND)));
            let now = Nanos((quiet + 1) * SECOND);
            let burst = (0..1_000).filter(|_| bucket.take(rate, now)).count();
            assert_eq!(burst, if quiet == 0 { 99 } else { 100 });
        }
    }

    #[test]
    fn one_network_behind_a_router_leaves_most_to_the_others() {
        let one = |_| from(GATEWAY, 0xffff_c000_0207);
        let flooded = granted(1_000_000, one, 4_000);
        assert!((10_000..=10_000 + 100).contains(&flooded), "{flooded}");
        let many = |n: u64| from(GATEWAY, u128::from(n) << 64);
        let forged = granted(1_000_000, many, 4_000);
        assert!((40_000..=40_000 + 400).contains(&forged), "{forged}");
    }

    #[test]
    fn no_port_pays_for_another_and_unknown_ports_get_nothing() {
        let mut pressure = Pressure::new(&policy(snapshot()));
        while pressure.take_upcall(&from(WEB, 1), Nanos(0)) {}
        assert!(pressure.take_upcall(&from(GATEWAY, 1), Nanos(0)));
        while pressure.take_install(PortId(WEB), Nanos(0)) {}
        assert!(pressure.take_install(PortId(GATEWAY), Nanos(0)));
        assert!(!pressure.take_install(PortId(999), Nanos(0)));
        assert!(!pressure.take_upcall(&from(999, 1), Nanos(0)));
    }

    #[test]
    fn any_setting_and_any_time_will_do() {
        for per_sec in [0, 1, 7, u32::MAX] {
            let rate = Rate::new(per_sec);
            let mut bucket = Bucket(Nanos(u64::MAX - 1));
            bucket.take(rate, Nanos(u64::MAX));
            assert!(!Bucket(Nanos(u64::MAX)).has_token(rate, Nanos(0)));
        }
    }
}
