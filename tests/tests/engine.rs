//! The engine with its real threads, over memory ports: snapshots come into force whole or not at
//! all, ports come and go, and every frame of the umem comes back.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::*;
use firedoor_api::dataplane::PortState;
use firedoor_classifier::snapshot::{Lane, Snapshot, Workload};
use firedoor_classifier::{DropReason, Nanos, build};
use firedoor_dataplane::engine::{Engine, EngineError, Lease, OpenFailure, Opened, Opener};
use firedoor_dataplane::pool::FramePool;
use firedoor_dataplane::port::memory::{self, Wire};
use firedoor_dataplane::sys::umem::Umem;
use firedoor_dataplane::wakefulness::{WINDOW, Wakefulness};
use firedoor_tests::fabric::{next_snapshot, snapshot};

/// Interfaces that exist, by name.
#[derive(Clone, Default)]
struct Cables(Arc<Mutex<BTreeMap<String, Cable>>>);

/// An interface's index, and the far end that was opened last. Index 0 cannot be opened.
type Cable = (u32, Option<Wire>);

impl Cables {
    fn of(snapshot: &Snapshot) -> Self {
        let cables = Self::default();
        snapshot.workloads.iter().for_each(|w| cables.plug(&w.ifname, 1));
        cables
    }

    fn plug(&self, ifname: &str, index: u32) {
        self.0.lock().unwrap().insert(ifname.into(), (index, None));
    }

    fn unplug(&self, ifname: &str) {
        self.0.lock().unwrap().remove(ifname);
    }

    fn wire(&self, snapshot: &Snapshot, workload: &str) -> Wire {
        let ifname = &snapshot.workloads.iter().find(|w| w.name == workload).unwrap().ifname;
        self.0.lock().unwrap()[ifname].1.clone().expect("an open port")
    }
}

impl Opener for Cables {
    fn open(
        &mut self,
        umem: &Arc<Umem>,
        _: Lease,
        workload: &Workload,
        _: &mut FramePool,
    ) -> Result<Opened, OpenFailure> {
        let mut cables = self.0.lock().unwrap();
        let (ifindex, wire) = cables.get_mut(&workload.ifname).ok_or(OpenFailure::Missing)?;
        if *ifindex == 0 {
            return Err(OpenFailure::Failed("the test says no".into()));
        }
        let (port, far) = memory::pair(Arc::clone(umem));
        let port = port.with_wakeup().map_err(|e| OpenFailure::Failed(e.to_string()))?;
        *wire = Some(far);
        Ok(Opened {
            queues: vec![Box::new(port)],
            mode: "memory".into(),
            notices: Vec::new(),
            lane: Lane::Switch,
            ifindex: *ifindex,
        })
    }
}

/// Waits for `count` frames to arrive.
fn arrive(wire: &Wire, count: usize) -> Vec<Vec<u8>> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut frames = Vec::new();
    while frames.len() < count && Instant::now() < deadline {
        frames.extend(wire.receive_all());
        std::thread::sleep(Duration::from_millis(1));
    }
    frames
}

/// Waits until the engine has counted `count` drops for `reason`.
fn drops(engine: &Engine, reason: DropReason, count: u64) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if engine.status().drops.contains(&(reason, count)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

fn start(config: &str) -> (Engine, Snapshot, Cables) {
    let snapshot = snapshot(config);
    let cables = Cables::of(&snapshot);
    let engine = Engine::start(snapshot.clone(), Box::new(cables.clone())).unwrap();
    (engine, snapshot, cables)
}

fn stop(engine: Engine) {
    let frames = engine.status().frames as usize;
    assert_eq!(engine.stop(), frames, "frames out equal frames in");
}

#[test]
fn conversations_cross_whatever_the_number_of_workers() {
    for workers in 1..=3 {
        let config = CONFIG.replace("[switch]", &format!("[switch]\nworkers = {workers}"));
        let (engine, snapshot, cables) = start(&config);
        let (web, api) = (cables.wire(&snapshot, "web"), cables.wire(&snapshot, "api"));
        for port in 5_001..=5_200 {
            web.send(build::udp(ends(WEB, API), port, 53, b"?"));
        }
        assert_eq!(arrive(&api, 200).len(), 200, "{workers} workers");
        for port in 5_001..=5_200 {
            api.send(build::udp(ends(API, WEB), 53, port, b"!"));
        }
        assert_eq!(arrive(&web, 200).len(), 200, "{workers} workers");
        assert_eq!(engine.connections().len(), 200);
        stop(engine);
    }
}

#[test]
fn no_frame_passes_on_the_old_policy_once_install_returned() {
    let (mut engine, snapshot, cables) = start(CONFIG);
    let (web, api) = (cables.wire(&snapshot, "web"), cables.wire(&snapshot, "api"));
    let query = || build::udp(ends(WEB, API), 5_000, 53, b"?");
    web.send(query());
    assert_eq!(arrive(&api, 1).len(), 1);
    let denying = CONFIG.replacen("action = \"allow\"", "action = \"deny\"", 1);
    engine.install(next_snapshot(&denying, &snapshot)).unwrap();
    for _ in 0..100 {
        web.send(query());
    }
    assert!(drops(&engine, DropReason::Denied, 100));
    assert!(api.receive().is_none());
    stop(engine);
}

#[test]
fn a_snapshot_that_cannot_be_enforced_changes_nothing() {
    let (mut engine, snapshot, cables) = start(CONFIG);
    let mut broken = next_snapshot(CONFIG, &snapshot);
    broken.workloads[1].mac = broken.workloads[0].mac;
    assert!(matches!(engine.install(broken), Err(EngineError::Policy(_))));
    let old = engine.install(snapshot.clone());
    assert!(matches!(old, Err(EngineError::Epoch { offered: 1, current: 1 })), "{old:?}");

    assert_eq!(engine.status().epoch, snapshot.epoch);
    let (web, api) = (cables.wire(&snapshot, "web"), cables.wire(&snapshot, "api"));
    web.send(build::udp(ends(WEB, API), 5_000, 53, b"?"));
    assert_eq!(arrive(&api, 1).len(), 1);
    stop(engine);
}

#[test]
fn a_port_whose_interface_vanishes_is_reported_and_attached_again() {
    let (mut engine, snapshot, cables) = start(CONFIG);
    let api = snapshot.workloads.iter().find(|w| w.name == "api").unwrap().ifname.clone();
    cables.unplug(&api);
    let status = engine.link_changed(&api, None).expect("a change");
    assert_eq!((status.workload.as_str(), status.state), ("api", PortState::Missing));

    let web = cables.wire(&snapshot, "web");
    let query = || build::udp(ends(WEB, API), 5_000, 53, b"?");
    web.send(query());
    assert!(drops(&engine, DropReason::PortDown, 1), "the others go on");

    cables.plug(&api, 2);
    assert_eq!(engine.link_changed(&api, Some(2)).expect("a change").state, PortState::Up);
    assert_eq!(engine.link_changed(&api, Some(2)), None, "no change");
    web.send(query());
    assert_eq!(arrive(&cables.wire(&snapshot, "api"), 1).len(), 1);

    // Made anew so fast that its end was never seen.
    cables.plug(&api, 3);
    engine.link_changed(&api, Some(3));
    web.send(query());
    assert_eq!(arrive(&cables.wire(&snapshot, "api"), 1).len(), 1);
    stop(engine);
}

#[test]
fn a_port_that_cannot_be_attached_says_why_and_is_tried_again() {
    let snapshot = snapshot(CONFIG);
    let cables = Cables::of(&snapshot);
    let db = &snapshot.workloads.iter().find(|w| w.name == "db").unwrap().ifname;
    cables.plug(db, 0);
    let mut engine = Engine::start(snapshot.clone(), Box::new(cables.clone())).unwrap();
    let states = |engine: &Engine| -> Vec<PortState> {
        engine.ports().into_iter().map(|port| port.state).collect()
    };
    let failed = PortState::Failed("the test says no".into());
    assert!(states(&engine).contains(&failed));
    assert_eq!(engine.retry_ports(), []);
    cables.plug(db, 5);
    assert_eq!(engine.retry_ports().len(), 1);
    assert!(states(&engine).iter().all(|state| *state == PortState::Up));
    stop(engine);
}

#[test]
fn workloads_come_and_go_with_snapshots() {
    let (mut engine, first, cables) = start(CONFIG);
    let without = {
        let mut next = next_snapshot(CONFIG, &first);
        next.workloads.retain(|workload| workload.name != "db");
        next
    };
    engine.install(without.clone()).unwrap();
    assert_eq!(engine.ports().len(), 2);
    engine.install(next_snapshot(CONFIG, &without)).unwrap();
    assert_eq!(engine.ports().len(), 3);
    let (web, api) = (cables.wire(&first, "web"), cables.wire(&first, "api"));
    web.send(build::udp(ends(WEB, API), 5_000, 53, b"?"));
    assert_eq!(arrive(&api, 1).len(), 1, "the others stayed attached all the while");
    stop(engine);
}

/// The same, where processors are kept awake by a file.
struct CablesAndDevice(Cables, std::path::PathBuf);

impl Opener for CablesAndDevice {
    fn open(
        &mut self,
        umem: &Arc<Umem>,
        lease: Lease,
        workload: &Workload,
        pool: &mut FramePool,
    ) -> Result<Opened, OpenFailure> {
        self.0.open(umem, lease, workload, pool)
    }

    fn wakefulness(&self) -> Wakefulness {
        Wakefulness::by(&self.1, std::path::Path::new("/dev/null"))
    }
}

#[test]
fn processors_are_kept_awake_while_frames_come_often_if_the_config_asks_for_it() {
    const BURST: u16 = 10_000;
    let device = tempfile::NamedTempFile::new().unwrap();
    let asking = |what: &str| CONFIG.replace("[switch]", &format!("[switch]\n{what}"));
    let snapshot = snapshot(&asking("wake_within_us = 7"));
    let cables = Cables::of(&snapshot);
    let opener = CablesAndDevice(cables.clone(), device.path().to_owned());
    let mut engine = Engine::start(snapshot.clone(), Box::new(opener)).unwrap();
    let held = |engine: &Engine| engine.status().awake.map(|awake| awake.held);
    let (web, api) = (cables.wire(&snapshot, "web"), cables.wire(&snapshot, "api"));
    let mut now = Nanos(0);
    let mut second = |engine: &mut Engine, frames: u16| {
        for port in 0..frames {
            web.send(build::udp(ends(WEB, API), 5_000, 53, &port.to_be_bytes()));
            if port % 64 == 63 {
                assert_eq!(arrive(&api, 64).len(), 64);
            }
        }
        arrive(&api, usize::from(frames % 64));
        now = Nanos(now.0 + WINDOW.0);
        engine.watch_load(now);
        held(engine)
    };

    assert_eq!(second(&mut engine, 0), Some(false));
    assert_eq!(second(&mut engine, BURST), Some(true));
    assert!(std::fs::read(device.path()).unwrap().starts_with(&7_u32.to_ne_bytes()));
    let quiet: Vec<_> = (0..10).map(|_| second(&mut engine, 0)).collect();
    assert_eq!((quiet[0], quiet[9]), (Some(true), Some(false)));

    assert_eq!(second(&mut engine, BURST), Some(true));
    engine.install(next_snapshot(CONFIG, &snapshot)).unwrap();
    assert_eq!(second(&mut engine, BURST), None, "no config asks for it any more");
    stop(engine);
}
