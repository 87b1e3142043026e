//! Keeping processors from sleeping while frames come often.
//!
//! A processor with nothing to do sleeps, and whoever waits on it for an answer pays for waking it: some microseconds,
//! or in a virtual machine some tens of them, which is more than all that a switch does. A switch whose
//! thread always looks for frames spares its users a part of that, at the cost of a processor, idle or not.
//! Here Linux is asked that no processor may take longer to wake than the config says, by a request that holds as long
//! as [`DEVICE`] is open (Documentation/power/pm_qos_interface.rst): so it ends with the process, however that ends, and
//! adds up with those of others. It is for the whole machine and costs power. So it is made only where the config asks
//! for it (`wake_within_us`), and only while it helps: from a second on in which [`OFTEN`] frames came, those that
//! the kernel forwarded included, until less than half of that have come in each of [`PATIENCE`] seconds. Two bounds,
//! and some seconds, because the kernel's frames are counted once a second, and show up in one or the next.
//!
//! docs/adr/0011 says why. What is here has no clock and no thread: whoever counts the frames tells the time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use firedoor_api::dataplane::AwakeStatus;
use firedoor_classifier::Nanos;

/// What holds a request as long as it is open.
pub const DEVICE: &str = "/dev/cpu_dma_latency";
/// The driver that puts processors to sleep, by the depth that requests allow.
const DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";
/// Time between two looks, at least.
pub const WINDOW: Nanos = Nanos::from_secs(1);
/// Frames a second that are worth it: a tenth of a millisecond apart, as in a conversation that a worker
/// [looks for more of](crate::pacing).
const OFTEN: u64 = 10_000;
/// Looks in a row that find less than half of that until processors may sleep again.
const PATIENCE: u32 = 5;

/// Whether processors are kept awake, and why not.
#[derive(Debug)]
pub struct Wakefulness {
    device: PathBuf,
    driver: PathBuf,
    /// How long processors may take to wake, in µs, if the config says so.
    within_us: Option<u32>,
    /// Open while they are kept to it.
    request: Option<File>,
    /// When it looked last, and how many frames there were by then.
    looked: Option<(Nanos, u64)>,
    /// Looks in a row that found too few.
    quiet: u32,
    /// Why it cannot be done, as last tried.
    problem: Option<Problem>,
}

/// Why processors cannot be kept awake.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("cannot ask for it by {path}: {source}")]
    Device { path: PathBuf, source: io::Error },
    #[error("this kernel has no cpuidle driver, and without one it heeds nobody who asks for it")]
    Driver,
}

impl Default for Wakefulness {
    fn default() -> Self {
        Self::by(Path::new(DEVICE), Path::new(DRIVER))
    }
}

impl Wakefulness {
    /// By these files instead of the kernel's.
    pub fn by(device: &Path, driver: &Path) -> Self {
        Self {
            device: device.to_owned(),
            driver: driver.to_owned(),
            within_us: None,
            request: None,
            looked: None,
            quiet: 0,
            problem: None,
        }
    }

    /// While frames come often, processors are to wake within so many µs from now on; or as they like. Tries
    /// whether they can be kept to it.
    pub fn configure(&mut self, within_us: Option<u32>) {
        if within_us == self.within_us {
            return;
        }
        (self.within_us, self.request, self.problem) = (within_us, None, None);
        self.hold();
        self.request = None;
    }

    /// Takes note of how many frames there ever were. Looks once in a [`WINDOW`] at most, and costs three system calls
    /// when frames come to be often, one when they are no longer.
    pub fn look(&mut self, frames: u64, now: Nanos) {
        let (then, before) = *self.looked.get_or_insert((now, frames));
        let passed = now.since(then);
        if passed < WINDOW.0 {
            return;
        }
        self.looked = Some((now, frames));
        let least = if self.request.is_some() { OFTEN / 2 } else { OFTEN };
        let came = u128::from(frames.saturating_sub(before)) * u128::from(WINDOW.0);
        let is_often = came >= u128::from(least) * u128::from(passed);
        self.quiet = if is_often { 0 } else { self.quiet.saturating_add(1) };
        if is_often && self.request.is_none() {
            self.hold();
        } else if self.quiet >= PATIENCE {
            self.request = None;
        }
    }

    /// What there is to tell, if the config asks for it.
    pub fn status(&self) -> Option<AwakeStatus> {
        self.within_us.map(|within_us| AwakeStatus {
            within_us,
            held: self.request.is_some(),
            problem: self.problem.as_ref().map(Problem::to_string),
        })
    }

    /// Keeps processors awake, if that is wanted and can be had. Says so once if it cannot.
    fn hold(&mut self) {
        let Some(within_us) = self.within_us else { return };
        match self.ask(within_us) {
            Ok(request) => (self.request, self.problem) = (Some(request), None),
            Err(problem) => {
                if self.problem.is_none() {
                    tracing::warn!("`wake_within_us`: processors sleep as they like: {problem}");
                }
                self.problem = Some(problem);
            }
        }
    }

    fn ask(&self, within_us: u32) -> Result<File, Problem> {
        if fs::read_to_string(&self.driver).is_ok_and(|driver| driver.trim() == "none") {
            return Err(Problem::Driver);
        }
        keep_awake(&self.device, within_us)
            .map_err(|source| Problem::Device { path: self.device.clone(), source })
    }
}

/// Has no processor take longer to wake than so many µs, for as long as the file stays open.
///
/// # Errors
/// The kernel's: `EACCES` without root, `ENOENT` without the device.
pub fn keep_awake(device: &Path, within_us: u32) -> io::Result<File> {
    let mut request = OpenOptions::new().write(true).open(device)?;
    // In the machine's byte order. The kernel takes four bytes for a number, and any others for text.
    request.write_all(&within_us.to_ne_bytes())?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device and a driver that are files.
    struct Fake {
        device: tempfile::NamedTempFile,
        driver: tempfile::NamedTempFile,
    }

    impl Fake {
        fn of(driver: &str) -> Self {
            let fake = Self {
                device: tempfile::NamedTempFile::new().unwrap(),
                driver: tempfile::NamedTempFile::new().unwrap(),
            };
            fs::write(fake.driver.path(), driver).unwrap();
            fake
        }

        fn wakefulness(&self) -> Wakefulness {
            Wakefulness::by(self.device.path(), self.driver.path())
        }
    }

    /// So many frames a second for some seconds. Returns whether processors are kept awake after.
    fn play(wakefulness: &mut Wakefulness, rate: u64, seconds: u64) -> bool {
        for _ in 0..seconds {
            let (then, frames) = wakefulness.looked.unwrap_or((Nanos(0), 0));
            wakefulness.look(frames + rate, Nanos(then.0 + WINDOW.0));
        }
        wakefulness.request.is_some()
    }

    fn asked(within_us: u32) -> (Fake, Wakefulness) {
        let fake = Fake::of("haltpoll\n");
        let mut wakefulness = fake.wakefulness();
        wakefulness.configure(Some(within_us));
        wakefulness.look(0, Nanos(0));
        (fake, wakefulness)
    }

    #[test]
    fn nobody_is_kept_awake_unless_the_config_asks_for_it() {
        let fake = Fake::of("haltpoll\n");
        let mut wakefulness = fake.wakefulness();
        assert!(!play(&mut wakefulness, 1_000_000, 10));
        assert_eq!(wakefulness.status(), None);
        assert_eq!(fs::read(fake.device.path()).unwrap(), []);
    }

    #[test]
    fn processors_are_kept_awake_from_a_lively_second_on() {
        let (fake, mut wakefulness) = asked(2);
        assert!(!play(&mut wakefulness, OFTEN - 1, 60), "not for less");
        assert!(play(&mut wakefulness, OFTEN, 1));
        assert_eq!(fs::read(fake.device.path()).unwrap(), 2_u32.to_ne_bytes());
        let status = AwakeStatus { within_us: 2, held: true, problem: None };
        assert_eq!(wakefulness.status(), Some(status));
    }

    #[test]
    fn they_may_sleep_again_after_some_quiet_seconds_in_a_row() {
        let (_fake, mut wakefulness) = asked(0);
        play(&mut wakefulness, OFTEN, 1);
        let patience = u64::from(PATIENCE);
        assert!(play(&mut wakefulness, OFTEN / 2, 60), "half as many are often enough by now");
        for _ in 0..3 {
            assert!(play(&mut wakefulness, 0, patience - 1));
            assert!(play(&mut wakefulness, OFTEN / 2, 1), "one lively second ends the quiet");
        }
        assert!(!play(&mut wakefulness, OFTEN / 2 - 1, patience));
        assert!(!play(&mut wakefulness, OFTEN / 2, 60), "half as many are too few now");
    }

    #[test]
    fn a_look_covers_a_second_at_least_however_often_it_is_made() {
        let (_fake, mut wakefulness) = asked(0);
        for step in 1..100 {
            wakefulness.look(OFTEN / 200 * step, Nanos(WINDOW.0 / 100 * step));
        }
        assert!(wakefulness.request.is_none(), "half of it is less than a window's");
        wakefulness.look(4 * OFTEN, Nanos(4 * WINDOW.0));
        assert!(wakefulness.request.is_some(), "and a late one counts by the second");
    }

    #[test]
    fn a_change_of_config_ends_what_was_asked_before() {
        let (fake, mut wakefulness) = asked(0);
        play(&mut wakefulness, OFTEN, 1);
        wakefulness.configure(Some(0));
        assert!(wakefulness.request.is_some(), "the same is no change");
        wakefulness.configure(Some(10));
        assert!(play(&mut wakefulness, OFTEN, 1));
        assert_eq!(fs::read(fake.device.path()).unwrap()[..4], 10_u32.to_ne_bytes());
        wakefulness.configure(None);
        assert!(!play(&mut wakefulness, OFTEN, 60));
    }

    #[test]
    fn without_the_device_it_says_so_and_goes_on_trying() {
        let (fake, mut wakefulness) = asked(0);
        let path = fake.device.into_temp_path();
        let held = std::mem::replace(&mut wakefulness.device, "/dev/null/none".into());
        assert!(!play(&mut wakefulness, OFTEN, 60));
        let problem = wakefulness.status().unwrap().problem.unwrap();
        assert!(problem.contains("/dev/null/none: Not a directory"), "{problem}");
        wakefulness.device = held;
        assert!(play(&mut wakefulness, OFTEN, 1));
        assert_eq!(wakefulness.status().unwrap().problem, None);
        drop(path);
    }

    #[test]
    fn without_a_driver_that_heeds_it_nothing_is_asked_and_the_config_is_told_at_once() {
        let fake = Fake::of("none\n");
        let mut wakefulness = fake.wakefulness();
        wakefulness.configure(Some(0));
        let problem = wakefulness.status().unwrap().problem.unwrap();
        assert!(problem.contains("no cpuidle driver"), "{problem}");
        assert!(!play(&mut wakefulness, OFTEN, 60));
        assert_eq!(fs::read(fake.device.path()).unwrap(), []);
    }
}
