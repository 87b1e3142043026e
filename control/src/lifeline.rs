//! The first sign of a process's end.
//!
//! Whoever waits for a child hears of its end when the kernel has taken it apart. For a data plane that is a tenth
//! of a second and more after the kill: for each AF_XDP socket the kernel waits for a grace period, one after the
//! other. But it lets go of a process's record locks (fcntl(2)) before it releases any file (`filp_flush`, called
//! by `close_files`), when no thread runs any more. So a role holds one as long as it lives, and its supervisor waits for it.
//!
//! All lock the same file, each the byte of its own process id. It must never be opened and closed again by a
//! process that holds a lock of it: that would let go, too.

use std::fs::{File, OpenOptions};
use std::io;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::rundir::RunDir;

/// A lock that this process holds until it ends.
#[derive(Debug)]
pub struct Lifeline {
    _file: File,
}

impl Lifeline {
    /// Takes it.
    ///
    /// # Errors
    /// If the file system says no.
    pub fn hold(run_dir: &RunDir) -> io::Result<Self> {
        let file = File::create(run_dir.lifeline())?;
        fcntl(&file, FcntlArg::F_SETLK(&byte_of(std::process::id())))?;
        Ok(Self { _file: file })
    }
}

/// Waits until that process begins to end. Returns at once, with false, if it does not hold its lock.
///
/// # Errors
/// If the file system says no, or a signal came.
pub fn await_end(run_dir: &RunDir, pid: u32) -> io::Result<bool> {
    // Not made here: the run directory may just be removed.
    let file = OpenOptions::new().write(true).open(run_dir.lifeline())?;
    let (byte, mut held) = (byte_of(pid), byte_of(pid));
    fcntl(&file, FcntlArg::F_GETLK(&mut held))?;
    if u32::try_from(held.l_pid) != Ok(pid) {
        return Ok(false);
    }
    fcntl(&file, FcntlArg::F_SETLKW(&byte))?;
    Ok(true)
}

fn byte_of(pid: u32) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: pid.into(),
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_no_lock_is_not_waited_for() {
        let base = tempfile::tempdir().unwrap();
        let run_dir = RunDir::at(base.path());
        assert!(await_end(&run_dir, std::process::id()).is_err(), "there is no file");
        let _lifeline = Lifeline::hold(&run_dir).unwrap();
        let other = std::process::id() + 1;
        assert!(!await_end(&run_dir, other).unwrap());
    }
}
