//! The control role against a data plane that only remembers what it was told, over real sockets.
#![allow(clippy::unwrap_used, reason = "what a test cannot go on without fails it")]

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use firedoor_api::control::{self, Deny};
use firedoor_api::dataplane::{Denied, Event, PortState, PortStatus, Reply, Request, Status};
use firedoor_api::{Decoder, encode};
use firedoor_classifier::Snapshot;
use firedoor_classifier::snapshot::{Lane, PortId};
use firedoor_classifier::verdict::DropReason;
use firedoor_control::client::{ClientError, ControlClient};
use firedoor_control::daemon::{Daemon, Options};
use firedoor_control::rundir::RunDir;

const CONFIG: &str = r#"
[switch]
name = "lab0"

[[workload]]
name = "web"
kind = "container"
labels = { tier = "web" }
ip = ["10.10.0.10/24"]

[[workload]]
name = "db"
kind = "container"
labels = { tier = "db" }
ip = ["10.10.0.30/24"]

[[rule]]
name = "web-to-db"
from = { tier = "web" }
to = { tier = "db" }
service = ["tcp/5432"]
action = "allow"
"#;

/// What the fake data plane knows.
#[derive(Default)]
struct Memory {
    snapshot: Option<Snapshot>,
    /// Epochs installed, in order.
    installed: Vec<u64>,
    /// Answers the next `Install` with this refusal.
    refuse: Option<String>,
    subscribers: Vec<UnixStream>,
    connections: Vec<UnixStream>,
}

/// A data plane as far as control can see.
struct FakeDataplane {
    socket: PathBuf,
    memory: Arc<Mutex<Memory>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDataplane {
    fn start(run_dir: &RunDir, memory: &Arc<Mutex<Memory>>) -> Self {
        let socket = run_dir.dataplane_socket();
        let listener = UnixListener::bind(&socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (memory, stopping) = (Arc::clone(memory), Arc::clone(&stop));
        let shared = Arc::clone(&memory);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, memory) = (stream.unwrap(), Arc::clone(&shared));
                memory.lock().unwrap().connections.push(stream.try_clone().unwrap());
                thread::spawn(move || serve(stream, &memory));
            }
        });
        Self { socket, memory, stop, thread: Some(thread) }
    }

    fn send(&self, event: &Event) {
        let bytes = encode(event).unwrap();
        for mut subscriber in &self.memory.lock().unwrap().subscribers {
            subscriber.write_all(&bytes).unwrap();
        }
    }
}

impl Drop for FakeDataplane {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        fs::remove_file(&self.socket).unwrap();
        self.thread.take().unwrap().join().unwrap();
        let mut memory = self.memory.lock().unwrap();
        memory.subscribers.clear();
        for connection in memory.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn serve(mut stream: UnixStream, memory: &Mutex<Memory>) {
    let mut decoder = Decoder::<Request>::default();
    let mut chunk = [0; 4096];
    loop {
        while let Some(request) = decoder.next_message().unwrap() {
            let mut memory = memory.lock().unwrap();
            let Some(reply) = memory.answer(request, &stream) else { continue };
            if stream.write_all(&encode(&reply).unwrap()).is_err() {
                return;
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(n) => decoder.push(&chunk[..n]),
        }
    }
}

impl Memory {
    fn answer(&mut self, request: Request, stream: &UnixStream) -> Option<Reply> {
        Some(match request {
            Request::Install(snapshot) => match self.refuse.take() {
                Some(message) => Reply::Refused { message },
                None => {
                    let epoch = snapshot.epoch;
                    self.installed.push(epoch);
                    self.snapshot = Some(*snapshot);
                    Reply::Installed { epoch, ports: self.ports() }
                }
            },
            Request::Snapshot => Reply::Snapshot(self.snapshot.clone().map(Box::new)),
            Request::Status => {
                let epoch = self.snapshot.as_ref().map_or(0, |s| s.epoch);
                Reply::Status(Box::new(Status { epoch, ..Status::default() }))
            }
            Request::Ports => Reply::Ports(self.ports()),
            Request::Flows => Reply::Flows(Vec::new()),
            Request::Subscribe => {
                self.subscribers.push(stream.try_clone().unwrap());
                return None;
            }
            Request::Retire => Reply::Refused { message: "control does not ask this".into() },
        })
    }

    fn ports(&self) -> Vec<PortStatus> {
        let workloads = self.snapshot.iter().flat_map(|s| &s.workloads);
        let port = |w: &firedoor_classifier::snapshot::Workload| PortStatus {
            workload: w.name.clone(),
            port: w.port,
            ifname: w.ifname.clone(),
            state: PortState::Missing,
            lane: Lane::Switch,
            mode: String::new(),
            workers: Vec::new(),
            notices: Vec::new(),
            counters: Default::default(),
        };
        workloads.map(port).collect()
    }
}

/// A run directory with a config and a data plane, ready for a control.
struct Switch {
    dataplane: Option<FakeDataplane>,
    memory: Arc<Mutex<Memory>>,
    run_dir: RunDir,
    config: PathBuf,
    /// Removed last.
    _base: tempfile::TempDir,
}

impl Switch {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let run_dir = RunDir::at(base.path().join("lab0"));
        run_dir.create().unwrap();
        let config = base.path().join("lab0.toml");
        fs::write(&config, CONFIG).unwrap();
        let memory = Arc::default();
        let dataplane = Some(FakeDataplane::start(&run_dir, &memory));
        Self { dataplane, memory, run_dir, config, _base: base }
    }

    fn start_control(&self) -> Daemon {
        let (run_dir, config) = (self.run_dir.path().to_owned(), self.config.clone());
        Daemon::start(Options { run_dir, config, capture_dir: None, version: "" }).unwrap()
    }

    fn ask(&self, request: &control::Request) -> Result<control::Reply, ClientError> {
        ControlClient::to_control(&self.run_dir)?.ask(request)
    }

    fn refusal(&self, request: &control::Request) -> String {
        match self.ask(request) {
            Err(ClientError::Refused { message }) => message,
            other => panic!("{request:?} was answered by {other:?}"),
        }
    }

    fn applied(&self, request: &control::Request) -> (u64, Vec<String>) {
        match self.ask(request) {
            Ok(control::Reply::Applied { epoch, notices, .. }) => (epoch, notices),
            other => panic!("{request:?} was answered by {other:?}"),
        }
    }

    fn apply(&self, text: &str) -> control::Request {
        control::Request::Apply { path: "new.toml".into(), text: text.to_owned() }
    }

    fn denies(&self) -> Vec<Deny> {
        match self.ask(&control::Request::Denies) {
            Ok(control::Reply::Denies(denies)) => denies,
            other => panic!("{other:?}"),
        }
    }

    fn installed(&self) -> Vec<u64> {
        self.memory.lock().unwrap().installed.clone()
    }

    /// Waits until control knows that this epoch is in force.
    fn await_epoch(&self, epoch: u64) {
        wait_until("the epoch is in force", || {
            matches!(
                self.ask(&control::Request::Snapshot),
                Ok(control::Reply::Snapshot(Some(snapshot))) if snapshot.epoch == epoch
            )
        });
    }

    fn await_subscriber(&self) {
        wait_until("control has subscribed", || {
            !self.memory.lock().unwrap().subscribers.is_empty()
        });
    }
}

/// Waits for what must come; the limit only turns a hang into a failure.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < limit, "in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn denied(dst_port: u16) -> Denied {
    Denied {
        unix_ns: 1_790_000_000_000_000_001,
        epoch: 1,
        port: PortId(1),
        from: "web".into(),
        to: "db".into(),
        rule: "default".into(),
        reason: DropReason::DefaultDeny,
        dropped: true,
        protocol: 6,
        ether_type: 0x0800,
        src: Some([10, 10, 0, 10].into()),
        dst: Some([10, 10, 0, 30].into()),
        src_port: 40_000,
        dst_port,
        length: 60,
        bytes: vec![0xab; 60],
    }
}

#[test]
fn the_config_is_put_in_force_and_told() {
    let switch = Switch::new();
    let _control = switch.start_control();
    switch.await_epoch(1);
    assert_eq!(switch.installed(), [1]);
    let Ok(control::Reply::Status(status)) = switch.ask(&control::Request::Status) else {
        panic!("no status");
    };
    assert_eq!(status.switch, "lab0");
    assert_eq!(status.dataplane.map(|d| d.epoch), Some(1));
    let names: Vec<_> = status.ports.iter().map(|p| p.workload.as_str()).collect();
    assert_eq!(names, ["web", "db"]);
}

#[test]
fn a_restarted_control_goes_on_with_what_was_applied_not_with_the_file() {
    let switch = Switch::new();
    drop(switch.start_control());
    let control = switch.start_control();
    switch.await_epoch(1);
    assert_eq!(switch.applied(&switch.apply(&CONFIG.replace("5432", "5433"))).0, 2);
    drop(control);

    fs::write(&switch.config, CONFIG.replace("5432", "9999")).unwrap();
    let control = switch.start_control();
    switch.await_epoch(2);
    assert_eq!(switch.installed(), [1, 2]);

    control.reload();
    switch.await_epoch(3);
    assert_eq!(switch.installed(), [1, 2, 3]);
}

#[test]
fn an_equal_policy_is_not_installed_again() {
    let switch = Switch::new();
    let _control = switch.start_control();
    switch.await_epoch(1);
    let same = format!("# Another comment.\n{CONFIG}");
    assert_eq!(switch.applied(&switch.apply(&same)).0, 1);
    assert_eq!(switch.installed(), [1]);
}

#[test]
fn a_config_that_does_not_compile_changes_nothing() {
    let switch = Switch::new();
    let control = switch.start_control();
    switch.await_epoch(1);
    let broken = CONFIG.replace("labels", "lables");
    let message = switch.refusal(&switch.apply(&broken));
    assert!(message.contains("new.toml:8:1") && message.contains("labels"), "{message}");

    fs::write(&switch.config, broken).unwrap();
    control.reload();
    // Orders are taken one after the other: when this is answered, the reload is over.
    switch.refusal(&control::Request::PortDel { name: "nobody".into() });
    assert_eq!(switch.installed(), [1]);
    drop(control);
    let _control = switch.start_control();
    switch.await_epoch(1);
    assert_eq!(switch.installed(), [1]);
}

#[test]
fn a_config_of_another_switch_is_refused() {
    let switch = Switch::new();
    let _control = switch.start_control();
    switch.await_epoch(1);
    let message = switch.refusal(&switch.apply(&CONFIG.replace("lab0", "lab1")));
    assert!(message.contains("\"lab1\"") && message.contains("\"lab0\""), "{message}");
    assert_eq!(switch.installed(), [1]);
}

#[test]
fn what_the_data_plane_refuses_is_not_applied() {
    let switch = Switch::new();
    let control = switch.start_control();
    switch.await_epoch(1);
    switch.memory.lock().unwrap().refuse = Some("no room".into());
    assert_eq!(switch.refusal(&switch.apply(&CONFIG.replace("5432", "1"))), "no room");
    drop(control);
    let _control = switch.start_control();
    switch.await_epoch(1);
    assert_eq!(switch.installed(), [1]);
}

#[test]
fn a_restarted_data_plane_is_found_and_brought_up_to_date() {
    let mut switch = Switch::new();
    let _control = switch.start_control();
    switch.await_epoch(1);
    switch.dataplane = None;
    let message = switch.refusal(&switch.apply(&CONFIG.replace("5432", "1")));
    assert!(message.contains("the data plane of switch"), "{message}");
    let Ok(control::Reply::Status(status)) = switch.ask(&control::Request::Status) else {
        panic!("no status");
    };
    assert_eq!((status.dataplane, status.ports.len()), (None, 2));

    // It comes back with its saved snapshot: nothing to do.
    switch.dataplane = Some(FakeDataplane::start(&switch.run_dir, &switch.memory));
    switch.await_subscriber();
    switch.applied(&switch.apply(CONFIG));
    assert_eq!(switch.installed(), [1]);

    // It comes back without: the policy is installed, and the epoch still grows.
    switch.dataplane = None;
    switch.memory.lock().unwrap().snapshot = None;
    switch.dataplane = Some(FakeDataplane::start(&switch.run_dir, &switch.memory));
    wait_until("the policy is installed", || switch.installed() == [1, 2]);
}

#[test]
fn ports_come_and_go_and_a_restarted_control_remembers() {
    let switch = Switch::new();
    let control = switch.start_control();
    switch.await_epoch(1);
    let cache = "name = \"cache\"\nkind = \"vm\"\nifname = \"tap7\"\nip = [\"10.10.0.70/24\"]\n";
    let add = control::Request::PortAdd { workload: cache.into() };
    assert_eq!(switch.applied(&add).0, 2);
    assert!(switch.refusal(&add).contains("port del cache"));
    assert_eq!(switch.applied(&control::Request::PortDel { name: "web".into() }).0, 3);
    let unknown = switch.refusal(&control::Request::PortDel { name: "web".into() });
    assert!(unknown.contains("web"), "{unknown}");
    drop(control);

    let _control = switch.start_control();
    switch.await_epoch(3);
    let names = |switch: &Switch| -> Vec<String> {
        let memory = switch.memory.lock().unwrap();
        memory.snapshot.iter().flat_map(|s| &s.workloads).map(|w| w.name.clone()).collect()
    };
    assert_eq!(names(&switch), ["db", "cache"]);
    let port_of_db = switch.memory.lock().unwrap().ports()[0].port;

    // A config that is applied says again who is in it; what was added by hand stays.
    let (epoch, notices) = switch.applied(&switch.apply(CONFIG));
    assert_eq!(epoch, 4);
    assert!(notices.iter().any(|n| n.starts_with("web: ")), "{notices:?}");
    assert_eq!(names(&switch), ["web", "db", "cache"]);
    assert_eq!(switch.memory.lock().unwrap().ports()[1].port, port_of_db);
}

#[test]
fn denied_frames_are_listed_captured_and_followed() {
    let switch = Switch::new();
    let _control = switch.start_control();
    switch.await_epoch(1);
    switch.await_subscriber();
    let mut follower = ControlClient::to_control(&switch.run_dir).unwrap();
    follower.send(&control::Request::FollowDenies).unwrap();
    assert_eq!(follower.news().unwrap(), control::Reply::Denies(Vec::new()));

    let dataplane = switch.dataplane.as_ref().unwrap();
    dataplane.send(&Event::Denied(Box::new(denied(22))));
    let Ok(control::Reply::Denies(news)) = follower.news() else { panic!("no news") };
    assert_eq!(news.len(), 1);
    assert_eq!((news[0].service.as_str(), news[0].count), ("tcp/22", 1));

    dataplane.send(&Event::MirrorLost(17));
    dataplane.send(&Event::Denied(Box::new(denied(22))));
    dataplane.send(&Event::Denied(Box::new(denied(23))));
    wait_until("all frames are counted", || {
        switch.denies().iter().map(|d| d.count).sum::<u64>() == 3
    });

    let Ok(control::Reply::Status(status)) = switch.ask(&control::Request::Status) else {
        panic!("no status");
    };
    assert_eq!((status.captured, status.capture_lost, status.mirror_lost), (3, 0, 17));
    let capture = fs::read(&status.capture).unwrap();
    for deny in switch.denies() {
        assert_eq!(deny.capture, "denies.pcapng");
        let block = &capture[usize::try_from(deny.capture_offset).unwrap()..];
        assert_eq!(block[..4], 6u32.to_le_bytes());
        let comment = format!("web -> db {} denied: no rule allows it", deny.service);
        assert!(block.windows(comment.len()).any(|w| w == comment.as_bytes()));
    }
}
