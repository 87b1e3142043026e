//! What may be typed after `firedoor`: the whole command tree, one struct per command.
//!
//! This file says what can be asked; [`commands`](crate::commands) does it. Every command's help
//! ends with an example, and every listing takes `--json`.

mod bench;
mod overview;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use firedoor_classifier::snapshot::FlagMatch;
use firedoor_classifier::wire::tcp::TcpFlags;
use firedoor_control::condition::flags;

pub(crate) use self::bench::{
    BenchClassifyArgs, BenchCommand, BenchCompareArgs, BenchFlowsArgs, BenchPolicyArgs,
    BenchReplayArgs, BenchTrafficArgs, BenchTseArgs, BenchUpgradeArgs,
};
pub(crate) use self::overview::command;

/// A virtual switch with a fire door between every two workloads.
///
/// A frame crosses only if the policy, written in labels instead of addresses, lets that
/// conversation through.
#[derive(Debug, Parser)]
#[command(
    version = crate::VERSION,
    propagate_version = true,
    after_help = "Example: firedoor demo\n\n\
        Exit status: 0 yes or done, 1 a negative answer, 2 it could not be done.\n\
        Environment: FIREDOOR_RUN_DIR (default /run/firedoor), FIREDOOR_LOG (as `debug`), NO_COLOR, \
        FIREDOOR_NO_TCX (hold the express lane's program by clsact)."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(DemoArgs),
    Check(CheckArgs),
    Trace(TraceArgs),
    Connectivity(ConnectivityArgs),
    #[command(subcommand)]
    Lab(LabCommand),
    Run(RunArgs),
    Upgrade(UpgradeArgs),
    Status(StatusArgs),
    Ports(PortsArgs),
    #[command(subcommand)]
    Port(PortCommand),
    Flows(FlowsArgs),
    Denies(DeniesArgs),
    #[command(subcommand)]
    Policy(PolicyCommand),
    #[command(subcommand)]
    Bench(BenchCommand),
    Completions(CompletionsArgs),
    Man(ManArgs),
    #[command(hide = true)]
    Dataplane(DataplaneArgs),
    #[command(hide = true)]
    Control(ControlArgs),
}

/// Which of several running switches is meant.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SwitchArgs {
    /// The switch to ask, by the name in its config; may be left out if only one runs
    #[arg(long, value_name = "NAME")]
    pub(crate) switch: Option<String>,
}

/// Shows in a small lab who reaches whom, with real traffic.
///
/// Builds the lab, has everyone ask everyone for everything, holds the answers against the policy, measures
/// throughput, and removes the lab again. Exits 1 if an answer is not as the policy says.
#[derive(Debug, Args)]
#[command(after_help = "Example: sudo firedoor demo --keep")]
pub(crate) struct DemoArgs {
    /// Leave the lab running; `firedoor lab down` removes it
    #[arg(long)]
    pub(crate) keep: bool,
    /// Show another network than configs/three-tier.toml
    #[arg(long, value_name = "CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Length of each throughput measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    pub(crate) seconds: u16,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Validates a config. Needs no root and no running switch.
///
/// Exits 0 if it compiles, 1 if it does not, 2 if it cannot be read.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor check configs/three-tier.toml")]
pub(crate) struct CheckArgs {
    /// The config file; `-` reads standard input
    pub(crate) config: PathBuf,
    /// Print the summary, or the errors, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Follows one hypothetical frame through every step and rule.
///
/// The frame is the first of a new conversation. Exits 1 when it is denied.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: firedoor trace --from web --to api tcp/8080 --config configs/three-tier.toml"
)]
pub(crate) struct TraceArgs {
    /// The workload that sends
    #[arg(long, value_name = "WORKLOAD")]
    pub(crate) from: String,
    /// The workload, or the address outside the switch, that it sends to
    #[arg(long, value_name = "WORKLOAD|ADDRESS")]
    pub(crate) to: String,
    /// The service, as tcp/8080, udp/53, icmp/echo, icmp6/echo or ip/47; ethertype/0x88b5 for a frame
    /// that is not IP; arp or nd for the question who has the address
    pub(crate) service: String,
    /// Judge by this config instead of the running switch's policy
    #[arg(long, value_name = "CONFIG", conflicts_with = "switch")]
    pub(crate) config: Option<PathBuf>,
    /// The address family, where both ends have both; IPv4 unless only IPv6 fits
    #[arg(long, value_name = "FAMILY")]
    pub(crate) family: Option<Family>,
    /// The source port; 49152 if left out
    #[arg(long, value_name = "PORT")]
    pub(crate) source_port: Option<u16>,
    /// The TCP flags that are set, as syn,ece; syn if left out
    #[arg(long, value_name = "FLAGS", value_parser = tcp_flags)]
    pub(crate) flags: Option<TcpFlags>,
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
    /// Print the steps as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn tcp_flags(text: &str) -> Result<TcpFlags, String> {
    let FlagMatch { value, .. } =
        flags(text).map_err(|error| format!("{error}: {}", error.help()))?;
    Ok(TcpFlags::from_bits_retain(value))
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Shows who may reach whom on what.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: firedoor connectivity configs/three-tier.toml --dot | dot -Tsvg > policy.svg"
)]
pub(crate) struct ConnectivityArgs {
    /// The config file, `-` for standard input; the running switch's policy if left out
    #[arg(conflicts_with = "switch")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
    /// Print every pair as JSON
    #[arg(long, conflicts_with = "dot")]
    pub(crate) json: bool,
    /// Print a graph for Graphviz
    #[arg(long)]
    pub(crate) dot: bool,
}

/// Makes a whole network from one config, and removes it.
///
/// Namespaces, veths, taps, switch and control.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example: sudo firedoor lab up configs/three-tier.toml && sudo firedoor lab exec web -- ping -c1 api"
)]
pub(crate) enum LabCommand {
    Up(LabUpArgs),
    Exec(LabExecArgs),
    Down(LabDownArgs),
    List(LabListArgs),
}

/// Builds the lab of a config and starts its switch.
#[derive(Debug, Args)]
#[command(after_help = "Example: sudo firedoor lab up configs/three-tier.toml")]
pub(crate) struct LabUpArgs {
    /// The config file
    pub(crate) config: PathBuf,
}

/// Runs a command inside a container workload, or beside a vm's tap, whose name is then in
/// FIREDOOR_TAP. Exits as the command does.
#[derive(Debug, Args)]
#[command(after_help = "Example: sudo firedoor lab exec web -- curl -s http://10.10.0.20:8080/")]
pub(crate) struct LabExecArgs {
    /// The workload
    pub(crate) workload: String,
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// Stops a lab and removes everything it made. Programs that `lab exec` started are ended.
#[derive(Debug, Args)]
#[command(after_help = "Example: sudo firedoor lab down --switch three-tier")]
pub(crate) struct LabDownArgs {
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
    /// Every lab of this host
    #[arg(long, conflicts_with = "switch")]
    pub(crate) all: bool,
}

/// Lists the labs of this host.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor lab list --json")]
pub(crate) struct LabListArgs {
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs the switch on interfaces that exist, in the foreground.
///
/// SIGTERM stops it cleanly, SIGHUP applies CONFIG again.
#[derive(Debug, Args)]
#[command(after_help = "Example: sudo firedoor run /etc/firedoor.toml --capture /var/log/firedoor")]
pub(crate) struct RunArgs {
    /// The config file
    pub(crate) config: PathBuf,
    /// Run inside this network namespace, as `ip netns` names it
    #[arg(long, value_name = "NAME")]
    pub(crate) netns: Option<String>,
    /// Write captures of denied frames here, and keep them; else they are in the run directory, and
    /// go with it when the switch stops
    #[arg(long, value_name = "DIR")]
    pub(crate) capture: Option<PathBuf>,
}

/// Puts this version in a running switch's place; frames move on.
///
/// Established connections of the express lane lose nothing. New ones wait, and those of the switch
/// lane begin anew, for as long as it says.
#[derive(Debug, Args)]
#[command(after_help = "Example: sudo firedoor upgrade --switch lab0")]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Shows roles, epoch, ports, lanes, and drops by reason.
///
/// Exits 1 if a role is not alive, or no policy is in force.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor status --all")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
    /// Name every drop reason, also those that no frame was dropped for
    #[arg(long)]
    pub(crate) all: bool,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Lists ports with their counters.
///
/// The mode is how frames get in: by a program at tcx, or at clsact before Linux 6.6, on the express
/// lane; by native or generic XDP and by copy or zero-copy on the switch lane.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor ports --json | jq '.[].workload'")]
pub(crate) struct PortsArgs {
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Adds and removes workloads while the switch runs.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example: firedoor port add cache --kind vm --ifname tap7 --ip 10.10.0.70/24 --label tier=cache"
)]
pub(crate) enum PortCommand {
    Add(PortAddArgs),
    Del(PortDelArgs),
}

/// Adds a workload to the running switch. Its interface may appear later.
///
/// Exits 2 if the interface is there and cannot be attached; the workload is in the switch all the same,
/// and its port is tried again when the interface changes.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: firedoor port add cache --kind vm --ifname tap7 --ip 10.10.0.70/24 --label tier=cache"
)]
pub(crate) struct PortAddArgs {
    /// The workload's name
    pub(crate) name: String,
    /// What it is
    #[arg(long, value_parser = ["container", "vm", "external"], default_value = "external")]
    pub(crate) kind: String,
    /// The switch-side interface
    #[arg(long, value_name = "IFNAME")]
    pub(crate) ifname: Option<String>,
    /// An address with its prefix length; may be given again
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    pub(crate) ip: Vec<String>,
    /// The MAC address; derived from the name when absent, except for an external workload
    #[arg(long, value_name = "MAC")]
    pub(crate) mac: Option<String>,
    /// A label; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<String>,
    /// The access VLAN
    #[arg(long, value_name = "VID", conflicts_with = "trunk")]
    pub(crate) vlan: Option<u16>,
    /// A VLAN to carry tagged; may be given again
    #[arg(long, value_name = "VID")]
    pub(crate) trunk: Vec<u16>,
    /// Which way its frames take; auto if left out
    #[arg(long, value_parser = ["auto", "switch", "express"])]
    pub(crate) lane: Option<String>,
    /// It forwards for addresses outside the switch
    #[arg(long)]
    pub(crate) router: bool,
    /// It may answer DHCP
    #[arg(long)]
    pub(crate) dhcp_server: bool,
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
}

/// Takes a workload out of the running switch.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor port del cache")]
pub(crate) struct PortDelArgs {
    /// The workload's name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
}

/// Lists live connections and cached flows.
///
/// Where a port of a connection is on the express lane and the switch forwards it all the same, the
/// lane says why: protocol (neither TCP, UDP nor ping); audit (it lives by audit or learn mode alone);
/// router, trunk (an end is one); window-check (TCP under tcp_window_check); state (TCP not answered yet,
/// or ended); short (few frames, and no answer); held (its first frames are on their way through it); stale (its next frame is judged by a new policy);
/// table-full (express_flows is used up).
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor flows --workload web")]
pub(crate) struct FlowsArgs {
    /// Only flows from or to this workload
    #[arg(long, value_name = "WORKLOAD")]
    pub(crate) workload: Option<String>,
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Lists what was refused, by which rule, and where it is captured.
///
/// The 4,096 that were last refused anything are remembered, for as long as control runs.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor denies --follow")]
pub(crate) struct DeniesArgs {
    /// Go on printing as more are refused, until interrupted
    #[arg(long, short)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
    /// Print as JSON; with --follow, one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Changes the policy, and finds what a config says in vain.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example: firedoor policy apply configs/three-tier.toml")]
pub(crate) enum PolicyCommand {
    Apply(PolicyApplyArgs),
    Lint(PolicyLintArgs),
}

/// Puts a config in force. A config that does not compile changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor policy apply configs/three-tier.toml")]
pub(crate) struct PolicyApplyArgs {
    /// The config file; `-` reads standard input
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) switch: SwitchArgs,
}

/// Finds what a config says in vain or too widely. Needs no root and no running switch.
///
/// Rules that earlier ones shadow, that match nobody, that have expired or let everyone do everything;
/// groups and services that no rule names. Exits 0 if nothing is found, 1 if something is.
#[derive(Debug, Args)]
#[command(after_help = "Example: firedoor policy lint configs/three-tier.toml")]
pub(crate) struct PolicyLintArgs {
    /// The config file; `-` reads standard input
    pub(crate) config: PathBuf,
    /// Print the findings as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prints what a shell needs to complete commands and options.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: firedoor completions bash | sudo tee /usr/share/bash-completion/completions/firedoor"
)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}

/// Writes manual pages, one for each command.
#[derive(Debug, Args)]
#[command(after_help = "Example: sudo firedoor man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The directory to write them to
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

/// The data plane role; `firedoor run` starts it.
#[derive(Debug, Args)]
pub(crate) struct DataplaneArgs {
    /// The switch's run directory
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
    /// Where in a BPF file system the express lane outlives the process
    #[arg(long, value_name = "DIR")]
    pub(crate) pins: Option<PathBuf>,
    /// Take the place of the data plane that runs there
    #[arg(long)]
    pub(crate) succeed: bool,
    /// Take the place of one that was killed, once standard input ends
    #[arg(long, conflicts_with = "succeed")]
    pub(crate) inherit: bool,
    /// The process to end with
    #[arg(long, value_name = "PID")]
    pub(crate) supervisor: Option<i32>,
}

/// The control role; `firedoor run` starts it.
#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    /// The switch's run directory
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
    /// The config file
    #[arg(long, value_name = "CONFIG")]
    pub(crate) config: PathBuf,
    /// Where captures are written; the run directory if left out
    #[arg(long, value_name = "DIR")]
    pub(crate) capture: Option<PathBuf>,
    /// The process to end with
    #[arg(long, value_name = "PID")]
    pub(crate) supervisor: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_visible_command_has_an_example() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example: "), "{} has no example", command.get_name());
            command.get_subcommands().filter(|c| !c.is_hide_set()).for_each(check);
        }
        check(&command());
    }
}
