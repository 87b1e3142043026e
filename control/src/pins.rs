//! Where the kernel keeps a switch's express lane while its data plane is away.
//!
//! That is a directory of a BPF file system, `/sys/fs/bpf/firedoor/NAME`, which the data plane fills.
//! Where the host has none mounted there, the switch mounts one of its own in its run directory, and
//! takes it down with that. Whoever removes the directory takes the programs off their interfaces, so
//! this is how a switch ends whose processes were killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where hosts mount it.
const SYSTEM: &str = "/sys/fs/bpf";
/// The switch's own, in the run directory.
const OWN: &str = "bpf";

/// A place for pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The directory, which need not exist.
    pub path: PathBuf,
    /// Whether the file system was mounted for it alone.
    pub is_own: bool,
}

/// The place for the pins of the switch of this run directory. Mounts a file system if there is none.
///
/// # Errors
/// If that is refused.
pub fn prepare(run_dir: &Path) -> io::Result<Place> {
    let place = place_of(run_dir);
    let own = run_dir.join(OWN);
    if place.is_own && !is_bpf(&own) {
        fs::create_dir_all(&own)?;
        mount(Some("bpf"), &own, Some("bpf"), MsFlags::empty(), Some("mode=700"))?;
    }
    Ok(place)
}

/// Removes what is pinned for the switch of this run directory, and the file system if it was mounted
/// for it. Who may not look there has pinned nothing there.
///
/// # Errors
/// If the file system says no.
pub fn remove(run_dir: &Path) -> io::Result<()> {
    let Place { path, is_own } = place_of(run_dir);
    absent_is_fine(fs::remove_dir_all(&path))?;
    let own = run_dir.join(OWN);
    if is_own && is_bpf(&own) {
        umount2(&own, MntFlags::MNT_DETACH)?;
    }
    absent_is_fine(fs::remove_dir(&own))
}

fn place_of(run_dir: &Path) -> Place {
    if is_bpf(Path::new(SYSTEM)) {
        Place { path: Path::new(SYSTEM).join("firedoor").join(name_of(run_dir)), is_own: false }
    } else {
        Place { path: run_dir.join(OWN).join("pins"), is_own: true }
    }
}

/// The switch's name; with its directories, if it runs elsewhere than others do. No name may have a
/// dot there.
fn name_of(run_dir: &Path) -> String {
    let usual = run_dir.strip_prefix(crate::rundir::DEFAULT_BASE).unwrap_or(run_dir);
    usual.to_string_lossy().replace('/', "!").replace('.', "%")
}

fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    use io::ErrorKind::{NotFound, PermissionDenied};
    match result {
        Err(error) if matches!(error.kind(), NotFound | PermissionDenied) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_have_places_of_their_own_without_dots() {
        let names = ["/run/firedoor/lab0", "/run/firedoor/lab.0", "/tmp/x/lab0", "/tmp/y/lab0"]
            .map(|path| name_of(Path::new(path)));
        assert_eq!(names, ["lab0", "lab%0", "!tmp!x!lab0", "!tmp!y!lab0"]);
    }

    #[test]
    fn nothing_is_left_to_remove_where_nothing_was() {
        let run_dir = tempfile::tempdir().unwrap();
        remove(run_dir.path()).unwrap();
    }
}
