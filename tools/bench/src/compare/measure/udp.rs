//! UDP one way, as fast as it goes, counted where it arrives.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::window::{Window, watch};
use super::{Manner, Sample};
use crate::compare::error::{BuildError, building};
use crate::compare::scenario::{Metric, Size};
use crate::compare::topology::{HOST_IFNAME, Topology};

/// The receiver's port.
const PORT: u16 = 9;
/// How long frames flow before they are watched.
const SETTLE: Duration = Duration::from_millis(300);

/// Measures the rate of frames that arrive.
pub(super) fn measure(
    _flows: u32,
    _size: Size,
    topology: &Topology,
    manner: &Manner<'_>,
) -> Result<Sample, BuildError> {
    let (sent, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let receiver = topology.receiver_netns();
    let sink = receiver.run(|| UdpSocket::bind((topology.receiver().ip, PORT)))?;
    let _sink = building("open a UDP socket", sink)?;
    let (window, offered) = thread::scope(|scope| {
        let generator =
            scope.spawn(|| topology.sender_netns().run(|| flood(topology, &sent, &done)));
        let watched = receiver.run(|| -> Result<(Window, u64), BuildError> {
            manner.wait(SETTLE)?;
            let before = sent.load(Ordering::Relaxed);
            let window = watch(manner, || received(HOST_IFNAME))?;
            Ok((window, sent.load(Ordering::Relaxed) - before))
        });
        done.store(true, Ordering::Relaxed);
        if let Ok(ended) = generator.join() {
            building("send UDP", ended?)?;
        }
        watched?
    })?;
    let lost = 1.0 - window.count as f64 / (offered as f64).max(1.0);
    Ok(Sample::of([
        (Metric::FramesPerSecond, window.rate()),
        (Metric::CpuNsPerFrame, window.ns_each()),
        (Metric::Lost, lost.clamp(0.0, 1.0)),
    ]))
}

fn flood(topology: &Topology, sent: &AtomicU64, done: &AtomicBool) -> io::Result<()> {
    let socket = UdpSocket::bind((topology.sender().ip, 0))?;
    socket.connect((topology.receiver().ip, PORT))?;
    while !done.load(Ordering::Relaxed) {
        let passed = (0..64).filter(|_| socket.send(&[0x66; 18]).is_ok()).count();
        sent.fetch_add(passed as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Frames that an interface of this thread's namespace has received.
fn received(ifname: &str) -> io::Result<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/dev")?;
    let counters = table.lines().find_map(|line| line.trim_start().strip_prefix(ifname));
    let packets = counters.and_then(|line| line.trim_start_matches(':').split_whitespace().nth(1));
    packets.and_then(|text| text.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
