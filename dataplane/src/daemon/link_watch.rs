//! Interfaces that appear, change and vanish while the data plane runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::Shared;
use crate::link::{LinkEvent, LinkWatch, Netlink};
use crate::redirect_targets::{RedirectTargets, TargetWatch};

/// How often ports that could not be attached are tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Watches for the life of the process.
pub(super) fn run(shared: &Arc<Shared>) {
    if let Err(error) = watch(shared) {
        tracing::error!(%error, "interfaces are not watched: ports that vanish stay down");
    }
}

fn watch(shared: &Arc<Shared>) -> std::io::Result<()> {
    let links = LinkWatch::open()?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut SourceFd(&links.fd()), Token(0), Interest::READABLE)?;
    // Where the kernel does not say, nothing is redirected in XDP.
    let targets = RedirectTargets::open().and_then(|targets| targets.watch()).ok();
    if let Some(targets) = &targets {
        poll.registry().register(&mut SourceFd(&targets.fd()), Token(1), Interest::READABLE)?;
        shared.targets_changed();
    }
    let mut events = Events::with_capacity(2);
    let mut retried = Instant::now();
    loop {
        match poll.poll(&mut events, Some(RETRY)) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in links.drain() {
            match event {
                LinkEvent::Present(link) => shared.link_changed(&link.name, Some(link.index)),
                LinkEvent::Gone { name, .. } => shared.link_changed(&name, None),
                LinkEvent::Missed => look_at_all(shared)?,
            }
        }
        if targets.as_ref().is_some_and(TargetWatch::drain) {
            shared.targets_changed();
        }
        if retried.elapsed() >= RETRY {
            shared.retry_ports();
            retried = Instant::now();
        }
    }
}

/// Events were lost: compares every port with the interfaces as they are.
fn look_at_all(shared: &Arc<Shared>) -> std::io::Result<()> {
    let links = Netlink::open()?.links()?;
    for ifname in shared.interfaces() {
        let now = links.iter().find(|link| link.name == ifname).map(|link| link.index);
        shared.link_changed(&ifname, now);
    }
    Ok(())
}
