//! A storm: any bytes as a sequence of frames into a whole switch. The fuzz target `path` and the
//! tests share it.

use std::sync::LazyLock;

use firedoor_classifier::Snapshot;

use crate::fabric::{Fabric, snapshot};

/// A small switch with every kind of port: router, DHCP server, trunk, both families.
pub const CONFIG: &str = r#"
[switch]
name = "storm"
frames = 512
max_connections = 64
max_flows = 256
mirror_snaplen = 64

[[workload]]
name = "web"
kind = "container"
labels = { tier = "web" }
ip = ["10.0.0.1/24", "fd00::1/64"]
mac = "02:00:00:00:00:01"

[[workload]]
name = "api"
kind = "container"
labels = { tier = "api" }
ip = ["10.0.0.2/24", "fd00::2/64"]
mac = "02:00:00:00:00:02"

[[workload]]
name = "gateway"
kind = "external"
ifname = "fdgw"
router = true
dhcp_server = true
ip = ["10.0.0.254/24", "fd00::254/64"]
mac = "02:00:00:00:00:fe"

[[group]]
name = "office"
cidr = ["192.0.2.0/24"]

[[rule]]
name = "web-to-api"
from = { tier = "web" }
to = { tier = "api" }
service = ["tcp/8080", "udp/53", "icmp", "icmp6"]
action = "allow"

[[rule]]
name = "office-to-web"
from = { group = "office" }
to = { tier = "web" }
action = "allow"

[[rule]]
name = "no-telnet"
from = { any = true }
to = { any = true }
service = ["tcp/23"]
action = "reject"
tier = "emergency"
"#;

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| snapshot(CONFIG));

/// Feeds `bytes` to a switch: each frame is a port byte, a two-byte length, and the bytes. Checks
/// that no frame of the umem is lost, and that every frame was sent or dropped for a reason.
///
/// # Panics
/// If the switch misbehaves.
pub fn run(bytes: &[u8]) {
    let mut fabric = Fabric::of(SNAPSHOT.clone());
    let mut rest = bytes;
    while let Some((&[port, high, low], tail)) = rest.split_first_chunk::<3>() {
        let len = (usize::from(u16::from_be_bytes([high, low])) % 2048).min(tail.len());
        let (frame, tail) = tail.split_at(len);
        let from = ["web", "api", "gateway"][usize::from(port) % 3];
        rest = tail;
        fabric.wire(from).send(frame);
        fabric.settle();
    }
    let received = fabric.count(|counters| counters.received.get());
    if accounted(&fabric) < received {
        // What waits for a first fragment is neither sent nor dropped until its time has run out.
        fabric.wait(SNAPSHOT.settings.fragment_timeout_secs.into());
    }
    assert!(accounted(&fabric) >= received, "every frame was sent or dropped for a reason");
    fabric.finish();
}

/// Frames that were sent or dropped.
fn accounted(fabric: &Fabric) -> u64 {
    let dropped: u64 = fabric.drops().iter().map(|&(_, count)| count).sum();
    dropped + fabric.count(|counters| counters.sent.get())
}
