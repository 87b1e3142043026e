//! A directory of a BPF file system: what is pinned in it outlives the process that made it.
//!
//! Maps lie in it under their names, links under what they hold a program at and the index of their interface
//! (`link-7`, `xdp-7`); no name may have a dot. All of it is in a directory of its own per
//! [layout version](Pins::open), so that a process never takes maps for its own whose values it would misread, and per
//! network namespace, so that it never takes a link for its own that is of another interface.
//!
//! Source: Documentation/bpf/ (bpffs), kernel/bpf/inode.c.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};

use super::bpf::kernel_error;

/// What is pinned of walls, whatever the layout.
const WALLS: &str = "walls";

/// What a link holds a program at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// An interface's ingress at tc.
    Tc,
    /// An interface's driver.
    Xdp,
}

impl Place {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Tc => "link-",
            Self::Xdp => "xdp-",
        }
    }
}

/// Where the maps and links of one switch are pinned.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    base: PathBuf,
    directory: PathBuf,
}

impl Pins {
    /// The pins in `base` of that layout and of this thread's namespace, whoever has them, if there are any.
    pub(crate) fn at(base: &Path, layout: u32) -> io::Result<Self> {
        let directory = base.join(here(&format!("v{layout}"))?);
        Ok(Self { base: base.to_owned(), directory })
    }

    /// The pins in `base`, which is made if need be, of that layout and namespace. Those of others are
    /// removed, which takes their programs off their interfaces.
    pub(crate) fn open(base: &Path, layout: u32) -> io::Result<Self> {
        let (pins, walls) = (Self::at(base, layout)?, base.join(here(WALLS)?));
        fs::create_dir_all(&pins.directory)?;
        for entry in fs::read_dir(base)? {
            let path = entry?.path();
            if path != pins.directory && path != walls {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(pins)
    }

    /// The pins of walls in `base`, which is made if need be.
    pub(crate) fn of_walls(base: &Path) -> io::Result<Self> {
        let pins = Self { base: base.to_owned(), directory: base.join(here(WALLS)?) };
        fs::create_dir_all(&pins.directory)?;
        Ok(pins)
    }

    /// Where that map is pinned, or is to be.
    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the link of that interface is pinned, or is to be.
    pub(crate) fn link(&self, place: Place, ifindex: u32) -> PathBuf {
        self.directory.join(format!("{}{ifindex}", place.prefix()))
    }

    /// Whether all of these maps are there.
    pub(crate) fn has_maps(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.map(name).exists())
    }

    /// Interfaces whose links are here.
    fn links(&self, place: Place) -> io::Result<Vec<u32>> {
        let index = |name: &str| name.strip_prefix(place.prefix())?.parse().ok();
        fs::read_dir(&self.directory)?
            .filter_map(|entry| match entry {
                Ok(entry) => index(&entry.file_name().to_string_lossy()).map(Ok),
                Err(error) => Some(Err(error)),
            })
            .collect()
    }

    /// Removes all that is pinned in `base` but walls.
    pub(crate) fn remove_from(base: &Path) -> io::Result<()> {
        // There is no such layout.
        fs::remove_dir(Self::open(base, 0)?.directory)
    }

    /// Takes the programs off all interfaces but these.
    pub(crate) fn keep_links(&self, place: Place, ifindexes: &[u32]) -> io::Result<()> {
        let strangers = self.links(place)?.into_iter().filter(|index| !ifindexes.contains(index));
        strangers.into_iter().try_for_each(|index| fs::remove_file(self.link(place, index)))
    }

    /// Removes the maps that are pinned. Programs stay on their interfaces until others take their places.
    pub(crate) fn remove_maps(&self) -> io::Result<()> {
        let is_link = |name: &str| {
            [Place::Tc, Place::Xdp].into_iter().any(|place| name.starts_with(place.prefix()))
        };
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if !is_link(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes what is pinned, and the directory. What the process still holds stays until it lets
    /// go of it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.base)
    }
}

/// A name that is of this thread's network namespace: interfaces of another have the same indexes.
fn here(name: &str) -> io::Result<String> {
    let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
    Ok(format!("{name}-{namespace}"))
}

/// Pins a link, so that it outlives the process.
pub(super) fn pin<L>(link: L, at: &Path) -> io::Result<L>
where
    L: TryFrom<FdLink, Error = LinkError> + TryInto<FdLink, Error = LinkError>,
{
    let link: FdLink = link.try_into().map_err(kernel_error)?;
    let pinned = link.pin(at).map_err(kernel_error)?;
    L::try_from(FdLink::from(pinned)).map_err(kernel_error)
}

/// Has `replace` put a program in the place of a pinned link's. `None` if there is none, or it is of no use,
/// since its interface is gone for instance.
pub(super) fn take_over<L, T>(at: &Path, replace: impl FnOnce(L) -> io::Result<T>) -> Option<T>
where
    L: TryFrom<FdLink, Error = LinkError>,
{
    let link = FdLink::from(PinnedLink::from_pin(at).ok()?);
    match L::try_from(link).map_err(kernel_error).and_then(replace) {
        Ok(replaced) => Some(replaced),
        Err(error) => {
            tracing::debug!(%error, pin = %at.display(), "a pinned link is of no use");
            // If it stays, the next attempt to pin says so.
            let _ = fs::remove_file(at);
            None
        }
    }
}

/// Removes a pin, whose link ends with its process then.
pub(super) fn unpin(at: &Path) {
    if let Err(error) = fs::remove_file(at) {
        tracing::warn!(%error, pin = %at.display(), "a pin is not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_layouts_pins_go_and_this_ones_stay() {
        let base = tempfile::tempdir().unwrap();
        let old = Pins::open(base.path(), 1).unwrap();
        fs::write(old.map("flows"), "").unwrap();
        fs::write(old.link(Place::Tc, 7), "").unwrap();
        fs::write(old.link(Place::Xdp, 8), "").unwrap();
        assert!(!old.has_maps(&["flows", "ports"]));
        let again = Pins::open(base.path(), 1).unwrap();
        assert!(again.has_maps(&["flows"]));
        assert_eq!(again.links(Place::Tc).unwrap(), [7]);
        assert_eq!(again.links(Place::Xdp).unwrap(), [8]);
        let new = Pins::open(base.path(), 2).unwrap();
        assert!(!old.directory.exists() && !new.has_maps(&["flows"]));
        fs::write(new.link(Place::Tc, 7), "").unwrap();
        let walls = Pins::of_walls(base.path()).unwrap();
        [7, 8, 9]
            .into_iter()
            .for_each(|index| fs::write(walls.link(Place::Tc, index), "").unwrap());
        walls.keep_links(Place::Tc, &[8]).unwrap();
        fs::write(new.map("flows"), "").unwrap();
        new.remove_maps().unwrap();
        assert!(!new.has_maps(&["flows"]) && new.links(Place::Tc).unwrap() == [7]);
        new.keep_links(Place::Tc, &[]).unwrap();
        Pins::remove_from(base.path()).unwrap();
        assert!(!new.directory.exists());
        assert_eq!(walls.links(Place::Tc).unwrap(), [8], "walls stay, whatever else is pinned");
        new.remove().unwrap();
        assert!(!base.path().exists());
    }
}
