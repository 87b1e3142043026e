//! What may be typed after `firedoor bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use firedoor_bench::traffic::FrameSize;

use super::SwitchArgs;

/// Measures the switch and its parts.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example: sudo firedoor bench compare --quick")]
pub(crate) enum BenchCommand {
    Classify(BenchClassifyArgs),
    Policy(BenchPolicyArgs),
    Flows(BenchFlowsArgs),
    Compare(BenchCompareArgs),
    Traffic(BenchTrafficArgs),
    Replay(BenchReplayArgs),
    Tse(BenchTseArgs),
    Upgrade(BenchUpgradeArgs),
}

/// Measures the connection table: hit, miss, insertion, expiry, set-up rate and memory.
///
/// With `--flood`, floods it from one port instead, beside 10,000 established connections of others,
/// and exits 1 if any of those is lost.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor bench flows --connections 1000000\n         \
    firedoor bench flows --flood 10000000\n         \
    sudo firedoor bench flows --connections 1000000 --kernel")]
pub(crate) struct BenchFlowsArgs {
    /// Live connections; with --flood, the table's bound
    #[arg(long, value_name = "N", default_value_t = 262_144,
        value_parser = clap::value_parser!(u32).range(1..=1 << 26))]
    pub(crate) connections: u32,
    /// Frames that are looked up together
    #[arg(long, value_name = "N", default_value_t = 32,
        value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) batch: u16,
    /// Send so many different SYNs from one port
    #[arg(long, value_name = "SYNS")]
    pub(crate) flood: Option<u64>,
    /// Give the connections to the kernel, as the express lane does, and say what they take there
    #[arg(long, conflicts_with = "flood")]
    pub(crate) kernel: bool,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Looks headers up among ClassBench rules, with the tables that the switch judges by.
///
/// Exits 1 if any verdict differs from that of the first line that matches.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor bench classify --rules tests/data/classbench/acl1_1k")]
pub(crate) struct BenchClassifyArgs {
    /// The rules, in ClassBench's format; the first line that matches wins
    #[arg(long, value_name = "FILE")]
    pub(crate) rules: PathBuf,
    /// The headers, as `SRC DST SRC_PORT DST_PORT PROTOCOL [RULE]` in decimal; made from the rules
    /// if left out
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// How many headers to make
    #[arg(long, value_name = "N", default_value_t = 100_000, conflicts_with = "trace",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) headers: u32,
    /// How many headers to look up at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) batch: u32,
    /// How many rules to remove or put back
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) updates: u32,
    /// How many rules of 100 to give a direction, TCP flags, a VLAN, an ethertype, audit or pass; what
    /// a trace says of the first rule that matches is not used then
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100))]
    pub(crate) conditions: u32,
    /// Write the headers and the first rule that matches each, for other programs
    #[arg(long, value_name = "FILE")]
    pub(crate) write_trace: Option<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Takes a large policy from its text into force, and says how long each step takes.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor bench policy --rules 100000")]
pub(crate) struct BenchPolicyArgs {
    /// Rules; with each ten there is a group of addresses, and a workload up to a thousand
    #[arg(long, value_name = "N", default_value_t = 100_000,
        value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub(crate) rules: u32,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Attacks the flow cache by tuple space explosion, beside flows that should not notice.
///
/// Exits 1 if there are more than 64 masks, or a flow beside the attack loses a frame.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor bench tse")]
pub(crate) struct BenchTseArgs {
    /// Play these traces too, against the published policy: files of `SRC DST SRC_PORT DST_PORT
    /// PROTOCOL` in decimal, or directories of `.trace` files
    #[arg(long, value_name = "DIR|FILE", num_args = 1..)]
    pub(crate) traces: Vec<PathBuf>,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measures what clients notice while one data plane takes another one's place.
///
/// Builds a lab and upgrades its switch to this program, and kills its data plane, in turn, while clients
/// on either lane ask every millisecond. Each answer that never came is counted as lost.
#[derive(Debug, Args)]
#[command(after_help = "Example: sudo firedoor bench upgrade --connections 100000")]
pub(crate) struct BenchUpgradeArgs {
    /// Live connections that are taken over
    #[arg(long, value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connections: u32,
    /// Rules that match nobody, besides those of the clients
    #[arg(long, value_name = "N", default_value_t = 1_000,
        value_parser = clap::value_parser!(u16).range(..=10_000))]
    pub(crate) rules: u16,
    /// The program that the switch is; this one if it is not given
    #[arg(long, value_name = "FILE")]
    pub(crate) program: Option<PathBuf>,
    /// How often to upgrade, and to kill
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measures switches side by side: throughput, latency and what they cost.
///
/// Sender, switch and receiver are network namespaces of this machine, made for the purpose. A
/// system that is not installed is named, with the package that brings it, and left out. Exits 1
/// if something could not be measured.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: sudo firedoor bench compare --only udp-10k --peers bridge,firedoor"
)]
pub(crate) struct BenchCompareArgs {
    /// A few scenarios, for a first idea in a few minutes
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only these scenarios, as udp-10k, or udp-10k/1000 for one number of rules
    #[arg(long, value_name = "SCENARIO", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Only these systems: bridge, bridge+nft, ovs-afxdp, redirect, firedoor (both lanes), awake (these and the bridge with processors kept awake), or one by its name in --list
    #[arg(long, value_name = "SYSTEM", value_delimiter = ',')]
    pub(crate) peers: Vec<String>,
    /// Where the report is written; a new directory here if left out
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Say which ratios agree with those of the report in this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) against: Option<PathBuf>,
    /// How often everything is measured
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: Option<u16>,
    /// Length of each measurement
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) seconds: Option<f64>,
    /// List the scenarios and systems, and measure nothing
    #[arg(long)]
    pub(crate) list: bool,
}

/// Measures what the benchmarks' own generators and sinks reach, over a plain veth.
///
/// That is the ceiling of what they can measure on this machine. `--search` finds the highest rate
/// at which no frame is lost, by trials of `--seconds` each.
#[derive(Debug, Args)]
#[command(after_help = "Example: sudo firedoor bench traffic --flows 10000 --rate 100000")]
pub(crate) struct BenchTrafficArgs {
    /// Length of the frames on the wire in bytes, 64 to 1518, or imix
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = frame_size)]
    pub(crate) frame: FrameSize,
    /// Flows that the frames belong to
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) flows: u32,
    /// Frames per second to offer; as many as possible if left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// Find the highest rate without loss, too
    #[arg(long)]
    pub(crate) search: bool,
    /// Length of each trial
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) seconds: f64,
    /// What decides the order of the flows
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Pushes a capture through a switch in memory: what becomes of its frames, and how long that takes.
///
/// Each frame comes in by the port of the workload whose address it comes from. Time stands still
/// meanwhile. Needs no root.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: firedoor bench replay denied.pcapng --config configs/three-tier.toml"
)]
pub(crate) struct BenchReplayArgs {
    /// The capture, pcap or pcapng
    #[arg(value_name = "FILE")]
    pub(crate) capture: PathBuf,
    /// The config whose policy judges; that of the running switch if left out
    #[arg(long, value_name = "CONFIG")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
    /// Let every frame come in by this workload's port, whatever its address
    #[arg(long, value_name = "WORKLOAD")]
    pub(crate) port: Option<String>,
    /// How often to time the capture again after the first time
    #[arg(long, value_name = "N", default_value_t = 9,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) repeat: u32,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A length that frames can have.
fn frame_size(text: &str) -> Result<FrameSize, String> {
    match text.parse() {
        _ if text == "imix" => Ok(FrameSize::Imix),
        Ok(length @ 64..=1518) => Ok(FrameSize::Fixed(length)),
        _ => Err("must be from 64 to 1518, or imix".to_owned()),
    }
}

/// A length of time that a measurement can have.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "is no number".to_owned())?;
    match (0.1..=600.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("must be from 0.1 to 600".to_owned()),
    }
}
