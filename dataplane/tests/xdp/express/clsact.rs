//! The express lane on a kernel without tcx, where its program is a filter in a queueing discipline that it may
//! share with others', and that outlives its process.

use std::process::Command;

use firedoor_dataplane::express::punt::ExpressPort;
use firedoor_dataplane::express::{Hook, Lane, TcHook};
use firedoor_dataplane::port::Port;
use libtest_mimic::Failed;

use super::scene::{Scene, open};
use super::tcp_short_way;
use crate::host::{Host, Workload};

/// As [`tcp_express`](super::tcp_express), on a kernel without tcx.
pub(super) fn short_way(host: &mut Host) -> Result<(), Failed> {
    let lane = Lane::load_at(TcHook::Clsact, 64, None)?;
    let mut scene = Scene::of(host, lane, Hook::Tcx)?;
    tcp_short_way(&mut scene, host, 16 << 20)?;
    assert_eq!(filters("fd1")?.len(), 1, "the program is a filter");
    scene.ports.drain(..).for_each(|port| port.close(&mut host.pool));
    nothing_left("fd1")?;
    nothing_left("fd2")?;
    scene.close(host);
    Ok(())
}

/// What others have in the queueing discipline stays.
pub(super) fn shared(host: &mut Host) -> Result<(), Failed> {
    let _workload = Workload::new("10.99.0.1", "fd1", 1)?;
    tc(&["qdisc", "add", "dev", "fd1", "clsact"])?;
    tc(&["filter", "add", "dev", "fd1", "egress", "bpf", "bytecode", "1,6 0 0 0"])?;
    let before = tc(&["filter", "show", "dev", "fd1", "egress"])?;
    let lane = Lane::load_at(TcHook::Clsact, 64, None)?;
    let (port, _) = open(host, &lane, 1, "fd1")?;
    assert_eq!(filters("fd1")?.len(), 1);
    Box::new(port).close(&mut host.pool);
    assert_eq!(filters("fd1")?.len(), 0);
    assert_eq!(tc(&["filter", "show", "dev", "fd1", "egress"])?, before);
    host.assert_conserved();
    Ok(())
}

/// The filter outlives its process; the next one's takes its place, and goes with its port.
pub(super) fn killed(host: &mut Host) -> Result<(), Failed> {
    let _workload = Workload::new("10.99.0.1", "fd1", 1)?;
    let mode = crate::hold_and_kill(crate::HOLD_CLSACT, "fd1", || Ok(()))?;
    assert_eq!(mode, "Clsact\n");
    let left = filters("fd1")?;
    assert_eq!(left.len(), 1, "{left:?}");
    let lane = Lane::load_at(TcHook::Clsact, 64, None)?;
    let (port, _) = open(host, &lane, 1, "fd1")?;
    let replaced = filters("fd1")?;
    assert!(replaced.len() == 1 && replaced != left, "{left:?} {replaced:?}");
    Box::new(port).close(&mut host.pool);
    host.assert_conserved();
    nothing_left("fd1")
}

/// What the child of [`killed`] does first.
pub(crate) fn hold_clsact(ifname: &str, host: &mut Host) -> Result<(Lane, ExpressPort), Failed> {
    let lane = Lane::load_at(TcHook::Clsact, 64, None)?;
    let (port, _) = open(host, &lane, 1, ifname)?;
    println!("{:?}", lane.hook());
    Ok((lane, port))
}

/// The filters at the ingress of an interface, each in a line that names its program.
fn filters(ifname: &str) -> Result<Vec<String>, Failed> {
    let shown = tc(&["filter", "show", "dev", ifname, "ingress"])?;
    Ok(shown.lines().filter(|line| line.contains(" handle ")).map(str::to_owned).collect())
}

fn nothing_left(ifname: &str) -> Result<(), Failed> {
    let shown = tc(&["qdisc", "show", "dev", ifname])?;
    assert!(!shown.contains("clsact"), "{shown}");
    Ok(())
}

fn tc(arguments: &[&str]) -> Result<String, Failed> {
    let output = Command::new("tc").args(arguments).output()?;
    assert!(
        output.status.success(),
        "tc {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
