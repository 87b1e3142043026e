//! A directory of a BPF file system: what is pinned in it outlives the process that made it.
//!
//! Maps lie in it under their names, links under the index of their interface (`link-7`); no name may
//! have a dot. All of it is in a directory of its own per [layout version](Pins::open), so that a
//! process never takes maps for its own whose values it would misread, and per network namespace, so that it never
//! takes a link for its own that is of another interface.
//!
//! Source: Documentation/bpf/ (bpffs), kernel/bpf/inode.c.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is pinned of walls, whatever the layout.
const WALLS: &str = "walls";

/// Where the maps and links of one switch are pinned.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    base: PathBuf,
    directory: PathBuf,
}

impl Pins {
    /// The pins in `base`, which is made if need be, of that layout and namespace. Those of others are
    /// removed, which takes their programs off their interfaces.
    pub(crate) fn open(base: &Path, layout: u32) -> io::Result<Self> {
        let (name, walls) = (here(&format!("v{layout}"))?, here(WALLS)?);
        let pins = Self { base: base.to_owned(), directory: base.join(&name) };
        fs::create_dir_all(&pins.directory)?;
        for entry in fs::read_dir(base)? {
            let entry = entry?;
            if entry.file_name() != *name && entry.file_name() != *walls {
                fs::remove_dir_all(entry.path())?;
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
    pub(crate) fn link(&self, ifindex: u32) -> PathBuf {
        self.directory.join(format!("link-{ifindex}"))
    }

    /// Whether all of these maps are there.
    pub(crate) fn has_maps(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.map(name).exists())
    }

    /// Interfaces whose links are here.
    fn links(&self) -> io::Result<Vec<u32>> {
        let index = |name: &str| name.strip_prefix("link-")?.parse().ok();
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
    pub(crate) fn keep_links(&self, ifindexes: &[u32]) -> io::Result<()> {
        let strangers = self.links()?.into_iter().filter(|index| !ifindexes.contains(index));
        strangers.into_iter().try_for_each(|index| fs::remove_file(self.link(index)))
    }

    /// Removes the maps that are pinned. Programs stay on their interfaces until others take their places.
    pub(crate) fn remove_maps(&self) -> io::Result<()> {
        let links: Vec<PathBuf> = self.links()?.into_iter().map(|index| self.link(index)).collect();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if !links.contains(&path) {
                fs::remove_file(path)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_layouts_pins_go_and_this_ones_stay() {
        let base = tempfile::tempdir().unwrap();
        let old = Pins::open(base.path(), 1).unwrap();
        fs::write(old.map("flows"), "").unwrap();
        fs::write(old.link(7), "").unwrap();
        assert!(!old.has_maps(&["flows", "ports"]));
        let again = Pins::open(base.path(), 1).unwrap();
        assert!(again.has_maps(&["flows"]));
        assert_eq!(again.links().unwrap(), [7]);
        let new = Pins::open(base.path(), 2).unwrap();
        assert!(!old.directory.exists() && !new.has_maps(&["flows"]));
        fs::write(new.link(7), "").unwrap();
        let walls = Pins::of_walls(base.path()).unwrap();
        [7, 8, 9].into_iter().for_each(|index| fs::write(walls.link(index), "").unwrap());
        walls.keep_links(&[8]).unwrap();
        fs::write(new.map("flows"), "").unwrap();
        new.remove_maps().unwrap();
        assert!(!new.has_maps(&["flows"]) && new.links().unwrap() == [7]);
        new.keep_links(&[]).unwrap();
        Pins::remove_from(base.path()).unwrap();
        assert!(!new.directory.exists());
        assert_eq!(walls.links().unwrap(), [8], "walls stay, whatever else is pinned");
        new.remove().unwrap();
        assert!(!base.path().exists());
    }
}
