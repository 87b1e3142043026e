//! Replays of a small capture whose every frame has a known fate.
//!
//! The capture is committed, for the README and for other tests, and made by [`capture`] here; with
//! `FIREDOOR_WRITE_CORPUS=1` the test that compares the two writes it.

use std::borrow::Cow;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use firedoor_bench::replay::{Decided, Options, ReplayError, Report, run};
use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::wire::tcp::Repr;
use firedoor_classifier::{MacAddr, Policy};
use firedoor_control::compile::compile;
use pcap_file::DataLink;
use pcap_file::pcap::{PcapPacket, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;

/// Nobody's address.
const STRANGER: MacAddr = MacAddr([2, 0, 0, 0, 0xbe, 0xef]);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn committed() -> PathBuf {
    root().join("tests/corpus/capture/three-tier.pcap")
}

/// The policy of configs/three-tier.toml.
fn policy() -> Policy {
    let path = root().join("configs/three-tier.toml");
    let text = fs::read_to_string(&path).expect("the config is there");
    let today = jiff::civil::date(2026, 1, 1);
    let compiled = compile("three-tier.toml", &text, None, today).expect("the config compiles");
    Policy::build(compiled.snapshot).expect("a valid snapshot")
}

/// From one workload to another, over IPv4.
fn ends(policy: &Policy, from: &str, to: &str) -> Ends {
    let end = |name: &str| {
        let workload = policy.workload(name).expect("the workload");
        let v4 = workload.addresses.iter().find(|address| address.is_ipv4());
        (workload.mac.expect("an address"), *v4.expect("an IPv4 address"))
    };
    let ((eth_src, src), (eth_dst, dst)) = (end(from), end(to));
    Ends { eth_src, eth_dst, src, dst }
}

/// Twelve frames that come in, and two of a stranger.
fn frames(policy: &Policy) -> Vec<Vec<u8>> {
    let ask = ends(policy, "web", "api");
    let spoofed = Ends { src: IpAddr::from([10, 10, 0, 99]), ..ask };
    let tcp = |ends, source_port, destination_port, flags, (sequence, acknowledgement)| {
        let window = 64_240;
        let header =
            Repr { source_port, destination_port, sequence, acknowledgement, flags, window };
        build::tcp_segment(ends, header, &[])
    };
    let syn = |ends, from, to| tcp(ends, from, to, TcpFlags::SYN, (100, 0));
    let syn_ack = TcpFlags::SYN | TcpFlags::ACK;
    vec![
        // A conversation that a rule allows, both ways.
        syn(ask, 40_000, 8080),
        tcp(ask.reversed(), 8080, 40_000, syn_ack, (500, 101)),
        tcp(ask, 40_000, 8080, TcpFlags::ACK, (101, 501)),
        build::echo_request(ask, 1, 1),
        build::echo_reply(ask.reversed(), 1, 1),
        // One that another rule allows.
        syn(ends(policy, "api", "db"), 40_001, 5432),
        // What no rule allows.
        syn(ends(policy, "web", "db"), 40_002, 5432),
        syn(ends(policy, "intruder", "api"), 40_003, 8080),
        build::udp(ends(policy, "intruder", "db"), 40_004, 53, b"?"),
        // A lie about who sends, and a frame that is none.
        syn(spoofed, 40_005, 8080),
        build::ethernet(ask.eth_dst, ask.eth_src, 0x0800, &[0x45]),
        build::udp(ask, 40_006, 8080, b"!"),
        build::udp(Ends { eth_src: STRANGER, ..ask }, 1, 8080, b"who?"),
        build::udp(Ends { eth_src: STRANGER, ..ask }, 2, 8080, b"who?"),
    ]
}

/// A pcap file of them, and of one that was cut when it was captured.
fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = PcapWriter::new(Vec::new()).expect("a header");
    for (at, frame) in frames.iter().enumerate() {
        let time = Duration::from_micros(at as u64);
        let packet = PcapPacket::new(time, frame.len() as u32, frame);
        writer.write_packet(&packet).expect("a record");
    }
    let cut = PcapPacket::new(Duration::ZERO, 1_500, &frames[0]);
    writer.write_packet(&cut).expect("a record");
    writer.into_writer()
}

/// A pcapng file of them.
fn capture_ng(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = PcapNgWriter::new(Vec::new()).expect("a header");
    let linktype = DataLink::ETHERNET;
    let interface = InterfaceDescriptionBlock { linktype, snaplen: 0xffff, options: Vec::new() };
    writer.write_pcapng_block(interface).expect("a block");
    for frame in frames {
        let packet = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::ZERO,
            original_len: frame.len() as u32,
            data: Cow::Borrowed(frame),
            options: Vec::new(),
        };
        writer.write_pcapng_block(packet).expect("a block");
    }
    writer.into_inner()
}

fn replay(capture: &[u8], port: Option<&str>) -> Result<Report, ReplayError> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("capture");
    fs::write(&path, capture).expect("it can be written");
    run(&options(&path, port), &policy())
}

fn options(capture: &Path, port: Option<&str>) -> Options {
    Options { capture: capture.to_owned(), port: port.map(str::to_owned), passes: 2 }
}

#[test]
fn the_committed_capture_is_what_is_built_here() {
    let built = capture(&frames(&policy()));
    if std::env::var_os("FIREDOOR_WRITE_CORPUS").is_some() {
        fs::write(committed(), &built).expect("it can be written");
    }
    assert!(fs::read(committed()).expect("it is there") == built, "write it again");
}

#[test]
fn every_frame_meets_its_fate() {
    let report = run(&options(&committed(), None), &policy()).unwrap();
    assert_eq!((report.frames, report.sent), (12, 8), "one is answered");
    let decided =
        |rule: &str, forwarded, dropped| Decided { rule: rule.to_owned(), forwarded, dropped };
    let rules = [
        decided("web-to-api", 6, 0),
        decided("api-to-db", 1, 0),
        decided("reject-intruder", 0, 1),
        decided("default", 0, 2),
        decided("switch", 0, 2),
    ];
    assert_eq!(report.rules, rules);
    assert_eq!(report.drops.values().sum::<u64>(), 5, "{:?}", report.drops);
    assert!(report.would_drop.is_empty(), "{:?}", report.would_drop);
    let left_out = report.left_out;
    assert_eq!((left_out.unplayable, left_out.strangers), (1, 2));
    assert_eq!(left_out.stranger_macs, [(STRANGER.to_string(), 2)]);
    assert_eq!(left_out.damage, None);
    let times = report.ns_per_frame;
    for time in [times.extract, times.judge, times.path] {
        assert!(time.first > 0.0 && time.median > 0.0, "{times:?}");
    }
}

#[test]
fn pcapng_has_the_same_fate() {
    let frames = frames(&policy());
    let (pcap, ng) = (replay(&capture(&frames), None), replay(&capture_ng(&frames), None));
    let (pcap, ng) = (pcap.unwrap(), ng.unwrap());
    assert_eq!((ng.frames, ng.sent, ng.drops), (pcap.frames, pcap.sent, pcap.drops));
    assert_eq!(ng.rules, pcap.rules);
}

#[test]
fn all_may_come_in_by_one_port() {
    let report = replay(&capture(&frames(&policy())), Some("web")).unwrap();
    assert_eq!((report.frames, report.left_out.strangers), (14, 0));
    // What others sent would be spoofed by web.
    let spoofed: u64 =
        report.drops.iter().filter(|(r, _)| r.contains("spoof")).map(|(_, n)| n).sum();
    assert!(spoofed >= 8, "{:?}", report.drops);
}

#[test]
fn a_capture_that_breaks_off_is_replayed_so_far() {
    let file = capture(&frames(&policy()));
    let report = replay(&file[..file.len() - 300], None).unwrap();
    assert!((1..12).contains(&report.frames), "{}", report.frames);
    assert!(report.left_out.damage.is_some());
}

#[test]
fn what_cannot_be_replayed_says_what_to_do() {
    let policy = policy();
    let unknown = replay(&capture(&frames(&policy)), Some("cache")).unwrap_err().to_string();
    assert!(unknown.contains("\"cache\"") && unknown.contains("web, api, db"), "{unknown}");
    let strangers = capture(&frames(&policy)[12..]);
    let nothing = replay(&strangers, None).unwrap_err().to_string();
    assert!(nothing.contains(&STRANGER.to_string()) && nothing.contains("--port"), "{nothing}");
    assert!(matches!(replay(b"GIF89a: no capture at all", None), Err(ReplayError::Capture(_))));
}
