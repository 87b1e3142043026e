use firedoor_classifier::snapshot::{FlagMatch, Prefix, Tag};

use super::*;

const TODAY: Date = jiff::civil::date(2026, 6, 1);

const CONFIG: &str = r#"
[switch]
name = "lab0"

[[workload]]
name = "web"
kind = "container"
labels = { tier = "web" }
ip = ["10.0.0.1/24", "fd00::1/64"]

[[workload]]
name = "web2"
kind = "container"
labels = { tier = "web" }
ip = "10.0.0.2/24"

[[workload]]
name = "uplink"
kind = "external"
ifname = "eth1"
router = true

[[service]]
name = "http"
match = ["tcp/80", "tcp/8080"]

[[group]]
name = "office"
cidr = ["192.0.2.0/24"]
except = ["192.0.2.128/25"]

[[rule]]
name = "late"
from = { any = true }
to = { group = "office" }
action = "deny"
tier = "baseline"

[[rule]]
name = "web-to-web"
from = { tier = "web" }
to = [{ tier = "web" }, { group = "office" }]
service = ["http", "tcp/80", "udp/53"]
action = "allow"
"#;

fn compiled(text: &str) -> Compiled {
    compile("lab.toml", text, None, TODAY).unwrap_or_else(|errors| panic!("{errors}"))
}

fn refused(text: &str) -> Vec<String> {
    let errors = compile("lab.toml", text, None, TODAY).expect_err("it does not compile");
    errors.to_string().lines().map(str::to_owned).collect()
}

fn with(lines: &str) -> String {
    format!("{CONFIG}\n{lines}\n")
}

#[test]
fn labels_groups_and_services_are_resolved() {
    let Compiled { snapshot, notices, plan, .. } = compiled(CONFIG);
    assert_eq!(notices, []);
    let tags: Vec<_> = snapshot.tags.iter().map(|tag| tag.name.as_str()).collect();
    assert_eq!(tags, ["world", "tier=web", "no labels", "group office"]);
    assert_eq!(snapshot.world, Tag(0));
    let of_workloads: Vec<_> = snapshot.workloads.iter().map(|w| w.tag).collect();
    assert_eq!(of_workloads, [Tag(1), Tag(1), Tag(2)]);
    let net = |text: &str| text.parse().expect("a range");
    assert_eq!(
        snapshot.prefixes,
        [
            Prefix { net: net("192.0.2.0/24"), tag: Tag(3) },
            Prefix { net: net("192.0.2.128/25"), tag: Tag(0) }
        ]
    );

    let [web_to_web, late] = &snapshot.rules[..] else { panic!("two rules") };
    assert_eq!((web_to_web.name.as_str(), late.name.as_str()), ("web-to-web", "late"));
    assert_eq!(late.from, TagSet::Any);
    assert_eq!(late.services, Services::Any);
    assert_eq!(late.action, RuleAction::Deny);
    assert_eq!(web_to_web.to, TagSet::Only(vec![Tag(1), Tag(3)]));
    let port = |protocol, port| Service::Ports { protocol, first: port, last: port };
    assert_eq!(web_to_web.services, Services::Only(vec![port(6, 80), port(6, 8080), port(17, 53)]));

    assert_eq!(plan[0].nets, [net("10.0.0.1/24"), net("fd00::1/64")]);
    assert_eq!((plan[2].mac, plan[2].ifname.as_str()), (None, "eth1"));
}

#[test]
fn a_workload_selected_by_name_has_its_own_tag() {
    let text = with(
        "[[rule]]\nname = \"one\"\nfrom = { workload = \"web2\" }\nto = { any = true }\n\
         action = \"deny\"",
    );
    let snapshot = compiled(&text).snapshot;
    assert_ne!(snapshot.workloads[0].tag, snapshot.workloads[1].tag);
    let by_label = snapshot.rules.iter().find(|rule| rule.name == "web-to-web");
    let from = &by_label.expect("the rule is there").from;
    assert!(snapshot.workloads[..2].iter().all(|workload| from.contains(workload.tag)));
}

#[test]
fn addresses_hold_the_link_local_one() {
    let snapshot = compiled(CONFIG).snapshot;
    let web = &snapshot.workloads[0];
    assert_eq!(web.addresses.len(), 3);
    assert_eq!(web.addresses.last().copied(), web.mac.map(identity::link_local));
    assert_eq!(snapshot.workloads[2].addresses, [] as [IpAddr; 0]);
}

#[test]
fn compiling_twice_gives_the_same() {
    assert_eq!(compiled(CONFIG), compiled(CONFIG));
}

#[test]
fn ports_stay_with_their_names() {
    let ports = |compiled: &Compiled| -> BTreeMap<String, u16> {
        let workloads = &compiled.snapshot.workloads;
        workloads.iter().map(|w| (w.name.clone(), w.port.0)).collect()
    };
    let first = compiled(CONFIG);
    assert_eq!(first.snapshot.epoch, 1);
    let web = "[[workload]]\nname = \"web\"\nkind = \"container\"\nlabels = { tier = \"web\" }\n\
               ip = [\"10.0.0.1/24\", \"fd00::1/64\"]\n";
    assert!(CONFIG.contains(web));
    let new = |name: &str, ip: u8| {
        format!("\n[[workload]]\nname = \"{name}\"\nkind = \"vm\"\nip = \"10.0.0.{ip}/24\"\n")
    };
    let text = CONFIG.replace(web, &(new("new", 7) + &new("newer", 8)));
    let second = compile("lab.toml", &text, Some(&first.snapshot), TODAY)
        .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(second.snapshot.epoch, 2);
    let expected = [("new", 1), ("newer", 4), ("uplink", 3), ("web2", 2)];
    assert_eq!(ports(&second), expected.map(|(n, p)| (n.to_owned(), p)).into());
}

#[test]
fn rules_expire_when_their_day_begins() {
    let rule = |day: &str| {
        with(&format!(
            "[[rule]]\nname = \"x\"\nfrom = {{ any = true }}\nto = {{ any = true }}\n\
             action = \"allow\"\nexpires = {day}"
        ))
    };
    let holds = compiled(&rule("\"2026-06-02\""));
    assert_eq!(holds.snapshot.rules.len(), 3);
    assert_eq!(holds.next_expiry, Some(jiff::civil::date(2026, 6, 2)));

    let expired = compiled(&rule("2026-06-01"));
    assert_eq!(expired.snapshot.rules.len(), 2);
    assert_eq!(expired.next_expiry, None);
    assert_eq!(expired.notices[0].message, "rule \"x\" expired on 2026-06-01 and is left out");
}

#[test]
fn everything_wrong_is_told_at_once() {
    let errors = refused(
        r#"
[switch]
name = "lab/0"
mode = "enforced"
worker = 2

[[workload]]
name = "web"
kind = "container"
lables = { tier = "web" }
ip = ["10.0.0.0/24", "10.0.0.1", "127.0.0.1/8"]
mac = "ff:ff:ff:ff:ff:ff"
ifname = "far-too-long-a-name"
vlan = 4095

[[workload]]
name = "up"
kind = "external"

[[group]]
name = "office"
cidr = "192.0.2.7/24"

[[rule]]
from = { teir = "web", group = "office" }
to = {}
service = ["tcp/http", "icmp/echo"]
action = "permit"
expires = "tomorrow"
"#,
    );
    let expected = [
        "lab.toml:3:8: \"lab/0\" cannot be a name: use letters, digits, '.', '_' and '-', \
         a letter or digit first, at most 63 in all",
        "lab.toml:4:8: unknown mode \"enforced\": did you mean \"enforce\"?",
        "lab.toml:5:1: unknown key \"worker\" in [switch]: did you mean \"workers\"?",
        "lab.toml:10:1: unknown key \"lables\" in [[workload]]: did you mean \"labels\"?",
        "lab.toml:11:7: \"10.0.0.0/24\" cannot be a workload's address: it is the address of \
         the subnet itself: use an address of one host in its subnet",
        "lab.toml:11:22: \"10.0.0.1\" is not an address with a prefix length: write it as \
         \"10.10.0.10/24\" or \"fd00:10::10/64\"",
        "lab.toml:11:34: \"127.0.0.1/8\" cannot be a workload's address: it is a loopback \
         address: use an address of one host in its subnet",
        "lab.toml:12:7: \"ff:ff:ff:ff:ff:ff\" is not the address of one station: use one whose \
         first byte is even, such as \"02:00:00:00:00:10\"",
        "lab.toml:13:10: \"far-too-long-a-name\" cannot be an interface's name: use 1 to 15 \
         bytes without '/', ':' or white space, as the kernel does",
        "lab.toml:14:8: vlan is 4095, outside 1 to 4094: write a number from 1 to 4094",
        "lab.toml:17:8: external workload \"up\" has no ifname: add the interface, as \
         ifname = \"eth1\"",
        "lab.toml:17:8: external workload \"up\" has no mac: add its address, as \
         mac = \"02:00:00:00:00:10\", or router = true",
        "lab.toml:22:8: \"192.0.2.7/24\" has address bits behind its prefix length: write \
         \"192.0.2.0/24\"",
        "lab.toml:24:1: [[rule]] has no name: add name = \"web-to-api\"",
        "lab.toml:25:8: this selector mixes group with labels: write a list of selectors, as \
         [{ tier = \"web\" }, { group = \"office\" }]",
        "lab.toml:26:6: this selector selects nothing: name labels, as { tier = \"web\" }, or \
         write { any = true }",
        "lab.toml:27:12: \"tcp/http\" is not a service: it names no port or range of ports: \
         write a port from 0 to 65535, or a range, as tcp/9000-9100",
        "lab.toml:28:10: unknown action \"permit\": one of allow, deny, reject, pass may stand \
         here",
        "lab.toml:29:11: \"tomorrow\" is not a date: write it as \"2027-01-01\"",
    ];
    for (error, expected) in errors.iter().zip(expected) {
        assert_eq!(error, expected);
    }
    assert_eq!(errors.len(), expected.len());
}

#[test]
fn a_wrong_value_neither_hides_a_wrong_name_nor_makes_one() {
    let wrong = with(
        "[[workload]]\nname = \"db\"\nkind = \"wm\"\nip = \"10.0.0.1/24\"\nvlan = 10\ntrunk = [20]\n\
         [[rule]]\nname = \"x\"\nfrom = { workload = [\"db\", \"dbb\"] }\nto = { any = 1 }\n\
         service = [\"http\", \"tcp/x\"]\naction = \"alow\"",
    );
    let errors = refused(&wrong);
    let expected = [
        "unknown kind \"wm\"",
        "address \"10.0.0.1\" is used twice: change one of the two; first used at lab.toml:9:7",
        "a workload has either vlan or trunk",
        "there is no workload \"dbb\": did you mean \"db\"?",
        "any is true or false, not a TOML integer",
        "\"tcp/x\" is not a service",
        "unknown action \"alow\"",
    ];
    assert_eq!(errors.len(), expected.len(), "{errors:?}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_rule_without_a_name_hides_no_wrong_reference() {
    let rule = "[[rule]]\nfrom = { workload = \"wep\" }\nto = { group = \"offise\" }\n\
                service = \"htpp\"\naction = \"allow\"\n";
    let misnamed = rule.replace("from", "name = \"two words\"\nfrom");
    let errors = refused(&with(&format!("{rule}{misnamed}")));
    let references = [
        "there is no workload \"wep\": did you mean \"web\"?",
        "there is no group \"offise\": did you mean \"office\"?",
        "there is no service \"htpp\": did you mean \"http\"?",
    ];
    let of = |name| std::iter::once(name).chain(references);
    let expected: Vec<_> =
        of("[[rule]] has no name").chain(of("\"two words\" cannot be a name")).collect();
    assert_eq!(errors.len(), expected.len(), "{errors:?}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_must_be_unique_is() {
    let twice = |key: &str, first: &str, second: &str| {
        let workload = |name, value| {
            format!("[[workload]]\nname = \"{name}\"\nkind = \"vm\"\n{key} = \"{value}\"\n")
        };
        refused(&with(&(workload("a", first) + &workload("b", second))))
    };
    let duplicate = |errors: Vec<String>, message: &str| {
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains(message), "{errors:?}");
    };
    duplicate(twice("ip", "10.0.0.9/24", "10.0.0.9/16"), "address \"10.0.0.9\" is used twice");
    duplicate(twice("ifname", "tap0", "tap0"), "interface \"tap0\" is used twice");
    let mac = "02:00:00:00:00:01";
    let errors = twice("mac", mac, mac);
    assert!(errors.iter().any(|e| e.contains("MAC address \"02:00:00:00:00:01\"")), "{errors:?}");
    let name = "[[workload]]\nname = \"web\"\nkind = \"vm\"\n";
    duplicate(refused(&with(name)), "workload \"web\" is used twice");
    let group = "[[group]]\nname = \"office\"\ncidr = \"198.51.100.0/24\"\n";
    duplicate(refused(&with(group)), "group \"office\" is used twice");
}

#[test]
fn unknown_names_come_with_a_suggestion() {
    let errors = refused(&with(
        "[[rule]]\nname = \"x\"\nfrom = { workload = \"wbe\" }\nto = { group = \"ofice\" }\n\
         service = \"htp\"\naction = \"allow\"",
    ));
    assert_eq!(errors.len(), 3);
    assert!(errors[0].contains("no workload \"wbe\": did you mean \"web"), "{errors:?}");
    assert!(errors[1].ends_with("no group \"ofice\": did you mean \"office\"?"), "{errors:?}");
    assert!(errors[2].ends_with("no service \"htp\": did you mean \"http\"?"), "{errors:?}");
}

/// A config with one more rule, of these lines.
fn with_rule(lines: &str) -> String {
    with(&format!(
        "[[rule]]\nname = \"x\"\nfrom = {{ any = true }}\nto = {{ any = true }}\n\
         action = \"allow\"\n{lines}"
    ))
}

#[test]
fn conditions_are_resolved() {
    let conditions = |lines: &str| {
        let snapshot = compiled(&with_rule(lines)).snapshot;
        snapshot.rules.iter().find(|rule| rule.name == "x").expect("it is there").conditions
    };
    let none = Conditions::default();
    assert_eq!(conditions(""), none);
    let src_ports = Some((1_024, 65_535));
    assert_eq!(conditions("source_port = \"1024-65535\""), Conditions { src_ports, ..none });
    let (src_ports, text) = (Some((68, 68)), "source_port = 68\nservice = \"udp/67\"");
    assert_eq!(conditions(text), Conditions { src_ports, ..none });
    let tcp_flags = Some(FlagMatch { mask: 0x12, value: 0x02 });
    assert_eq!(conditions("tcp_flags = \"syn,!ack\""), Conditions { tcp_flags, ..none });
    let ether_type = Some(0x88b5);
    assert_eq!(conditions("ethertype = \"0x88b5\""), Conditions { ether_type, ..none });
    assert_eq!(conditions("ethertype = 0x88b5"), Conditions { ether_type, ..none });
    let (ether_type, text) = (Some(0x86dd), "ethertype = \"ipv6\"\nvlan = 10");
    assert_eq!(conditions(text), Conditions { ether_type, vlan: Some(10), ..none });
}

#[test]
fn conditions_that_cannot_be_are_refused() {
    let name_line = with_rule("").lines().position(|line| line.contains("\"x\"")).unwrap() + 1;
    let errors = |lines: &str| {
        refused(&with_rule(lines))
            .iter()
            .map(|error| {
                let mut parts = error.splitn(4, ':');
                let line: usize = parts.nth(1).and_then(|line| line.parse().ok()).unwrap();
                format!("{}:{}:{}", line - name_line, parts.next().unwrap(), parts.next().unwrap())
            })
            .collect::<Vec<_>>()
    };
    for (lines, expected) in [
        (
            "source_port = \"x\"",
            "4:15: \"x\" cannot be source_port: it names no port or range of ports: \
             write a port from 0 to 65535, or a range, as \"1024-65535\"",
        ),
        (
            "source_port = 65536",
            "4:15: source_port is 65536, outside 0 to 65535: write a number \
          from 0 to 65535",
        ),
        (
            "source_port = true",
            "4:15: source_port is a port or range, as 68 or \"1024-65535\", not a TOML boolean: \
             write a port or range, as 68 or \"1024-65535\"",
        ),
        (
            "tcp_flags = \"syn,akc\"",
            "4:13: \"syn,akc\" cannot be tcp_flags: TCP has no flag \"akc\": write names of \
             fin, syn, rst, psh, ack, urg, ece and cwr, as \"syn,!ack\"",
        ),
        (
            "ethertype = \"arp\"",
            "4:13: \"arp\" cannot be ethertype: ARP is not for rules: the switch gives every \
             request to its target alone: leave the rule out, and allow the service that is wanted",
        ),
        (
            "ethertype = 0x8100",
            "4:13: \"0x8100\" cannot be ethertype: it is a VLAN tag's, which stands before the \
             ethertype: write vlan = 10",
        ),
        ("vlan = 4095", "4:8: vlan is 4095, outside 1 to 4094: write a number from 1 to 4094"),
        (
            "ethertype = \"0x88b5\"\nservice = \"any\"",
            "5:11: service is a matter of IP, and this rule is about ethertype 0x88b5: leave \
             service out, or write a rule of its own for IP",
        ),
        (
            "ethertype = \"0x88b5\"\ntcp_flags = \"syn\"",
            "5:13: tcp_flags is a matter of IP, and this rule is about ethertype 0x88b5: leave \
             tcp_flags out, or write a rule of its own for IP",
        ),
        (
            "service = [\"tcp/80\", \"icmp/echo\"]\nsource_port = 68",
            "5:15: source_port and the service icmp/echo exclude each other: only TCP, UDP and \
             SCTP have ports: leave source_port out, or give the service a rule of its own",
        ),
        (
            "service = \"udp/53\"\ntcp_flags = \"syn\"",
            "5:13: tcp_flags and the service udp/53 exclude each other: only TCP has its flags: \
             leave tcp_flags out, or give the service a rule of its own",
        ),
        (
            "service = \"icmp6\"\nethertype = \"ipv4\"",
            "5:13: ethertype and the service icmp6 exclude each other: ICMPv6 is of IPv6: leave \
             ethertype out, or give the service a rule of its own",
        ),
        (
            "sorce_port = 68",
            "4:1: unknown key \"sorce_port\" in [[rule]]: did you mean \"source_port\"?",
        ),
    ] {
        assert_eq!(errors(lines), [expected], "{lines}");
    }
}

#[test]
fn conditions_that_match_nothing_are_noticed() {
    let notices = |text: &str| -> Vec<_> {
        compiled(text).notices.into_iter().map(|notice| notice.message).collect()
    };
    assert_eq!(
        notices(&with_rule("vlan = 10")),
        ["rule \"x\" speaks of VLAN 10, which no port carries"]
    );
    let carried = "[[workload]]\nname = \"t\"\nkind = \"vm\"\nip = \"10.0.9.9/24\"\ntrunk = [10]\n";
    assert_eq!(notices(&(with_rule("vlan = 10\n") + carried)), [] as [&str; 0]);

    let late = with_rule("tcp_flags = \"ack\"");
    assert_eq!(
        notices(&late),
        ["rule \"x\" asks for ack, which begins no connection, and a connection's other frames \
          follow its first one: in enforce mode it allows nothing, unless midstream = true"]
    );
    let lenient = late.replace("name = \"lab0\"", "name = \"lab0\"\nmidstream = true");
    assert_eq!(notices(&lenient), [] as [&str; 0]);
    assert_eq!(notices(&with_rule("tcp_flags = \"syn\"")), [] as [&str; 0]);
}

#[test]
fn what_deserves_a_look_is_noticed() {
    let text = with(
        "[[workload]]\nname = \"bare\"\nkind = \"vm\"\n\
         [[workload]]\nname = \"wide\"\nkind = \"vm\"\nip = \"10.0.1.1/16\"\n\
         [[group]]\nname = \"inside\"\ncidr = \"10.0.0.0/8\"\nexcept = \"11.0.0.0/8\"\n\
         [[rule]]\nname = \"x\"\nfrom = { tier = \"wbe\" }\nto = { any = true }\n\
         action = \"allow\"",
    );
    let notices: Vec<_> = compiled(&text).notices.into_iter().map(|n| n.message).collect();
    let expected = [
        "overlap with different prefix lengths",
        "overlap with different prefix lengths",
        "\"bare\" has no ip",
        "\"inside\" contains an address of workload \"web\"",
        "\"inside\" excepts 11.0.0.0/8, which it does not contain",
        "rule \"x\" matches nothing in its \"from\"",
    ];
    assert_eq!(notices.len(), expected.len(), "{notices:?}");
    for (notice, expected) in notices.iter().zip(expected) {
        assert!(notice.contains(expected), "{notice}");
    }
}
