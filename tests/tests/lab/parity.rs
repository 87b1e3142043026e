//! What no lane may do otherwise than another. Each test runs over every lane, with the same frames, and wants
//! the same numbers from each: a conversation goes on meanwhile, which the kernel forwards wherever it
//! may, and what then comes must fare as if it did not.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use firedoor_api::control::{Deny, Status};
use firedoor_classifier::build::{self, Ends, TcpFlags};
use firedoor_classifier::checksum::Sum;
use firedoor_classifier::wire::protocol;
use firedoor_classifier::{DropReason, MacAddr};
use libtest_mimic::Failed;

use crate::express::connections;
use crate::fixture::{
    Fixture, allow, container, ensure, kernel_forwards, received, v4, v6, wait_for, wait_up_to,
};
use crate::policy::packet_socket;
use crate::{Shown, Test};

pub(crate) const TESTS: &[Test] = &[
    ("quarantine_cuts_what_goes_on_before_it_is_reported", &[], quarantine),
    ("who_is_somebody_else_by_policy_is_a_stranger_from_then_on", &[], identity),
    ("audit_mode_begins_and_ends_with_the_frame_after_it_was_applied", &[], audit),
    ("every_frame_is_counted_once_and_stays_so", &[], counted),
    ("what_is_not_plain_fares_alike_beside_a_conversation", &[], odd),
];

/// Datagrams of a batch.
const BATCH: usize = 100;
pub(crate) const FROM: u16 = 4_000;
pub(crate) const TO: u16 = 9;

/// `a` and `b`, and `c` who has no part in it.
fn workloads() -> String {
    container("a", 1) + &container("b", 2) + &container("c", 3)
}

/// A policy that lets `a` ask `b`.
fn open() -> String {
    workloads() + &allow("a", "b", "any")
}

/// Datagrams from `a` to `b`, in batches that are told apart.
struct Talk<'a> {
    lab: &'a Fixture,
    sender: UdpSocket,
    receiver: UdpSocket,
    batch: u8,
}

impl<'a> Talk<'a> {
    /// Begins, until the kernel forwards it where it may.
    fn start(lab: &'a Fixture) -> Result<Self, Failed> {
        let receiver = lab.netns("b")?.run(|| UdpSocket::bind(("::", TO)))??;
        let sender = lab.netns("a")?.run(|| UdpSocket::bind((v4(1), FROM)))??;
        sender.connect(SocketAddr::new(v4(2), TO))?;
        let mut talk = Self { lab, sender, receiver, batch: 0 };
        talk.go_on()?;
        Ok(talk)
    }

    /// Talks until the kernel forwards it where it may, and nothing is lost.
    fn go_on(&mut self) -> Shown {
        let mut state = String::new();
        let goes_on = wait_for(|| {
            let is_whole = self.passed(BATCH)? == BATCH;
            let flows = connections(self.lab, protocol::UDP)?;
            let is_forwarded = flows.iter().any(|flow| flow.kept.is_empty());
            state = format!("{flows:#?}");
            Ok(is_whole && is_forwarded == kernel_forwards())
        })?;
        ensure!(goes_on, "the conversation is not where it should be: {state}");
        Ok(())
    }

    /// How many of one more batch arrive, of which so many are due.
    fn passed(&mut self, due: usize) -> Result<usize, Failed> {
        self.batch += 1;
        for number in 0..BATCH {
            self.sender.send(&[self.batch; 40])?;
            if number % 10 == 9 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.arrived(due)
    }

    /// Datagrams of the last batch that arrive, of which so many are due.
    fn arrived(&self, due: usize) -> Result<usize, Failed> {
        let came = received(&self.receiver, due)?;
        Ok(came.iter().filter(|(bytes, _)| bytes[0] == self.batch).count())
    }
}

/// Frames dropped for that reason so far, and those that would have been.
fn drops(lab: &Fixture, reason: DropReason) -> Result<[u64; 2], Failed> {
    let status = lab.dataplane()?;
    Ok([status.drops, status.would_drops].map(|drops| {
        drops.into_iter().find(|&(other, _)| other == reason).map_or(0, |(_, count)| count)
    }))
}

/// Sends a batch. Fails unless it is dropped for that reason, frame by frame, and is on record so.
fn all_dropped(talk: &mut Talk<'_>, reason: DropReason) -> Shown {
    let [before, _] = drops(talk.lab, reason)?;
    let passed = talk.passed(0)?;
    ensure!(passed == 0, "{passed} passed");
    let mut dropped = 0;
    let all = wait_for(|| {
        dropped = drops(talk.lab, reason)?[0] - before;
        Ok(dropped == BATCH as u64)
    })?;
    ensure!(all, "{dropped} dropped as {reason:?}");
    on_record(talk.lab, |deny| deny.dropped && deny.reason == reason.slug())
}

/// Fails unless a batch of such refusals is on record.
fn on_record(lab: &Fixture, is_one: impl Fn(&Deny) -> bool) -> Shown {
    let mut denies = Vec::new();
    let is_it = |deny: &Deny| deny.service == format!("udp/{TO}") && is_one(deny);
    let recorded = wait_for(|| {
        denies = lab.denies(is_it)?;
        Ok(denies.iter().map(|deny| deny.count).sum::<u64>() == BATCH as u64)
    })?;
    ensure!(recorded, "on record: {denies:#?}");
    ensure!(denies.iter().all(|deny| !deny.capture.is_empty()), "not captured: {denies:#?}");
    Ok(())
}

fn quarantine() -> Shown {
    let lab = Fixture::up(&open())?;
    let mut talk = Talk::start(&lab)?;
    let rule = |name: &str, from: &str, to: &str| {
        format!(
            "[[rule]]\nname = \"{name}\"\nfrom = {{ {from} }}\nto = {{ {to} }}\n\
             action = \"deny\"\ntier = \"emergency\"\n\n"
        )
    };
    let [suspect, anybody] = ["workload = \"b\"", "any = true"];
    let rules = rule("out", suspect, anybody) + &rule("in", anybody, suspect);
    lab.apply(&(open() + &rules))?;
    all_dropped(&mut talk, DropReason::Denied)?;
    on_record(&lab, |deny| deny.rule == "in")?;
    lab.apply(&open())?;
    let passed = talk.passed(BATCH)?;
    ensure!(passed == BATCH, "{passed} passed after it");
    talk.go_on()
}

/// The workload goes on as it was.
fn identity() -> Shown {
    let lab = Fixture::up(&open())?;
    let mut talk = Talk::start(&lab)?;
    let [mine, another] = ["10.40.0.1/16\", \"fd00:40::1/", "10.40.0.11/16\", \"fd00:40::11/"];
    lab.apply(&open().replace(mine, another))?;
    all_dropped(&mut talk, DropReason::SpoofedIp)?;
    lab.apply(&open())?;
    talk.go_on()?;
    // Of the receiver: what is for its old address is for nobody.
    let [its, another] = ["10.40.0.2/16\", \"fd00:40::2/", "10.40.0.12/16\", \"fd00:40::12/"];
    let [before, _] = drops(&lab, DropReason::AddressMismatch)?;
    lab.apply(&open().replace(its, another))?;
    let (passed, mut after) = (talk.passed(0)?, 0);
    let all = wait_for(|| {
        [after, _] = drops(&lab, DropReason::AddressMismatch)?;
        Ok(after - before == BATCH as u64)
    })?;
    ensure!(passed == 0 && all, "{passed} passed, {before}, {after}");
    lab.apply(&open())?;
    talk.go_on()?;
    let name = "name = \"a\"\nkind";
    lab.apply(&open().replace(name, &format!("mac = \"02:00:00:00:0a:0a\"\n{name}")))?;
    // What else it says, to find out where others are, counts as well.
    let (passed, mut dropped) = (talk.passed(0)?, 0);
    let all = wait_for(|| {
        [dropped, _] = drops(&lab, DropReason::SpoofedMac)?;
        Ok(dropped >= BATCH as u64)
    })?;
    ensure!(passed == 0 && all, "{passed} passed, {dropped} were dropped");
    Ok(())
}

fn audit() -> Shown {
    const AUDIT: &str = "mode = \"audit\"";
    let lab = Fixture::up(&open())?;
    let mut talk = Talk::start(&lab)?;
    lab.apply_with(AUDIT, &workloads())?;
    let passed = talk.passed(BATCH)?;
    let [mut dropped, mut would] = [0; 2];
    let all = wait_for(|| {
        [dropped, would] = drops(&lab, DropReason::DefaultDeny)?;
        Ok(would == BATCH as u64)
    })?;
    ensure!(passed == BATCH && all, "{passed} passed, {would} recorded, {dropped}");
    on_record(&lab, |deny| !deny.dropped)?;
    lab.apply(&workloads())?;
    all_dropped(&mut talk, DropReason::DefaultDeny)?;
    lab.apply_with(AUDIT, &open())?;
    talk.go_on()?;
    let [_, after] = drops(&lab, DropReason::DefaultDeny)?;
    ensure!(after == would, "{} of those that are allowed were recorded", after - would);
    Ok(())
}

/// What a workload's port has counted: frames and bytes from it, and frames to it.
fn port(status: &Status, name: &str) -> Result<[u64; 3], Failed> {
    let port = status.ports.iter().find(|port| port.workload == name).ok_or("no such port")?;
    Ok([port.counters.rx_frames, port.counters.rx_bytes, port.counters.tx_frames])
}

fn counted() -> Shown {
    const BATCHES: usize = 20;
    /// Neighbours that are looked for, and what else nobody asked for.
    const NOISE: u64 = 40;
    const LENGTH: u64 = 14 + 20 + 8 + 40;
    // Longer than the kernel's counters may take to be read.
    let lab = Fixture::up_with("timeouts = { udp_single = 8 }", &open())?;
    let mut talk = Talk::start(&lab)?;
    let frames = |lab: &Fixture| -> Result<u64, Failed> {
        Ok(connections(lab, protocol::UDP)?.iter().map(|flow| flow.frames).sum())
    };
    let known = u64::from(talk.batch) * BATCH as u64;
    let all = wait_for(|| Ok(frames(&lab)? == known))?;
    ensure!(all, "{known} to begin with, but {}", frames(&lab)?);
    let before = lab.status()?;
    let passed = (0..BATCHES).try_fold(0, |sum, _| Ok::<_, Failed>(sum + talk.passed(BATCH)?))?;
    ensure!(passed == BATCHES * BATCH, "{passed} passed");
    let sent = passed as u64;
    let all = wait_for(|| Ok(frames(&lab)? == known + sent))?;
    ensure!(all, "{known} and {sent}, but {} in all", frames(&lab)?);
    let is_over = wait_for(|| Ok(frames(&lab)? == 0))?;
    ensure!(is_over, "the conversation does not end");
    let after = lab.status()?;
    let [a, b] =
        ["a", "b"].map(|name| Ok::<_, Failed>([port(&before, name)?, port(&after, name)?]));
    let ([a, later_a], [b, later_b]) = (a?, b?);
    let received = later_a[0] - a[0];
    ensure!((sent..sent + NOISE).contains(&received), "{received} received of {sent}");
    let bytes = later_a[1] - a[1];
    ensure!((sent * LENGTH..sent * LENGTH + NOISE * 100).contains(&bytes), "{bytes} bytes");
    let left = later_b[2] - b[2];
    ensure!((sent..sent + NOISE).contains(&left), "{left} left of {sent}");
    Ok(())
}

/// What becomes of a frame: it is received, or dropped for a reason.
type Fate = Result<(), DropReason>;

/// What a frame is, what becomes of it, and the frame, or its fragments.
pub(crate) type Odd = (&'static str, Fate, Vec<Vec<u8>>);

/// Frames of the conversation's flow that are not as those of it, or nearly of it.
fn oddities(macs: [MacAddr; 3], payload: &[u8]) -> Vec<Odd> {
    use DropReason as Why;
    let [a, b, c] = macs;
    let ends = Ends { eth_src: a, eth_dst: b, src: v4(1), dst: v4(2) };
    let ends_v6 = Ends { src: v6(1), dst: v6(2), ..ends };
    let plain = |ends| build::udp(ends, FROM, TO, payload);
    let frame = plain(ends);
    let with = |change: fn(&mut Vec<u8>)| {
        let mut changed = frame.clone();
        change(&mut changed);
        set_checksum(&mut changed);
        vec![changed]
    };
    let with_header = |kind: u8, header: [u8; 8]| {
        let mut changed = plain(ends_v6);
        changed.splice(54..54, header);
        changed[20] = kind;
        changed[19] += 8;
        vec![changed]
    };
    let mut wrong_sum = frame.clone();
    wrong_sum[24] ^= 1;
    let tcp = |flags| vec![build::tcp(ends, FROM, TO, flags)];
    vec![
        ("plain", Ok(()), vec![frame.clone()]),
        ("padded", Ok(()), vec![[&frame[..], &[0xee; 20]].concat()]),
        ("of IPv6", Ok(()), vec![plain(ends_v6)]),
        (
            "with options that do nothing",
            Ok(()),
            with(|frame| {
                frame.splice(34..34, [1; 4]);
                frame[14] = 0x46;
                frame[17] += 4;
            }),
        ),
        ("in two fragments", Ok(()), build::fragments(&frame, 7, 24)),
        ("of IPv6, in two fragments", Ok(()), build::fragments(&plain(ends_v6), 7, 24)),
        ("with destination options", Ok(()), with_header(60, [17, 0, 1, 4, 0, 0, 0, 0])),
        (
            "with a routing header",
            Err(Why::Ipv6Extension),
            with_header(43, [17, 0, 0, 0, 0, 0, 0, 0]),
        ),
        ("with a VLAN tag", Err(Why::VlanNotAllowed), vec![build::tagged(frame.clone(), &[10])]),
        ("with two tags", Err(Why::VlanNotAllowed), vec![build::tagged(frame.clone(), &[10, 20])]),
        ("at its life's end", Ok(()), with(|frame| frame[22] = 0)),
        ("with a wrong header checksum", Err(Why::Ipv4Malformed), vec![wrong_sum]),
        ("longer than it is", Err(Why::Ipv4Malformed), with(|frame| frame[17] += 40)),
        ("of a datagram longer than it", Err(Why::UdpMalformed), with(|frame| frame[39] += 1)),
        ("from another address", Err(Why::SpoofedIp), vec![plain(Ends { src: v4(3), ..ends })]),
        (
            "from another MAC address",
            Err(Why::SpoofedMac),
            vec![plain(Ends { eth_src: c, ..ends })],
        ),
        (
            "to another MAC address",
            Err(Why::AddressMismatch),
            vec![plain(Ends { eth_dst: c, ..ends })],
        ),
        (
            "to another workload",
            Err(Why::DefaultDeny),
            vec![plain(Ends { eth_dst: c, dst: v4(3), ..ends })],
        ),
        (
            "back to its sender",
            Err(Why::DefaultDeny),
            vec![plain(Ends { eth_dst: a, dst: v4(1), ..ends })],
        ),
        ("an ACK of nothing", Err(Why::TcpNotSyn), tcp(TcpFlags::ACK)),
        ("a RST of nothing", Err(Why::TcpNotSyn), tcp(TcpFlags::RST)),
        ("a SYN that ends", Err(Why::TcpMalformed), tcp(TcpFlags::SYN | TcpFlags::FIN)),
        (
            "an error about nothing",
            Err(Why::IcmpUnrelated),
            vec![build::icmp_error(ends, 3, 3, &build::udp(ends.reversed(), 1, 2, b"")[14..])],
        ),
    ]
}

/// Frames dropped so far, but for what containers ask for by themselves and nobody is there for.
fn told(lab: &Fixture) -> Result<BTreeMap<&'static str, u64>, Failed> {
    let is_noise =
        |reason| matches!(reason, DropReason::NoReceiver | DropReason::UnknownDestination);
    let drops = lab.dataplane()?.drops.into_iter().filter(|&(reason, _)| !is_noise(reason));
    Ok(drops.map(|(reason, count)| (reason.slug(), count)).collect())
}

/// Writes the checksum of IPv4's header, whatever its length.
pub(crate) fn set_checksum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let length = usize::from(frame[14] & 0xf) * 4;
    let sum = Sum::default().bytes(&frame[14..14 + length]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

fn odd() -> Shown {
    fare("a", oddities)
}

/// Lets a workload send frames, of those between the MAC addresses of `a`, `b` and `c`, and with that payload. Fails
/// unless each meets its fate, is counted once, and is nothing to the conversation.
pub(crate) fn fare(sender: &str, frames_of: fn([MacAddr; 3], &[u8]) -> Vec<Odd>) -> Shown {
    let lab = Fixture::up(&open())?;
    let snapshot = lab.snapshot()?;
    let mac = |name: &str| {
        let workload = snapshot.workloads.iter().find(|workload| workload.name == name);
        workload.and_then(|workload| workload.mac).ok_or("a container has a MAC address")
    };
    let macs = [mac("a")?, mac("b")?, mac("c")?];
    let mut talk = Talk::start(&lab)?;
    let socket = packet_socket(&lab.netns(sender)?)?;
    let count = frames_of(macs, b"").len();
    let mut wrong = Vec::new();
    for at in 0..count {
        talk.batch += 1;
        let (what, fate, frames) = frames_of(macs, &[talk.batch; 40]).swap_remove(at);
        let before = told(&lab)?;
        for frame in &frames {
            socket.send(frame)?;
        }
        let due = usize::from(fate.is_ok());
        let arrived = talk.arrived(due)?;
        let mut right = before;
        if let Err(reason) = fate {
            *right.entry(reason.slug()).or_default() += 1;
        }
        let mut after = BTreeMap::new();
        let is_right = wait_up_to(Duration::from_secs(3), || {
            after = told(&lab)?;
            Ok(after == right)
        })?;
        if !is_right || arrived != due {
            wrong.push(format!("{what}: {arrived} arrived, dropped is {after:?}, not {right:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    // It was nothing to the conversation.
    talk.go_on()
}
