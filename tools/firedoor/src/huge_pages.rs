//! Large tables in large pages.
//!
//! A million connections lie on 40,000 pages of 4 KiB, which no processor's TLB holds: in a virtual
//! machine a lookup then waits longer for page walks than for memory. glibc asks the kernel for huge
//! pages (`madvise`, malloc(3) and mallopt(3)) if a tunable says so when a process starts. Other C
//! libraries, and kernels without huge pages, take no notice.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

const TUNABLES: &str = "GLIBC_TUNABLES";

/// Has the command's process use huge pages, unless the user tunes glibc by other means.
pub(crate) fn ask_for(command: &mut Command) -> &mut Command {
    match env::var_os(TUNABLES) {
        Some(_) => command,
        None => command.env(TUNABLES, "glibc.malloc.hugetlb=1"),
    }
}

/// Starts this program anew with huge pages, if it has not been: for what is measured in this
/// process, but runs in one that has them. Where that fails, this process goes on without.
pub(crate) fn restart_with() {
    if env::var_os(TUNABLES).is_none() {
        let mut command = Command::new("/proc/self/exe");
        let error = ask_for(&mut command).arg0("firedoor").args(env::args_os().skip(1)).exec();
        tracing::debug!(%error, "going on without huge pages");
    }
}
