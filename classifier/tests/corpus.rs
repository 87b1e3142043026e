//! Replays the fuzz corpus on the stable toolchain, so that what fuzzing once found stays found.
//!
//! Each file of `extract` is one frame, named for what it is, and each of `policy` a policy, its changes
//! and frames as bytes. `linux-…` are frames that Linux 6.18 sent over a
//! veth with checksum offload, as an AF_PACKET socket saw them.

use std::fs;
use std::path::Path;

use firedoor_classifier::checksum::complete_partial;
use firedoor_classifier::extract::extract;
use firedoor_classifier::snapshot::PortId;

#[path = "../../tests/fuzz/checks/extract.rs"]
mod check;
#[path = "../../tests/fuzz/checks/history.rs"]
mod history;
#[path = "../../tests/fuzz/checks/policy.rs"]
mod policy;

use history::Seen;

/// Name and bytes of every case of a fuzz target whose name begins with `prefix`.
fn cases(target: &str, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(target);
    let mut cases = Vec::new();
    for entry in fs::read_dir(corpus).expect("the corpus is in the repository") {
        let entry = entry.expect("the corpus is readable");
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            let frame = fs::read(entry.path()).expect("a case is a file");
            cases.push((name, frame));
        }
    }
    assert!(!cases.is_empty(), "no case {prefix}*");
    cases
}

#[test]
fn extraction_keeps_its_promises() {
    for (name, frame) in cases("extract", "") {
        println!("{name}");
        check::check(&frame);
    }
}

#[test]
fn partial_checksums_of_linux_are_recognised() {
    for (name, mut frame) in cases("extract", "linux-") {
        let headers = extract(&frame, PortId(1)).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let is_partial = name.starts_with("linux-partial-");
        assert_eq!(complete_partial(&mut frame, &headers), is_partial, "{name}");
    }
}

#[test]
fn policies_changes_and_frames_keep_their_promises() {
    let mut seen = Seen::default();
    for (name, bytes) in cases("policy", "") {
        println!("{name}");
        policy::check(&bytes, &mut seen);
    }
    println!("{seen}");
}
