//! A wall between an interface and the host's stack, for when the program in XDP is gone.
//!
//! That program ends with its process, however that ends, and the interface stays up. So behind it, at tc
//! ingress, stands another one that drops everything (dataplane/bpf/wall.bpf.c). It costs nothing: while the first one is there,
//! nothing gets as far. It is pinned, so that it stays when the process is killed, and is taken over by the
//! next; where nothing can be pinned, or the kernel has no tcx, a filter of clsact holds it, which stays by itself.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::programs::tc::SchedClassifier;
use parking_lot::Mutex;

use super::bpf::{LOADER, kernel_error};
use super::express::{Attached, TcHook, attach};
use super::pins::{Pins, Place};
use crate::link::Link;

/// dataplane/bpf/wall.bpf.c, compiled by `cargo xtask bpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/wall.bpf.o");

/// What makes walls, and keeps them up beyond the process.
#[derive(Debug, Default)]
pub struct Walls {
    /// Loaded for the first wall.
    program: Mutex<Option<Ebpf>>,
    /// Interfaces that have got one.
    raised: Mutex<BTreeSet<u32>>,
    /// Where they are pinned, if they can be.
    pins: Option<Pins>,
}

/// A wall, until it is dropped.
#[derive(Debug)]
pub struct Wall {
    _attached: Attached,
}

impl Walls {
    /// Walls that are pinned beside what else is pinned in `base`, if that is given and can be used.
    pub fn new(base: Option<&Path>) -> Self {
        let can_be_pinned = TcHook::of_kernel() == TcHook::Tcx;
        let base = base.filter(|_| can_be_pinned);
        let pins = base.and_then(|base| Pins::of_walls(base).ok());
        Self { pins, ..Self::default() }
    }

    /// Raises a wall behind an interface of the calling thread's namespace, in the place of the one that a
    /// process before has left.
    ///
    /// # Errors
    /// The kernel's.
    pub fn raise(&self, link: &Link) -> io::Result<Wall> {
        let mut program = self.program.lock();
        if program.is_none() {
            *program = Some(load()?);
        }
        let Some(program) = &mut *program else { return Err(io::ErrorKind::NotFound.into()) };
        let program = classifier(program)?;
        let mut raise = |hook, pin| attach(program, hook, pin, &link.name, link.index);
        let pin = self.pins.as_ref().map(|pins| pins.link(Place::Tc, link.index));
        let pinned = pin.and_then(|pin| raise(TcHook::Tcx, Some(pin)).ok());
        let attached = pinned.map_or_else(|| raise(TcHook::Clsact, None), Ok)?;
        self.raised.lock().insert(link.index);
        Ok(Wall { _attached: attached })
    }

    /// Likewise. Without one, the port is as good while the process lives: it is only told.
    pub(crate) fn raise_or_say_so(&self, link: &Link) -> Option<Wall> {
        let raised = self.raise(link);
        raised
            .inspect_err(|error| {
                let interface = &link.name;
                tracing::warn!(%error, interface, "no wall: if killed, the switch leaves it to the host");
            })
            .ok()
    }

    /// Interfaces that have got one here.
    pub(crate) fn raised(&self) -> BTreeSet<u32> {
        self.raised.lock().clone()
    }

    /// Takes the walls of a process before off all interfaces that have got none here, nor are among `others`.
    pub(crate) fn keep(&self, others: &BTreeSet<u32>) {
        let kept: Vec<u32> = self.raised.lock().union(others).copied().collect();
        if let Some(pins) = &self.pins
            && let Err(error) = pins.keep_links(Place::Tc, &kept)
        {
            tracing::warn!(%error, "a wall of the last data plane stays at its interface");
        }
    }
}

fn load() -> io::Result<Ebpf> {
    let mut program = LOADER.lock().load(OBJECT).map_err(kernel_error)?;
    classifier(&mut program)?.load().map_err(kernel_error)?;
    Ok(program)
}

fn classifier(program: &mut Ebpf) -> io::Result<&mut SchedClassifier> {
    let program = program.program_mut("wall").ok_or(io::ErrorKind::InvalidData)?;
    program.try_into().map_err(kernel_error)
}
