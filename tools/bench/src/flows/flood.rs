//! A SYN flood from one port beside established connections of others.

use std::time::Instant;

use firedoor_classifier::build::TcpFlags;
use firedoor_classifier::extract::Headers;
use firedoor_classifier::{Nanos, Pipeline, PortId};
use serde::Serialize;

use super::scene::{CLIENTS, FLOWS, pipeline, segment, server};
use crate::Progress;

/// Connections that are established before the flood.
const ESTABLISHED: u32 = 10_000;

/// SYNs between two handshakes of others, and between two of the pipeline's ticks.
const BETWEEN: u64 = 10_000;

/// Nanoseconds between two SYNs: a million a second.
const GAP: u64 = 1_000;

/// What a flood did.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Flood {
    /// SYNs that one port sent, each from or to other TCP ports.
    pub syns: u64,
    /// SYNs that the switch refused.
    pub refused: u64,
    /// Connections of other ports that were established before.
    pub established: u64,
    /// Those of them that no longer carry data.
    pub lost: u64,
    /// Handshakes that other ports began meanwhile.
    pub handshakes: u64,
    /// Those of them that could not be completed.
    pub handshakes_lost: u64,
    /// Nanoseconds to judge one SYN of the flood.
    pub syn_ns: f64,
}

/// Floods a table of `connections` with `syns` different SYNs from the first port.
pub fn flood(connections: u32, syns: u64) -> Flood {
    let progress = Progress::new(syns / BETWEEN + 2);
    progress.step("establishing connections");
    let mut scene = Scene {
        pipeline: pipeline(connections, FLOWS),
        now: Nanos::from_secs(1_000),
        syn: segment(PortId(0), server(), (1, 1), TcpFlags::SYN),
    };
    let others: Vec<Conversation> = (0..ESTABLISHED).map(Conversation::numbered).collect();
    let before = others.iter().filter(|one| scene.opens(**one)).count() as u64;
    let mut report = Flood {
        syns,
        refused: 0,
        established: before,
        lost: 0,
        handshakes: 0,
        handshakes_lost: 0,
        syn_ns: 0.0,
    };
    let mut flooding = 0.0;
    let mut sent = 0;
    while sent < syns {
        progress.step("flooding");
        let late = Conversation::numbered(ESTABLISHED + report.handshakes as u32);
        let began = scene.begins(late);
        let count = BETWEEN.min(syns - sent);
        let begun = Instant::now();
        report.refused += (sent..sent + count).filter(|&n| !scene.takes_syn(n)).count() as u64;
        flooding += begun.elapsed().as_secs_f64();
        sent += count;
        report.handshakes += 1;
        report.handshakes_lost += u64::from(!(began && scene.completes(late)));
        scene.pipeline.tick(scene.now);
    }
    report.lost =
        u64::from(ESTABLISHED) - others.iter().filter(|one| scene.carries(**one)).count() as u64;
    report.syn_ns = flooding * 1e9 / syns.max(1) as f64;
    report
}

impl Flood {
    /// Whether nobody but the flooder noticed.
    pub fn was_harmless(&self) -> bool {
        self.established == u64::from(ESTABLISHED) && self.lost == 0 && self.handshakes_lost == 0
    }
}

struct Scene {
    pipeline: Pipeline,
    now: Nanos,
    /// The flooder's.
    syn: Headers,
}

/// A TCP conversation of a well-behaved client with the server.
#[derive(Clone, Copy)]
struct Conversation {
    client: PortId,
    port: u16,
}

impl Conversation {
    /// One of many. The first port is the flooder's.
    fn numbered(number: u32) -> Self {
        let others = u32::from(CLIENTS) - 1;
        let client = PortId(1 + (number % others) as u16);
        Self { client, port: 1_024 + (number / others) as u16 }
    }
}

impl Scene {
    fn opens(&mut self, conversation: Conversation) -> bool {
        self.begins(conversation) && self.completes(conversation)
    }

    fn begins(&mut self, conversation: Conversation) -> bool {
        self.forth(conversation, TcpFlags::SYN, (0, 0))
    }

    fn completes(&mut self, conversation: Conversation) -> bool {
        self.back(conversation, TcpFlags::SYN | TcpFlags::ACK, (0, 1))
            && self.forth(conversation, TcpFlags::ACK, (1, 1))
    }

    /// Whether both sides still hear each other.
    fn carries(&mut self, conversation: Conversation) -> bool {
        self.forth(conversation, TcpFlags::ACK, (1, 1))
            && self.back(conversation, TcpFlags::ACK, (1, 1))
    }

    fn forth(&mut self, one: Conversation, flags: TcpFlags, numbers: (u32, u32)) -> bool {
        self.passes(one.client, server(), (one.port, 443), flags, numbers)
    }

    fn back(&mut self, one: Conversation, flags: TcpFlags, numbers: (u32, u32)) -> bool {
        self.passes(server(), one.client, (443, one.port), flags, numbers)
    }

    /// Whether the flood's SYN of this number is let through.
    fn takes_syn(&mut self, number: u64) -> bool {
        self.now = self.now.plus(GAP);
        self.syn.key.src_port = 1 + (number % 65_535) as u16;
        self.syn.key.dst_port = 1 + (number / 65_535 % 65_535) as u16;
        self.pipeline.judge(&self.syn, 60, self.now).is_forwarded()
    }

    fn passes(
        &mut self,
        from: PortId,
        to: PortId,
        ports: (u16, u16),
        flags: TcpFlags,
        (seq, ack): (u32, u32),
    ) -> bool {
        let mut headers = segment(from, to, ports, flags);
        (headers.tcp.seq, headers.tcp.ack) = (seq, ack);
        self.pipeline.judge(&headers, 60, self.now).is_forwarded()
    }
}
