//! Real policies need one or two subtables a port, whatever their workloads say to each other.

#![allow(clippy::unwrap_used, reason = "test data")]

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::extract::extract;
use firedoor_classifier::snapshot::Workload;
use firedoor_classifier::{Nanos, Pipeline, Policy, Snapshot};
use firedoor_tests::fabric::snapshot;

/// A namespace of a cluster: pods by role, a few services, the rest denied.
const CLUSTER: &str = include_str!("common/cluster.toml");

#[test]
fn conversations_of_a_workload_share_one_subtable_or_two() {
    let configs = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")).unwrap();
    let configs = configs.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let mut checked = 0;
    for config in configs.chain([CLUSTER.to_owned()]) {
        let snapshot = snapshot(&config);
        let mut pipeline = Pipeline::new(Arc::new(Policy::build(snapshot.clone()).unwrap()));
        converse(&mut pipeline, &snapshot);
        for workload in snapshot.workloads.iter().filter(|workload| !workload.router) {
            let masks = pipeline.masks_of(workload.port);
            assert!(masks <= 2, "{} of {} uses {masks}", workload.name, snapshot.switch);
            checked += masks;
        }
    }
    assert!(checked > 10, "the flow cache was used: {checked}");
}

/// Everybody tries to reach everybody else on common services.
fn converse(pipeline: &mut Pipeline, snapshot: &Snapshot) {
    let now = Nanos::from_secs(1);
    for from in &snapshot.workloads {
        for to in snapshot.workloads.iter().filter(|to| to.port != from.port) {
            for ends in ends(from, to) {
                let tcp = [22, 80, 443, 5432, 6379, 8080, 9090]
                    .map(|port| build::tcp(ends, 40_000, port, TcpFlags::SYN));
                let others = [build::udp(ends, 40_000, 53, b"?"), build::echo_request(ends, 1, 1)];
                for frame in tcp.iter().chain(&others) {
                    let headers = extract(frame, from.port).unwrap();
                    pipeline.judge(&headers, frame.len(), now);
                }
            }
        }
    }
}

/// Both families, if both have both.
fn ends(from: &Workload, to: &Workload) -> Vec<Ends> {
    let (Some(eth_src), Some(eth_dst)) = (from.mac, to.mac) else { return Vec::new() };
    let pair = |v4: bool| {
        let address = |workload: &Workload| {
            workload.addresses.iter().copied().find(|addr: &IpAddr| addr.is_ipv4() == v4)
        };
        Some(Ends { eth_src, eth_dst, src: address(from)?, dst: address(to)? })
    };
    [true, false].into_iter().filter_map(pair).collect()
}
