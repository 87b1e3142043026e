//! Opens workloads' interfaces as AF_XDP ports.

use std::error::Error;
use std::sync::Arc;

use firedoor_classifier::snapshot::{Lane, Workload};

use crate::engine::{Lease, MAX_QUEUES, OpenFailure, Opened, Opener};
use crate::link::LinkError;
use crate::pool::FramePool;
use crate::port::Port;
use crate::port::xdp::{self, OpenError, XdpOptions};
use crate::sys::umem::Umem;

/// The opener of the real data plane.
#[derive(Debug, Default)]
pub struct Interfaces;

impl Opener for Interfaces {
    fn open(
        &mut self,
        umem: &Arc<Umem>,
        lease: Lease,
        workload: &Workload,
        pool: &mut FramePool,
    ) -> Result<Opened, OpenFailure> {
        let options = XdpOptions {
            fill: lease.fill,
            tx: lease.fill,
            max_queues: MAX_QUEUES.into(),
            ..XdpOptions::default()
        };
        let opened = xdp::open(umem, lease.owner_base, &workload.ifname, &options, pool);
        let opened = opened.map_err(|error| match error {
            OpenError::Link(LinkError::NotFound { .. }) => OpenFailure::Missing,
            error => OpenFailure::Failed(with_sources(&error)),
        })?;
        let mut notices = opened.notices;
        if workload.lane == Lane::Express {
            notices.push("the express lane is not built yet: the switch lane carries it".into());
        }
        let queues = opened.queues.into_iter().map(|queue| Box::new(queue) as Box<dyn Port>);
        Ok(Opened { queues: queues.collect(), mode: opened.mode, notices, ifindex: opened.index })
    }
}

/// An error and what it came from, in one line.
fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
