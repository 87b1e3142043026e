//! The commands that need neither root nor a running switch: what they print and how they exit.

mod documented;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use documented::assert_documented;

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs").join(name)
}

fn firedoor(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firedoor"));
    // No switch runs here, whatever runs on the host.
    let nowhere = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nowhere");
    command.args(args).env("FIREDOOR_RUN_DIR", nowhere).output().expect("firedoor starts")
}

fn with_config(args: &[&str], name: &str) -> Output {
    let path = config(name).display().to_string();
    let args: Vec<_> = args.iter().map(|arg| if *arg == "CONFIG" { &path } else { *arg }).collect();
    firedoor(&args)
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("it prints UTF-8")
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}

#[test]
fn check_says_yes_no_or_cannot() {
    assert_eq!(code(&with_config(&["check", "CONFIG"], "three-tier.toml")), Some(0));
    assert_eq!(code(&firedoor(&["check", "/nonexistent"])), Some(2));

    let bad = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bad.toml");
    std::fs::write(&bad, "[switch]\nname = \"x\"\nmood = \"grim\"\n").expect("it can be written");
    let bad = bad.display().to_string();
    let output = firedoor(&["check", &bad]);
    assert_eq!(code(&output), Some(1));
    let text = stdout(&output);
    assert!(text.contains(&format!("--> {bad}:3:1")), "{text}");
    assert!(text.contains("did you mean \"mode\"?"), "{text}");

    let answer = json(&firedoor(&["check", "--json", &bad]));
    assert_eq!(answer["compiles"], false);
    assert_eq!(answer["errors"][0]["code"], "unknown-key");
    assert_eq!(answer["errors"][0]["line"], 3);
}

#[test]
fn a_config_without_end_is_not_read_to_its_end() {
    let output = firedoor(&["check", "/dev/zero"]);
    assert_eq!(code(&output), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("which no config may be"), "{text}");
}

#[test]
fn other_commands_show_why_a_config_does_not_compile() {
    let bad = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-switch.toml");
    std::fs::write(&bad, "").expect("it can be written");
    let output = firedoor(&["connectivity", &bad.display().to_string()]);
    assert_eq!(code(&output), Some(2));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no switch"), "{output:?}");
}

#[test]
fn trace_exits_by_the_verdict() {
    let trace = |from, to, service| {
        let args = ["trace", "--json", "--from", from, "--to", to, service, "--config", "CONFIG"];
        with_config(&args, "three-tier.toml")
    };
    let allowed = trace("web", "api", "tcp/8080");
    assert_eq!((code(&allowed), &json(&allowed)["cause"]), (Some(0), &"web-to-api".into()));
    let denied = trace("web", "db", "tcp/5432");
    assert_eq!((code(&denied), &json(&denied)["reason"]), (Some(1), &"default-deny".into()));
    let rejected = trace("intruder", "api", "udp/53");
    assert_eq!(
        (code(&rejected), &json(&rejected)["rules"][0]["rule"]),
        (Some(1), &"reject-intruder".into())
    );
    let by_address = trace("web", "fd00:10::20", "tcp/8080");
    assert_eq!(json(&by_address)["dst"], "fd00:10::20", "an address is meant as it is given");
    let question = trace("web", "api", "arp");
    assert_eq!((code(&question), &json(&question)["dst"]), (Some(0), &"10.10.0.20".into()));
    let bus = trace("web", "api", "ethertype/0x88b5");
    assert_eq!((code(&bus), &json(&bus)["reason"]), (Some(1), &"unknown-ethertype".into()));
    assert_eq!(code(&trace("web", "api", "ethertype/ipv4")), Some(2));
    assert_eq!(code(&trace("web", "nobody", "tcp/1")), Some(2));
    assert_eq!(code(&trace("web", "api", "tcp/1-2")), Some(2));
}

#[test]
fn connectivity_prints_a_table_json_and_a_graph() {
    let table = stdout(&with_config(&["connectivity", "CONFIG"], "three-tier.toml"));
    assert!(table.lines().any(|line| line.starts_with("web ") && line.contains("tcp/8080")));
    assert!(!table.contains('\u{1b}'), "no colour when it is not a terminal");

    let pairs = json(&with_config(&["connectivity", "CONFIG", "--json"], "three-tier.toml"));
    assert_eq!(pairs.as_array().map(Vec::len), Some(12));

    let on_trial = with_config(&["connectivity", "CONFIG"], "dual-stack.toml");
    assert!(stdout(&on_trial).contains("tcp/80*"), "{on_trial:?}");
    let notes = String::from_utf8_lossy(&on_trial.stderr).into_owned();
    assert!(notes.contains("*: a rule under audit would refuse it"), "{notes}");

    let graph = stdout(&with_config(&["connectivity", "CONFIG", "--dot"], "three-tier.toml"));
    assert!(graph.contains("\"api\" -> \"db\" [label = \"tcp/5432\"];"), "{graph}");
}

#[test]
fn lint_exits_by_what_it_finds() {
    let clean = with_config(&["policy", "lint", "CONFIG"], "three-tier.toml");
    assert_eq!(code(&clean), Some(0), "{clean:?}");
    assert!(stdout(&clean).starts_with("nothing to mend"));
    let none = json(&with_config(&["policy", "lint", "CONFIG", "--json"], "three-tier.toml"));
    assert_eq!(none, serde_json::json!([]));

    let text = "[switch]\nname = \"lab0\"\n[[service]]\nname = \"dns\"\nmatch = \"udp/53\"\n";
    let config = Path::new(env!("CARGO_TARGET_TMPDIR")).join("unused-service.toml");
    std::fs::write(&config, text).expect("it can be written");
    let path = config.display().to_string();
    let found = firedoor(&["policy", "lint", &path]);
    assert_eq!(code(&found), Some(1));
    assert_eq!(stdout(&found), format!("{path}:4:8: no rule names service \"dns\"\n"));
    let found = json(&firedoor(&["policy", "lint", &path, "--json"]));
    assert_eq!((&found[0]["code"], &found[0]["line"]), (&"unused".into(), &4.into()));
    assert_documented("policy lint", &found);
}

#[test]
fn json_has_the_documented_keys() {
    assert_documented(
        "check",
        &json(&with_config(&["check", "CONFIG", "--json"], "three-tier.toml")),
    );
    let pairs = with_config(&["connectivity", "CONFIG", "--json"], "three-tier.toml");
    assert_documented("connectivity", &json(&pairs));
    let question =
        ["trace", "--from", "web", "--to", "db", "tcp/1", "--config", "CONFIG", "--json"];
    assert_documented("trace", &json(&with_config(&question, "three-tier.toml")));
}

#[test]
fn a_capture_is_replayed_without_a_switch() {
    let capture = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/corpus/capture/three-tier.pcap")
        .display()
        .to_string();
    let replay = |capture: &str, rest: &[&str]| {
        let args = [&["bench", "replay", capture, "--config", "CONFIG"], rest].concat();
        with_config(&args, "three-tier.toml")
    };
    let output = replay(&capture, &[]);
    assert_eq!(code(&output), Some(0));
    let text = stdout(&output);
    assert!(text.starts_with("12 frames ("), "{text}");
    assert!(text.contains("spoofed-ip") && text.contains("reject-intruder"), "{text}");
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(notes.contains("02:00:00:00:be:ef (2)"), "{notes}");

    let report = json(&replay(&capture, &["--repeat", "1", "--json"]));
    assert_eq!((&report["frames"], &report["drops"]["spoofed-ip"]), (&12.into(), &1.into()));
    assert!(report["ns_per_frame"]["path"]["median"].as_f64().is_some_and(|ns| ns > 0.0));

    assert_eq!(code(&replay(&capture, &["--port", "nobody"])), Some(2));
    assert_eq!(code(&replay("/nonexistent", &[])), Some(2));
}

#[test]
fn without_a_switch_there_is_nothing_to_ask() {
    let output = firedoor(&["connectivity"]);
    assert_eq!(code(&output), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "), "{output:?}");
}

#[test]
fn shells_and_man_know_every_command() {
    let script = stdout(&firedoor(&["completions", "bash"]));
    let pages = tempfile::tempdir().expect("there is room for a directory");
    assert_eq!(code(&firedoor(&["man", &pages.path().display().to_string()])), Some(0));
    for (words, page) in
        [("firedoor trace", "firedoor-trace.1"), ("firedoor lab up", "firedoor-lab-up.1")]
    {
        let function = words.replace(' ', "__subcmd__");
        assert!(script.contains(&function), "bash does not know {words}: {script}");
        let page = std::fs::read_to_string(pages.path().join(page)).expect("there is a page");
        assert!(page.contains("Example: "), "{page}");
    }
    assert!(!pages.path().join("firedoor-dataplane.1").exists(), "a role is no command");
    assert_eq!(code(&firedoor(&["man", "/proc/nowhere"])), Some(2));
}
