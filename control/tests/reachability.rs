//! What the shipped configs allow, pair by pair; and that following a frame comes to the same
//! answer as asking the policy.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use firedoor_classifier::Policy;
use firedoor_classifier::snapshot::{Service, Services};
use firedoor_control::compile::compile;
use firedoor_control::connectivity::{Allowed, Pair, connectivity};
use firedoor_control::service;
use firedoor_control::trace::{Beginning, Question, TraceError, What, trace};
use jiff::civil::date;

const CONFIGS: [&str; 3] = ["three-tier", "two-vms", "dual-stack"];

fn policy(config: &str) -> Arc<Policy> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../configs/{config}.toml"));
    let text = fs::read_to_string(&path).expect("the config is there");
    let compiled = compile(config, &text, None, date(2026, 6, 1));
    let snapshot = compiled.unwrap_or_else(|errors| panic!("{errors}")).snapshot;
    Arc::new(Policy::build(snapshot).expect("a compiled snapshot can be enforced"))
}

/// Pairs that may talk, one line each.
fn reachability(config: &str) -> Vec<String> {
    let pairs = connectivity(&policy(config));
    let talking = pairs.iter().filter(|pair| !pair.allowed.is_empty());
    let line = |pair: &Pair| {
        let services: Vec<_> = pair.allowed.iter().map(|a| a.service.as_str()).collect();
        format!("{} > {}: {}", pair.from, pair.to, services.join(" "))
    };
    talking.map(line).collect()
}

#[test]
fn three_tier() {
    assert_eq!(
        reachability("three-tier"),
        ["web > api: icmp/echo tcp/8080 udp/8080 icmp6/echo", "api > db: tcp/5432"]
    );
}

#[test]
fn two_vms() {
    assert_eq!(
        reachability("two-vms"),
        [
            "vm1 > vm2: icmp/echo udp/7000-7010 icmp6/echo",
            "vm2 > vm1: icmp/echo udp/7000-7010 icmp6/echo",
            "client > vm1: icmp/echo tcp/80 tcp/8080 icmp6/echo",
        ]
    );
}

#[test]
fn dual_stack() {
    assert_eq!(
        reachability("dual-stack"),
        [
            "app1 > dns: tcp/53 udp/53",
            "app1 > metrics: udp/8125",
            "app1 > group internet: tcp/80 tcp/443",
            "app1 > groups office+internet: tcp/80 tcp/443",
            "app2 > dns: tcp/53 udp/53",
            "app2 > group internet: tcp/80 tcp/443",
            "app2 > groups office+internet: tcp/80 tcp/443",
            "metrics > app1: icmp6/echo",
            "metrics > app2: icmp6/echo",
            "metrics > dns: tcp/53 udp/53 icmp6/echo",
            "gateway > app1: icmp/echo icmp6/echo",
            "gateway > app2: icmp/echo icmp6/echo",
            "groups office+internet > app1: icmp/echo tcp/443 icmp6/echo",
            "groups office+internet > app2: icmp/echo tcp/443 icmp6/echo",
        ]
    );
}

/// What `a` may begin with `b`, if these are the rules between them.
fn between_two(rules: &str) -> Vec<String> {
    let text = format!(
        "[switch]\nname = \"two\"\n\
         [[workload]]\nname = \"a\"\nkind = \"vm\"\nip = [\"10.0.0.1/24\", \"fd00::1/64\"]\n\
         trunk = [10, 20]\n\
         [[workload]]\nname = \"b\"\nkind = \"vm\"\nip = [\"10.0.0.2/24\", \"fd00::2/64\"]\n\
         trunk = [10, 20]\n{}",
        rules.replace(
            "[[rule]]",
            "[[rule]]\nfrom = { workload = \"a\" }\nto = { workload = \"b\" }"
        )
    );
    let compiled = compile("two.toml", &text, None, date(2026, 6, 1));
    let snapshot = compiled.unwrap_or_else(|errors| panic!("{errors}")).snapshot;
    let pairs =
        connectivity(&Policy::build(snapshot).expect("a compiled snapshot can be enforced"));
    assert_eq!(pairs[1].allowed, [], "b to a");
    let text = |allowed: &Allowed| {
        let when = allowed.when.as_ref().map(|when| format!(" when {when}")).unwrap_or_default();
        format!("{}{when} by {}", allowed.service, allowed.rule)
    };
    pairs[0].allowed.iter().map(text).collect()
}

#[test]
fn what_hangs_on_a_condition_is_told_with_it() {
    let allow = |name: &str, more: &str| {
        format!("[[rule]]\nname = \"{name}\"\naction = \"allow\"\n{more}\n")
    };
    let deny = |name: &str, more: &str| allow(name, more).replace("allow", "deny");
    let https = "service = \"tcp/443\"\n";

    let high = allow("high", &format!("{https}source_port = \"1024-65535\""));
    assert_eq!(between_two(&high), ["tcp/443 when source_port 1024-65535 by high"]);
    let every = allow("every", https);
    assert_eq!(
        between_two(&(high.clone() + &every)),
        ["tcp/443 when source_port 0-1023 by every", "tcp/443 when source_port 1024-65535 by high"]
    );
    assert_eq!(between_two(&(every.clone() + &high)), ["tcp/443 by every"]);

    let not_ten = deny("not-ten", "vlan = 10\nethertype = \"ipv4\"");
    assert_eq!(
        between_two(&(not_ten.clone() + &every)),
        [
            "tcp/443 when ethertype ipv4, vlan 20 by every",
            "tcp/443 when ethertype ipv6, vlan 10 by every",
            "tcp/443 when ethertype ipv6, vlan 20 by every",
        ]
    );
    let ping = allow("ping", "service = [\"icmp/echo\", \"icmp6/echo\"]");
    assert_eq!(
        between_two(&(not_ten + &ping)),
        ["icmp/echo when vlan 20 by ping", "icmp6/echo by ping"]
    );

    let no_ecn = deny("no-ecn", "tcp_flags = \"syn,ece\"") + &allow("all", "");
    assert_eq!(between_two(&no_ecn), ["tcp when tcp_flags !ece by all", "any but tcp by all"]);
    let late = allow("late", &format!("{https}tcp_flags = \"ack\""));
    assert_eq!(between_two(&late), [] as [&str; 0], "no connection begins so");

    let experiment = allow("experiment", "ethertype = \"0x88b5\"");
    assert_eq!(between_two(&experiment), ["ethertype/0x88b5 by experiment"]);
    let experiment = allow("experiment", "ethertype = \"0x88b5\"\nvlan = 20");
    assert_eq!(between_two(&experiment), ["ethertype/0x88b5 when vlan 20 by experiment"]);
}

/// An address that stands for an end outside, by its name.
fn name_for_trace(end: &str) -> &str {
    match end {
        "group internet" => "198.51.100.1",
        "groups office+internet" => "192.0.2.1",
        // Every address is the internet's, so the world is empty.
        "world" => "",
        workload => workload,
    }
}

#[test]
fn a_followed_frame_meets_what_the_policy_says() {
    let probes = [
        "tcp/22",
        "tcp/53",
        "tcp/80",
        "tcp/443",
        "tcp/5432",
        "tcp/8080",
        "udp/53",
        "udp/6999",
        "udp/7000",
        "udp/7010",
        "udp/8125",
        "sctp/3868",
        "icmp/echo",
        "icmp6/echo",
        "ip/47",
    ];
    let mut followed = 0;
    for config in CONFIGS {
        let policy = policy(config);
        for pair in connectivity(&policy) {
            let (from, to) = (name_for_trace(&pair.from), name_for_trace(&pair.to));
            if from.is_empty() || to.is_empty() {
                continue;
            }
            for probe in probes {
                let Ok(Services::Only(services)) = service::parse(probe) else { unreachable!() };
                let service = &services[0];
                for v4 in [true, false] {
                    let begins = Beginning::default();
                    let what = What::Service(*service);
                    let question = Question { from, to, what, v4: Some(v4), begins };
                    let followed_frame = match trace(&policy, &question) {
                        Ok(trace) => trace,
                        Err(TraceError::NoFamily { .. } | TraceError::NoRouter { .. }) => continue,
                        Err(error) => panic!("{config}: {error}"),
                    };
                    let expected = pair.allowed.iter().any(|a| holds(&a.service, service));
                    let what = format!("{config}: {from} to {to} on {probe}, IPv4 {v4}");
                    assert_eq!(followed_frame.forwarded, expected, "{what}: {followed_frame:#?}");
                    let decides = followed_frame.rules.iter().find(|part| part.decides);
                    if expected && followed_frame.reason.is_none() {
                        let rule = decides.map(|part| part.rule.as_str());
                        assert!(
                            pair.allowed.iter().any(|a| Some(a.rule.as_str()) == rule),
                            "{what}"
                        );
                    }
                    followed += 1;
                }
            }
        }
    }
    assert!(followed > 500, "only {followed} frames were followed");
}

/// Whether the text of allowed services holds the one service of a probe.
fn holds(allowed: &str, probe: &Service) -> bool {
    let (protocol, dst_port) = match *probe {
        Service::Ports { protocol, first, .. } => (protocol, first),
        Service::Icmp { protocol, kind, .. } => (protocol, u16::from_be_bytes([kind, 0])),
        Service::Protocol(protocol) => (protocol, 0),
    };
    match service::parse(allowed).expect("these configs allow what a config can say") {
        Services::Any => true,
        Services::Only(services) => services.iter().any(|s| s.matches(protocol, dst_port)),
    }
}

#[test]
fn frames_without_a_service_are_followed_too() {
    let workload = |name: &str, n: u8| {
        format!(
            "[[workload]]\nname = \"{name}\"\nkind = \"container\"\nlabels = {{ app = \"{name}\" }}\n\
             ip = [\"10.0.0.{n}/24\", \"fd00::{n}/64\"]\n"
        )
    };
    let text = format!(
        "[switch]\nname = \"test\"\n{}{}[[rule]]\nname = \"field-bus\"\nfrom = {{ app = \"web\" }}\n\
         to = {{ app = \"api\" }}\nethertype = \"0x88b5\"\naction = \"allow\"\n",
        workload("web", 1),
        workload("api", 2),
    );
    let compiled = compile("test.toml", &text, None, date(2026, 6, 1)).expect("it compiles");
    let policy = Arc::new(Policy::build(compiled.snapshot).expect("a compiled snapshot"));
    let follow = |from, to, what| {
        let question = Question { from, to, what, v4: None, begins: Beginning::default() };
        let trace = trace(&policy, &question).expect("there is such a frame");
        (trace.service, trace.src.is_some(), trace.forwarded, trace.reason, trace.cause)
    };
    let of_bus = What::EtherType(0x88b5);
    let bus = "ethertype/0x88b5".to_owned();
    assert_eq!(follow("web", "api", of_bus), (bus.clone(), false, true, None, "field-bus".into()));
    let denied = (bus, false, false, Some("default-deny"), "default".into());
    assert_eq!(follow("api", "web", of_bus), denied);
    let (_, _, forwarded, reason, _) = follow("web", "api", What::EtherType(0x88cc));
    assert_eq!((forwarded, reason), (false, Some("unknown-ethertype")));
    // Whatever rules say: who is asked for a MAC address gives nothing else away.
    for (what, text) in [(What::Arp, "arp"), (What::Nd, "nd")] {
        let found = (text.to_owned(), true, true, None, "switch".into());
        assert_eq!(follow("api", "web", what), found);
    }
}
