//! The switch that is attacked, and the victims.
//!
//! | port | |
//! |---|---|
//! | 0 | a router: the attack comes in here, and so do most victims |
//! | 1 | the server that they all talk to |
//! | 2 | another router, so that destinations can be any address |
//! | 3 | a client with a port of its own |

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use firedoor_classifier::build::{self, Ends};
use firedoor_classifier::extract::{Headers, extract};
use firedoor_classifier::pipeline::BURST;
use firedoor_classifier::policy::PolicyError;
use firedoor_classifier::snapshot::{
    Mode, Prefix, Rule, Service, Services, Settings, Snapshot, TagInfo, TagSet, Workload,
};
use firedoor_classifier::wire::protocol::{ICMP, UDP};
use firedoor_classifier::{Nanos, Pipeline, Policy, PortId, Tag, Verdict};
use firedoor_dataplane::sys::prefetch::prefetch;

use crate::scene::{allow, mac};

/// Where the attack comes in.
pub const UPLINK: PortId = PortId(0);
/// Whom the victims talk to.
pub const SERVER: PortId = PortId(1);
/// The way to everywhere else.
pub const INNER: PortId = PortId(2);
/// A client that shares its port with nobody.
pub const CLIENT: PortId = PortId(3);
/// Tag of what is in no group; groups' tags come after it.
const WORLD: Tag = Tag(4);

/// The server's address: that of the published traces.
pub const SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 3);
/// What the victims ask.
const SERVICE_PORT: u16 = 53;
/// Flows of each victim.
const FLOWS: u8 = 128;

/// Flows that policy allows, and that want to be left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// UDP connections through the attacked port.
    Connections,
    /// Frames that no connection knows, through the attacked port: the flow cache answers each.
    Cached,
    /// The same from another port.
    Elsewhere,
}

/// All of them.
pub const VICTIMS: [Victim; 3] = [Victim::Connections, Victim::Cached, Victim::Elsewhere];

impl Victim {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections, same port",
            Self::Cached => "cached flows, same port",
            Self::Elsewhere => "cached flow, other port",
        }
    }
}

/// One frame of each of a victim's flows.
///
/// Echo replies that nobody asked for begin no connection, so the flow cache judges each.
///
/// # Panics
/// Never: the frames are well-formed.
pub fn frames_of(victim: Victim) -> Vec<Headers> {
    let behind_uplink = |n| Ipv4Addr::new(198, 51, 100, n);
    let frame = |n: u8| match victim {
        Victim::Connections => {
            let ends = ends(UPLINK, behind_uplink(n));
            (UPLINK, build::udp(ends, 5_000 + u16::from(n), SERVICE_PORT, b"?"))
        }
        Victim::Cached => (UPLINK, build::echo_reply(ends(UPLINK, behind_uplink(n)), n.into(), 1)),
        Victim::Elsewhere => (CLIENT, build::echo_reply(ends(CLIENT, CLIENT_ADDRESS), n.into(), 1)),
    };
    let headers = |(port, bytes): (PortId, Vec<u8>)| extract(&bytes, port);
    (1..=FLOWS).map(|n| headers(frame(n)).expect("a well-formed frame")).collect()
}

fn ends(from: PortId, src: Ipv4Addr) -> Ends {
    let (src, dst) = (IpAddr::from(src), IpAddr::from(SERVER_ADDRESS));
    Ends { eth_src: mac(from), eth_dst: mac(SERVER), src, dst }
}

/// The policy: these prefixes are a group each, whose tags [`group`] names, the victims may talk to
/// the server, and then these rules hold.
pub fn snapshot(nets: Vec<ipnet::IpNet>, rules: Vec<Rule>) -> Snapshot {
    let icmp = Service::Icmp { protocol: ICMP, kind: 0, code: None };
    let dns = Service::Ports { protocol: UDP, first: SERVICE_PORT, last: SERVICE_PORT };
    let server = TagSet::Only(vec![Tag(SERVER.0.into())]);
    let victims = allow(String::new(), TagSet::Any, server, Services::Only(vec![icmp, dns]));
    Snapshot {
        epoch: 1,
        switch: "tse".to_owned(),
        mode: Mode::Enforce,
        settings: Settings::default(),
        workloads: vec![
            workload(UPLINK, true, None),
            workload(SERVER, false, Some(SERVER_ADDRESS)),
            workload(INNER, true, None),
            workload(CLIENT, false, Some(CLIENT_ADDRESS)),
        ],
        tags: (0..=WORLD.0 as usize + nets.len())
            .map(|tag| TagInfo { name: format!("tag {tag}") })
            .collect(),
        prefixes: nets.into_iter().zip(0..).map(|(net, n)| Prefix { net, tag: group(n) }).collect(),
        world: WORLD,
        rules: std::iter::once(victims).chain(rules).collect(),
    }
}

/// The tag of the prefix at this position.
pub const fn group(position: u32) -> Tag {
    Tag(WORLD.0 + 1 + position)
}

/// Lets these reach all destinations.
pub fn rule(from: TagSet, services: Services) -> Rule {
    allow(String::new(), from, TagSet::Any, services)
}

fn workload(port: PortId, router: bool, address: Option<Ipv4Addr>) -> Workload {
    let addresses = address.into_iter().map(IpAddr::from).collect();
    Workload { addresses, router, ..crate::scene::workload(port, Tag(port.0.into())) }
}

/// A pipeline and its time.
pub struct Scene {
    pipeline: Pipeline,
    now: Nanos,
}

impl Scene {
    /// A pipeline that enforces the snapshot.
    ///
    /// # Errors
    /// If the snapshot is not valid.
    pub fn new(snapshot: Snapshot) -> Result<Self, PolicyError> {
        let policy = Policy::build(snapshot)?;
        Ok(Self { pipeline: Pipeline::new(Arc::new(policy)), now: Nanos::from_secs(1) })
    }

    /// The pipeline.
    pub const fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Lets time pass.
    pub fn pass(&mut self, nanos: u64) {
        self.now = self.now.plus(nanos);
        self.pipeline.tick(self.now);
    }

    /// Judges frames burst by burst, one in every `spacing` nanoseconds. Returns how many verdicts
    /// are `wanted`.
    pub fn judge(
        &mut self,
        frames: &mut [Headers],
        spacing: u64,
        wanted: impl Fn(Verdict) -> bool,
    ) -> usize {
        let mut count = 0;
        for burst in frames.chunks_mut(BURST) {
            self.pipeline.prepare(burst, prefetch);
            for (at, headers) in burst.iter().enumerate() {
                let verdict = self.pipeline.judge_next(headers, at, 60, self.now);
                count += usize::from(wanted(verdict));
            }
            self.now = self.now.plus(spacing * burst.len() as u64);
        }
        count
    }

    /// Puts the same policy in force again, as another epoch.
    pub fn renew_policy(&mut self) {
        let mut policy = Policy::clone(self.pipeline.policy());
        policy.set_epoch(policy.epoch() + 1);
        self.pipeline.set_policy(Arc::new(policy));
    }
}
