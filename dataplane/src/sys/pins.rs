//! A directory of a BPF file system: what is pinned in it outlives the process that made it.
//!
//! Maps lie in it under their names, links under the index of their interface (`link-7`); no name may
//! have a dot. All of it is in a directory of its own per [layout version](Pins::open), so that a
//! process never takes maps for its own whose values it would misread.
//!
//! Source: Documentation/bpf/ (bpffs), kernel/bpf/inode.c.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the maps and links of one switch are pinned.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    base: PathBuf,
    directory: PathBuf,
}

impl Pins {
    /// The pins in `base`, which is made if need be, of that layout. Those of other layouts are
    /// removed, which takes their programs off their interfaces.
    pub(crate) fn open(base: &Path, layout: u32) -> io::Result<Self> {
        let name = format!("v{layout}");
        let pins = Self { base: base.to_owned(), directory: base.join(&name) };
        fs::create_dir_all(&pins.directory)?;
        for entry in fs::read_dir(base)? {
            let entry = entry?;
            if entry.file_name() != *name {
                fs::remove_dir_all(entry.path())?;
            }
        }
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
    pub(crate) fn links(&self) -> io::Result<Vec<u32>> {
        let index = |name: &str| name.strip_prefix("link-")?.parse().ok();
        fs::read_dir(&self.directory)?
            .filter_map(|entry| match entry {
                Ok(entry) => index(&entry.file_name().to_string_lossy()).map(Ok),
                Err(error) => Some(Err(error)),
            })
            .collect()
    }

    /// Removes what is pinned, and begins anew.
    pub(crate) fn clear(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.directory)?;
        fs::create_dir(&self.directory)
    }

    /// Removes what is pinned, and the directory. What the process still holds stays until it lets
    /// go of it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.base)
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
        fs::write(old.link(7), "").unwrap();
        assert!(!old.has_maps(&["flows", "ports"]));
        let again = Pins::open(base.path(), 1).unwrap();
        assert!(again.has_maps(&["flows"]));
        assert_eq!(again.links().unwrap(), [7]);
        let new = Pins::open(base.path(), 2).unwrap();
        assert!(!old.directory.exists() && !new.has_maps(&["flows"]));
        fs::write(new.link(7), "").unwrap();
        new.clear().unwrap();
        assert!(new.links().unwrap().is_empty());
        new.remove().unwrap();
        assert!(!base.path().exists());
    }
}
