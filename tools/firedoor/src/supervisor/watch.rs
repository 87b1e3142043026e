//! Notices that a role begins to end, by its [lifeline].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use firedoor_control::lifeline;
use firedoor_control::rundir::RunDir;
use signal_hook::consts::SIGCHLD;

/// A process that is watched as long as this lives.
pub(super) struct Watch {
    is_ending: Arc<AtomicBool>,
}

impl Watch {
    /// Watches a process once it has lived for `well`. A sign of its end is followed by SIGCHLD among the
    /// signals.
    pub(super) fn begin(run_dir: &RunDir, pid: u32, well: Duration, signals: &Sender<i32>) -> Self {
        let is_ending = Arc::<AtomicBool>::default();
        let (run_dir, signals) = (run_dir.clone(), signals.clone());
        let (told, mut is_held) = (Arc::downgrade(&is_ending), false);
        // Without a thread its end is noticed when the kernel reports it.
        let _ = thread::Builder::new().name("watch".into()).spawn(move || {
            while !is_held && told.strong_count() > 0 {
                thread::sleep(well);
                is_held = lifeline::await_end(&run_dir, pid).unwrap_or(false);
            }
            if let Some(is_ending) = told.upgrade() {
                is_ending.store(true, Ordering::SeqCst);
                let _ = signals.send(SIGCHLD);
            }
        });
        Self { is_ending }
    }

    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::SeqCst)
    }
}
