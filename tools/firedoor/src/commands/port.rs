//! `firedoor port add` and `port del`: hot plug.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use firedoor_api::control::Request;
use firedoor_api::dataplane::PortState;
use serde::Serialize;

use super::ask::change;
use super::ports::states;
use crate::args::{PortAddArgs, PortDelArgs};
use crate::output::{Output, YES};

pub(crate) fn add(args: &PortAddArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let request = Request::PortAdd { workload: table(args)? };
    let (epoch, ports) = change(&args.switch, &request, out)?;
    writeln!(out, "workload {} is in the switch, epoch {epoch}", args.name)?;
    let added: Vec<_> = ports.into_iter().filter(|port| port.workload == args.name).collect();
    out.table(&states(&added))?;
    for port in &added {
        let (name, ifname) = (&args.name, &port.ifname);
        match &port.state {
            PortState::Up => {}
            PortState::Missing => {
                out.note(format!("{name} is attached as soon as there is an interface {ifname}"));
            }
            PortState::Failed(why) => bail!(
                "no frame moves by {ifname}: {why}; the switch tries again when the interface \
                 changes, and `firedoor port del {name}` takes the workload out"
            ),
        }
    }
    Ok(YES)
}

pub(crate) fn del(args: &PortDelArgs, out: &mut Output) -> anyhow::Result<ExitCode> {
    let request = Request::PortDel { name: args.name.clone() };
    let (epoch, _) = change(&args.switch, &request, out)?;
    writeln!(out, "workload {} is out of the switch, epoch {epoch}", args.name)?;
    Ok(YES)
}

/// The wrapper that makes a `[[workload]]` heading.
#[derive(Serialize)]
struct Config<'a> {
    workload: [Workload<'a>; 1],
}

/// A config's `[[workload]]` table. Values are checked where the config's are: by control.
#[derive(Serialize)]
struct Workload<'a> {
    name: &'a str,
    kind: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    ip: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ifname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan: Option<u16>,
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    trunk: &'a [u16],
    #[serde(skip_serializing_if = "Option::is_none")]
    lane: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    router: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dhcp_server: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<&'a str, &'a str>,
}

fn table(args: &PortAddArgs) -> anyhow::Result<String> {
    let label = |label| {
        str::split_once(label, '=')
            .with_context(|| format!("--label {label}: write a label as KEY=VALUE"))
    };
    let labels = args.labels.iter().map(|l| label(l)).collect::<anyhow::Result<_>>()?;
    let workload = Workload {
        name: &args.name,
        kind: &args.kind,
        ip: &args.ip,
        mac: args.mac.as_deref(),
        ifname: args.ifname.as_deref(),
        vlan: args.vlan,
        trunk: &args.trunk,
        lane: args.lane.as_deref(),
        router: args.router,
        dhcp_server: args.dhcp_server,
        labels,
    };
    Ok(toml::to_string(&Config { workload: [workload] })?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command, PortCommand};

    fn table_of(arguments: &str) -> anyhow::Result<String> {
        let arguments = ["firedoor", "port", "add"].into_iter().chain(arguments.split(' '));
        match Cli::parse_from(arguments).command {
            Command::Port(PortCommand::Add(args)) => table(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn arguments_become_a_workload_of_the_config() {
        let text = table_of(
            "cache --kind vm --ifname tap7 --ip 10.10.0.70/24 --ip fd00::70/64 --label tier=cache \
             --trunk 10 --trunk 20 --router",
        );
        let text = text.unwrap();
        let config: toml::Table = text.parse().unwrap();
        let workload = &config["workload"][0];
        assert!(text.starts_with("[[workload]]"), "{text}");
        assert_eq!(workload["name"].as_str(), Some("cache"));
        assert_eq!(workload["labels"]["tier"].as_str(), Some("cache"));
        assert_eq!(workload["trunk"].as_array().map(Vec::len), Some(2));
        assert_eq!(workload["router"].as_bool(), Some(true));
        assert!(workload.get("mac").is_none() && workload.get("dhcp_server").is_none());
    }

    #[test]
    fn what_is_not_given_is_not_in_it() {
        let config: toml::Table = table_of("cache --ifname eth7").unwrap().parse().unwrap();
        let keys: Vec<_> = config["workload"][0].as_table().unwrap().keys().collect();
        assert_eq!(keys, ["ifname", "kind", "name"]);
    }

    #[test]
    fn a_label_needs_key_and_value() {
        let error = table_of("cache --label tier").unwrap_err().to_string();
        assert_eq!(error, "--label tier: write a label as KEY=VALUE");
    }
}
