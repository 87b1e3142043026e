//! A disk that is full: what cannot be saved is refused, what is in force stays so, also over a restart, and once
//! there is room everything goes on.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use firedoor_api::dataplane::Denied;
use firedoor_classifier::PortId;
use firedoor_classifier::verdict::DropReason;
use firedoor_control::capture::Capture;
use firedoor_dataplane::link::{Netlink, VethEnd};
use firedoor_lab::netns::Netns;
use libtest_mimic::Failed;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::failure::send;
use crate::fixture::{Running, ensure, firedoor, printed, unique_name, wait_for};
use crate::{Shown, Test};

pub(crate) const TESTS: &[Test] = &[
    ("a_policy_that_finds_no_room_on_the_disk_is_refused_and_does_not_come_back", &[], no_room),
    ("a_switch_that_finds_no_room_on_the_disk_says_so", &[], no_start),
    ("a_capture_that_finds_no_room_on_the_disk_stays_whole_and_goes_on", &["tshark"], captured),
];

/// A disk of so many KiB of its own, which is gone with the value.
struct Disk(TempDir);

impl Disk {
    fn new(kib: usize) -> Result<Self, Failed> {
        let directory = tempfile::tempdir()?;
        let size = format!("size={kib}k,mode=700");
        mount(Some("fd-test"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some(&*size))?;
        Ok(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the room there is, but for so many KiB.
    fn fill_but(&self, kib: usize) -> Shown {
        let filler = self.path().join("filler");
        let written = fs::write(&filler, vec![0; 64 << 20]);
        ensure!(written.is_err(), "there is no end to the disk");
        let len = fs::metadata(&filler)?.len();
        Ok(fs::File::options()
            .write(true)
            .open(filler)?
            .set_len(len.saturating_sub((kib << 10) as u64))?)
    }

    fn clear(&self) -> Shown {
        Ok(fs::remove_file(self.path().join("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

/// A switch whose run directory is on a disk of its own, in a namespace that is removed with the value.
struct Switch {
    name: String,
    disk: Disk,
    netns: Netns,
    configs: TempDir,
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = Netns::delete(self.netns.name());
    }
}

impl Switch {
    fn new(kib: usize) -> Result<Self, Failed> {
        let name = unique_name();
        let netns = Netns::create(&format!("fd-{name}"))?;
        let switch = Self { name, disk: Disk::new(kib)?, netns, configs: tempfile::tempdir()? };
        switch.netns.run(|| {
            Netlink::open()?.create_veth(VethEnd::new("fdwire"), VethEnd::new("fdfar"), 1)?;
            Ok::<_, Failed>(())
        })??;
        Ok(switch)
    }

    /// The path of a config with so many rules.
    fn config(&self, rules: u32) -> Result<String, Failed> {
        let name = &self.name;
        let mut text = format!(
            "[switch]\nname = \"{name}\"\n[[workload]]\nname = \"a\"\nkind = \"external\"\n\
             ifname = \"fdwire\"\nmac = \"02:00:00:00:00:01\"\nip = [\"10.40.0.1/16\"]\n"
        );
        for rule in 1..=rules {
            text += &format!(
                "[[rule]]\nname = \"rule-{rule}\"\nfrom = {{ workload = \"a\" }}\nto = {{ any = true }}\n\
                 service = \"tcp/{rule}\"\naction = \"allow\"\n"
            );
        }
        let path = self.configs.path().join(format!("{rules}.toml"));
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(firedoor());
        command.args(arguments).env("FIREDOOR_RUN_DIR", self.disk.path());
        command
    }

    fn apply(&self, rules: u32) -> Result<Output, Failed> {
        Ok(self.command(&["policy", "apply", &self.config(rules)?]).output()?)
    }

    fn run(&self, rules: u32) -> Result<Running, Failed> {
        let mut command = self.command(&["run", &self.config(rules)?]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Running(self.netns.run(|| command.spawn())??))
    }

    /// What the switch says of itself, once its data plane has a policy.
    fn status(&self) -> Result<serde_json::Value, Failed> {
        let mut said = serde_json::Value::Null;
        let answers = wait_for(|| {
            let output = self.command(&["status", "--json", "--switch", &self.name]).output()?;
            said = serde_json::from_slice(&output.stdout).unwrap_or_default();
            Ok(said["epoch"].as_u64() > Some(0))
        })?;
        ensure!(answers, "no policy is in force: {said}");
        Ok(said)
    }

    fn epoch(&self) -> Result<u64, Failed> {
        let status = self.status()?;
        Ok(status["epoch"].as_u64().ok_or_else(|| format!("no epoch in {status}"))?)
    }

    /// Kills a role, and waits until the supervisor has started it again.
    fn kill(&self, pid_of: impl Fn(&serde_json::Value) -> Option<u64>) -> Shown {
        let before = pid_of(&self.status()?).ok_or("it has no process id")?;
        send(u32::try_from(before)?, Signal::SIGKILL)?;
        let is_back = wait_for(|| Ok(pid_of(&self.status()?).is_some_and(|pid| pid != before)))?;
        ensure!(is_back, "process {before} is not replaced");
        Ok(())
    }

    fn kill_dataplane(&self) -> Shown {
        self.kill(|status| status["roles"]["dataplane"]["pid"].as_u64())
    }

    fn kill_control(&self) -> Shown {
        self.kill(|status| status["roles"]["control"]["pid"].as_u64())
    }
}

/// Room for all that a policy needs, for one of the two files, and for none. What was refused is not found by who
/// is started again, before nor after there is room.
fn no_room() -> Shown {
    const RULES: u32 = 3_000;
    let switch = Switch::new(4 << 10)?;
    let _running = switch.run(1)?;
    ensure!(switch.epoch()? == 1, "another epoch begins");
    let applied = switch.apply(RULES)?;
    printed("firedoor policy apply", &applied)?;
    let sizes = ["applied.json", "snapshot"].map(|file| {
        fs::metadata(switch.disk.path().join(&switch.name).join(file)).map(|file| file.len() >> 10)
    });
    let [Ok(config), Ok(snapshot)] = sizes else { return Err("nothing is saved".into()) };
    ensure!(config > 64 && snapshot > 16, "{config} and {snapshot} KiB are not worth the test");
    printed("firedoor policy apply", &switch.apply(1)?)?;

    for room in [0, config / 2, config + snapshot / 2] {
        switch.disk.fill_but(usize::try_from(room)?)?;
        let refused = switch.apply(RULES)?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(refused.status.code() == Some(2), "with {room} KiB it said: {said}");
        ensure!(said.contains("No space left on device"), "with {room} KiB it said: {said}");
        ensure!(switch.epoch()? == 3, "with {room} KiB epoch {} is in force", switch.epoch()?);
        printed("firedoor policy apply of what is applied", &switch.apply(1)?)?;
        switch.kill_dataplane()?;
        switch.kill_control()?;
        ensure!(switch.epoch()? == 3, "with {room} KiB epoch {} comes back", switch.epoch()?);
        switch.disk.clear()?;
        switch.kill_control()?;
        // Control puts in force what it has found, which is not waited for.
        thread::sleep(Duration::from_secs(1));
        ensure!(switch.epoch()? == 3, "with room again epoch {} comes", switch.epoch()?);
    }
    printed("firedoor policy apply", &switch.apply(RULES)?)?;
    ensure!(switch.epoch()? == 4, "there is room again");
    Ok(())
}

/// Neither on a full disk nor on one that cannot be written.
fn no_start() -> Shown {
    let switch = Switch::new(64)?;
    switch.disk.fill_but(0)?;
    let start = || -> Result<String, Failed> {
        let mut command = switch.command(&["run", &switch.config(1)?]);
        let output = switch.netns.run(|| command.output())??;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2), "it ended with {}: {said}", output.status);
        Ok(said)
    };
    let said = start()?;
    ensure!(said.contains("No space left on device"), "it said: {said}");
    ensure!(said.contains("FIREDOOR_RUN_DIR"), "it does not say what to do: {said}");
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, switch.disk.path(), None::<&str>, flags, None::<&str>)?;
    let said = start()?;
    ensure!(said.contains("Read-only file system"), "it said: {said}");
    ensure!(said.contains("FIREDOOR_RUN_DIR"), "it does not say what to do: {said}");
    Ok(())
}

fn captured() -> Shown {
    let disk = Disk::new(64)?;
    disk.fill_but(16)?;
    let mut capture = Capture::open(disk.path())?;
    let mut whole = 0;
    let full = loop {
        match capture.append(&denied(), "a") {
            Ok(_) => whole += 1,
            Err(error) => break error,
        }
    };
    ensure!(full.kind() == io::ErrorKind::StorageFull, "it ends with {full}");
    ensure!(frames(&capture.path())? == whole, "{whole} frames were captured");
    // A control that is started now has no room for a section of its own.
    let mut capture = Capture::open(disk.path())?;
    ensure!(capture.append(&denied(), "a").is_err(), "there is no room");
    disk.clear()?;
    for _ in 0..10 {
        capture.append(&denied(), "a")?;
    }
    ensure!(frames(&capture.path())? == whole + 10, "{whole} frames, and 10 more");
    Ok(())
}

/// Frames that tshark finds in a capture.
fn frames(path: &Path) -> Result<usize, Failed> {
    let output = Command::new("tshark").arg("-nr").arg(path).output()?;
    Ok(printed("tshark", &output)?.lines().count())
}

fn denied() -> Denied {
    Denied {
        unix_ns: 1_790_000_000_123_456_789,
        epoch: 7,
        port: PortId(1),
        from: "a".into(),
        to: "b".into(),
        rule: "default".into(),
        reason: DropReason::DefaultDeny,
        dropped: true,
        protocol: 6,
        ether_type: 0x0800,
        src: Some([10, 10, 0, 66].into()),
        dst: Some([10, 10, 0, 30].into()),
        src_port: 40_000,
        dst_port: 5_432,
        length: 74,
        bytes: (0..74).collect(),
    }
}
