//! What the lab tests share: labs that are removed whatever happens, and ways to look at them.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use firedoor_api::control::{Deny, Reply, Request};
use firedoor_lab::netns::Netns;
use firedoor_lab::probe::{Outcome, Service, probe};
use firedoor_lab::{Lab, Options, Temporary};
use libtest_mimic::Failed;
use tempfile::TempDir;

/// Fails a test unless something holds.
macro_rules! ensure {
    ($holds:expr, $($said:tt)+) => {
        let holds: bool = $holds;
        if !holds {
            return Err(format!($($said)+).into());
        }
    };
}
pub(crate) use ensure;

thread_local! {
    /// The lane that the configs of this thread's labs ask for.
    static LANE: Cell<Option<&'static str>> = const { Cell::new(None) };
    /// The workers that they ask for.
    static WORKERS: Cell<Option<u16>> = const { Cell::new(None) };
    /// Whether they let the kernel forward anything.
    static FORWARDS: Cell<bool> = const { Cell::new(true) };
    /// The command that starts their switches, if it is not the switch's own.
    static COMMAND: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// How long what must come is waited for: so long that a busy machine fails no test, but a hang does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long an answer is waited for that may not come: TCP asks again after a second, as does who looks for a
/// neighbour.
pub(crate) const ANSWER: Duration = Duration::from_secs(3);

/// How long nothing comes at the end of what came.
const SILENCE: Duration = Duration::from_millis(300);

/// The command that runs others as if the kernel had no tcx.
pub(crate) const NO_TCX: &str = "env FIREDOOR_NO_TCX=1";

/// Runs a test by so many workers, each of which has a queue of every port.
pub(crate) fn by_workers<T>(count: u16, test: impl FnOnce() -> T) -> T {
    WORKERS.set(Some(count));
    let shown = on_lane("switch", test);
    WORKERS.set(None);
    shown
}

/// Runs a test with every port of its labs on that lane.
pub(crate) fn on_lane<T>(lane: &'static str, test: impl FnOnce() -> T) -> T {
    LANE.set(Some(lane));
    let shown = test();
    LANE.set(None);
    shown
}

/// Runs a test with the express lane's program held by clsact.
pub(crate) fn by_clsact<T>(test: impl FnOnce() -> T) -> T {
    COMMAND.set(Some(NO_TCX));
    let shown = test();
    COMMAND.set(None);
    shown
}

/// Runs a test with every frame passing the switch lane's sockets.
pub(crate) fn by_sockets<T>(test: impl FnOnce() -> T) -> T {
    FORWARDS.set(false);
    let shown = on_lane("switch", test);
    FORWARDS.set(true);
    shown
}

/// Whether this thread's labs let the kernel forward what it may.
pub(crate) fn kernel_forwards() -> bool {
    FORWARDS.get()
}

/// A config with this thread's lane written into every workload, and its workers into the switch.
fn with_choices(config: &str) -> String {
    let mut config = config.to_owned();
    if let Some(lane) = LANE.get() {
        config = config.replace("[[workload]]", &format!("[[workload]]\nlane = \"{lane}\""));
    }
    if let Some(workers) = WORKERS.get() {
        config = config.replace("[switch]", &format!("[switch]\nworkers = {workers}"));
    }
    if !kernel_forwards() {
        config = config.replace("[switch]", "[switch]\nexpress_flows = 0");
    }
    config
}

/// Two containers, `a` and `b`. What `rules` says is added.
pub(crate) fn pair(rules: &str) -> String {
    format!("{}{}{rules}", container("a", 1), container("b", 2))
}

/// A container with an address of each family that ends in `host`.
pub(crate) fn container(name: &str, host: u16) -> String {
    format!(
        "[[workload]]\nname = \"{name}\"\nkind = \"container\"\nlabels = {{ name = \"{name}\" }}\n\
         ip = [\"10.40.{}.{}/16\", \"fd00:40::{host}/64\"]\n\n",
        host >> 8,
        host & 0xff,
    )
}

/// A rule that allows `service` from one workload to another.
pub(crate) fn allow(from: &str, to: &str, service: &str) -> String {
    format!(
        "[[rule]]\nname = \"{from}-to-{to}\"\nfrom = {{ workload = \"{from}\" }}\n\
         to = {{ workload = \"{to}\" }}\nservice = \"{service}\"\naction = \"allow\"\n\n"
    )
}

/// Addresses that [`container`] gives.
pub(crate) fn v4(host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    IpAddr::from([10, 40, high, low])
}

/// Likewise. The config writes `host` in decimal digits, which IPv6 reads as hexadecimal ones.
pub(crate) fn v6(host: u16) -> IpAddr {
    format!("fd00:40::{host}").parse().expect("digits are an IPv6 group")
}

/// A lab of its own, removed with the value, and the config it was built from.
pub(crate) struct Fixture {
    lab: Temporary,
    directory: TempDir,
}

impl Deref for Fixture {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Fixture {
    /// A lab of a config without a `[switch]` table.
    pub(crate) fn up(config: &str) -> Result<Self, Failed> {
        Self::up_with("", config)
    }

    /// Likewise, with more for the `[switch]` table.
    pub(crate) fn up_with(switch: &str, config: &str) -> Result<Self, Failed> {
        if let Some(command) = COMMAND.get() {
            return Self::up_by(command, switch, config);
        }
        let name = unique_name();
        let text = format!("[switch]\nname = \"{name}\"\n{switch}\n{config}");
        Self::build(&text, None, firedoor())
    }

    /// Likewise, of a switch that a shell starts by a command which takes its own as arguments.
    pub(crate) fn up_by(command: &str, switch: &str, config: &str) -> Result<Self, Failed> {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir()?;
        let script = directory.path().join("firedoor");
        let text = format!("#!/bin/sh\nexec {command} '{}' \"$@\"\n", firedoor().display());
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700))?;
        let text = format!("[switch]\nname = \"{}\"\n{switch}\n{config}", unique_name());
        Self::build(&text, None, &script)
    }

    /// A lab of one of the configs in `configs/`, under a name of its own.
    pub(crate) fn of_config(file: &str) -> Result<Self, Failed> {
        let text = fs::read_to_string(configs().join(file))?;
        Self::build(&text, Some(unique_name()), firedoor())
    }

    fn build(text: &str, name: Option<String>, program: &Path) -> Result<Self, Failed> {
        let text = &with_choices(text);
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("lab.toml");
        fs::write(&path, text)?;
        let never = AtomicBool::new(false);
        let options =
            Options { firedoor: program.to_owned(), name, interrupted: &never, progress: &|_| {} };
        Ok(Self { lab: Temporary::up(&path, text, &options)?, directory })
    }

    /// The file that it was built from.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("lab.toml")
    }

    /// The program that its switch was started from.
    pub(crate) fn program(&self) -> PathBuf {
        let script = self.directory.path().join("firedoor");
        if script.exists() { script } else { firedoor().to_owned() }
    }

    /// Removes it, to hear of errors.
    pub(crate) fn down(self) -> Result<(), Failed> {
        Ok(self.lab.down()?)
    }

    /// Runs a program where a workload is, and returns what it printed.
    pub(crate) fn run(
        &self,
        workload: &str,
        program: &str,
        arguments: &[&str],
    ) -> Result<String, Failed> {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = self.netns(workload)?.run(|| command.output())??;
        printed(&format!("{program} at {workload}"), &output)
    }

    /// Runs `firedoor ARGUMENTS --switch NAME`.
    pub(crate) fn firedoor(&self, arguments: &[&str]) -> Result<Output, Failed> {
        let mut command = Command::new(firedoor());
        Ok(command.args(arguments).args(["--switch", self.name()]).output()?)
    }

    /// Applies a config without a `[switch]` table, and returns the epoch.
    pub(crate) fn apply(&self, config: &str) -> Result<u64, Failed> {
        self.apply_with("", config)
    }

    /// Likewise, with more for the `[switch]` table.
    pub(crate) fn apply_with(&self, switch: &str, config: &str) -> Result<u64, Failed> {
        let name = self.name();
        let text = with_choices(&format!("[switch]\nname = \"{name}\"\n{switch}\n{config}"));
        let path = self.directory.path().join("applied.toml");
        fs::write(&path, text)?;
        let output = self.firedoor(&["policy", "apply", &path.to_string_lossy()])?;
        printed("firedoor policy apply", &output)?;
        self.epoch()
    }

    /// The epoch in force.
    pub(crate) fn epoch(&self) -> Result<u64, Failed> {
        Ok(self.dataplane()?.epoch)
    }

    /// What the data plane says of itself.
    pub(crate) fn dataplane(&self) -> Result<firedoor_api::dataplane::Status, Failed> {
        Ok(self.status()?.dataplane.ok_or("the data plane does not answer")?)
    }

    /// What a workload hears that asks for a service.
    pub(crate) fn ask(&self, from: &str, to: IpAddr, service: Service) -> Result<Outcome, Failed> {
        Ok(self.netns(from)?.run(|| probe(to, service, ANSWER))??.outcome)
    }

    /// What control answers.
    pub(crate) fn request(&self, request: &Request) -> Result<Reply, Failed> {
        Ok(self.lab.ask(request)?)
    }

    /// Refusals on record, once there are any that are `wanted`.
    pub(crate) fn denies(&self, wanted: impl Fn(&Deny) -> bool) -> Result<Vec<Deny>, Failed> {
        let (mut all, mut found) = (Vec::new(), Vec::new());
        let are_there = wait_for(|| {
            let Reply::Denies(denies) = self.lab.ask(&Request::Denies)? else {
                return Err("denies were asked for, and something else answered".into());
            };
            all = denies;
            found = all.iter().filter(|deny| wanted(deny)).cloned().collect();
            Ok(!found.is_empty())
        })?;
        ensure!(are_there, "not among those on record: {all:#?}");
        Ok(found)
    }
}

/// Tries until something holds or [`PATIENCE`] is at an end; whether it did.
pub(crate) fn wait_for(holds: impl FnMut() -> Result<bool, Failed>) -> Result<bool, Failed> {
    wait_up_to(PATIENCE, holds)
}

/// Likewise, where it need not hold at all.
pub(crate) fn wait_up_to(
    patience: Duration,
    mut holds: impl FnMut() -> Result<bool, Failed>,
) -> Result<bool, Failed> {
    let start = Instant::now();
    loop {
        if holds()? {
            return Ok(true);
        }
        if start.elapsed() > patience {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A name no other lab has.
pub(crate) fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The repository's example configs.
pub(crate) fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

/// The executable under test, built now if need be, in the profile that this test was built in.
pub(crate) fn firedoor() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let this = std::env::current_exe().expect("a running test has a path");
        let target = this.ancestors().nth(2).expect("tests lie in target/PROFILE/deps");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", "firedoor"]);
        if target.ends_with("release") {
            build.arg("--release");
        }
        let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
        assert!(built.is_ok_and(|status| status.success()), "firedoor does not build");
        target.join("firedoor")
    })
}

/// What a program printed, if it succeeded.
pub(crate) fn printed(what: &str, output: &Output) -> Result<String, Failed> {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{what} failed ({}):\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

/// A program that is ended with the value.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program in a namespace.
pub(crate) fn start_in(
    netns: &Netns,
    program: &str,
    arguments: &[&str],
) -> Result<Running, Failed> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Running(netns.run(|| command.spawn())??))
}

/// Waits until something listens at a TCP port of a namespace. Its sockets are read from the kernel's tables:
/// to try the port by binding it could take it from the program that is waited for.
pub(crate) fn wait_for_listener(netns: &Netns, port: u16) -> Result<(), Failed> {
    let table = |family| fs::read_to_string(format!("/proc/thread-self/net/{family}"));
    let listens = wait_for(|| {
        let sockets = netns.run(|| Ok::<_, io::Error>(table("tcp")? + &table("tcp6")?))??;
        Ok(sockets.lines().any(|socket| is_listener(socket, port)))
    })?;
    ensure!(listens, "nothing listens at port {port} of {}", netns.name());
    Ok(())
}

/// Whether a line of `/proc/net/tcp` or `tcp6` is of a socket that listens at a port. Columns: number, local
/// address and port, remote ones, state (`TCP_LISTEN` is 10), all hexadecimal (Linux, `net/ipv4/tcp_ipv4.c`).
fn is_listener(socket: &str, port: u16) -> bool {
    let columns: Vec<_> = socket.split_whitespace().collect();
    matches!(columns[..], [_, local, _, "0A", ..] if local.ends_with(&format!(":{port:04X}")))
}

/// A connection to a listener.
pub(crate) fn connect(from: &Netns, to: SocketAddr) -> Result<TcpStream, Failed> {
    Ok(from.run(|| TcpStream::connect_timeout(&to, PATIENCE))??)
}

/// Whether a line comes back.
pub(crate) fn echoes(connection: &mut TcpStream) -> bool {
    echoes_within(PATIENCE, connection)
}

/// Whether no line comes back within a second, in which TCP tries more than once.
pub(crate) fn is_cut(connection: &mut TcpStream) -> bool {
    !echoes_within(Duration::from_secs(1), connection)
}

fn echoes_within(patience: Duration, connection: &mut TcpStream) -> bool {
    let mut answer = [0; 5];
    connection.set_read_timeout(Some(patience)).is_ok()
        && connection.write_all(b"hello").is_ok()
        && connection.read_exact(&mut answer).is_ok()
        && &answer == b"hello"
}

/// Datagrams that come to a socket, and who they are from: so many as are due, which are waited for, and those that
/// come before there is [`SILENCE`].
pub(crate) fn received(
    socket: &UdpSocket,
    due: usize,
) -> Result<Vec<(Vec<u8>, SocketAddr)>, Failed> {
    socket.set_read_timeout(Some(SILENCE))?;
    let (start, mut came, mut bytes) = (Instant::now(), Vec::new(), [0; 64]);
    loop {
        match socket.recv_from(&mut bytes) {
            Ok((length, from)) => came.push((bytes[..length].to_vec(), from)),
            Err(_) if came.len() >= due || start.elapsed() > PATIENCE => return Ok(came),
            Err(_) => {}
        }
    }
}

/// Byte `at` of a file that looks random, so that no lost, repeated or swapped segment hides.
fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// A web server in a namespace that answers every request with so many [bytes](byte), until
/// dropped.
pub(crate) struct WebServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WebServer {
    pub(crate) fn start(netns: &Netns, port: u16, length: u64) -> Result<Self, Failed> {
        let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = netns.run(|| TcpListener::bind(at))??;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => drop(serve(stream, length)),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(mut stream: TcpStream, length: u64) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let _ = stream.read(&mut [0; 4096])?;
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    let mut at = 0;
    while at < length {
        let end = length.min(at + (64 << 10));
        let chunk: Vec<u8> = (at..end).map(byte).collect();
        stream.write_all(&chunk)?;
        at = end;
    }
    Ok(())
}

/// Length and CRC-32C of what a [`WebServer`] sends.
pub(crate) fn checksum_of(length: u64) -> (u64, u32) {
    let bytes: Vec<u8> = (0..length).map(byte).collect();
    (length, crc32c::crc32c(&bytes))
}

/// Fetches a URL with curl from a namespace, and returns length and CRC-32C of what came.
pub(crate) fn curl(netns: &Netns, url: &str) -> Result<(u64, u32), Failed> {
    curl_with(netns, &[], url)
}

/// Likewise, with more of curl's options.
pub(crate) fn curl_with(netns: &Netns, options: &[&str], url: &str) -> Result<(u64, u32), Failed> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "60", "--globoff", "--noproxy", "*"]).args(options).arg(url);
    let output = netns.run(|| command.output())??;
    ensure!(output.status.success(), "curl {url}: {}", String::from_utf8_lossy(&output.stderr));
    Ok((output.stdout.len() as u64, crc32c::crc32c(&output.stdout)))
}

/// Numbered datagrams at a moderate rate from one workload to another, until [ended](Stream::end).
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<OnceLock<u64>>,
    sender: JoinHandle<io::Result<u64>>,
    receiver: JoinHandle<u64>,
}

/// How many of a stream's datagrams were sent and how many different ones came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) sent: u64,
    pub(crate) came: u64,
}

impl Stream {
    /// How long a datagram may be on its way.
    const ON_ITS_WAY: Duration = Duration::from_secs(3);

    /// 2,000 a second.
    pub(crate) fn start(
        from: &Netns,
        to: &Netns,
        address: IpAddr,
        port: u16,
    ) -> Result<Self, Failed> {
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let receiving = to.run(|| UdpSocket::bind(any(port)))??;
        let sending = from.run(|| match address {
            IpAddr::V4(_) => UdpSocket::bind(("0.0.0.0", 0)),
            IpAddr::V6(_) => UdpSocket::bind(any(0)),
        })??;
        sending.connect(SocketAddr::new(address, port))?;
        Self::over(sending, receiving, 4, Duration::from_millis(2))
    }

    /// From one socket to another, so many between two pauses.
    pub(crate) fn over(
        sending: UdpSocket,
        receiving: UdpSocket,
        burst: u64,
        pause: Duration,
    ) -> Result<Self, Failed> {
        receiving.set_read_timeout(Some(SILENCE))?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(OnceLock::new()));
        let stopped = Arc::clone(&stop);
        let sender = thread::spawn(move || Self::send(&sending, burst, pause, &stopped));
        let all = Arc::clone(&sent);
        let receiver = thread::spawn(move || Self::receive(&receiving, &all));
        Ok(Self { stop, sent, sender, receiver })
    }

    fn send(
        socket: &UdpSocket,
        burst: u64,
        pause: Duration,
        stopped: &AtomicBool,
    ) -> io::Result<u64> {
        let mut number = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            for _ in 0..burst {
                socket.send(&number.to_be_bytes())?;
                number += 1;
            }
            thread::sleep(pause);
        }
        Ok(number)
    }

    /// Counts until all has come that was sent, or none is on its way any more. `sent` is known in the end.
    fn receive(socket: &UdpSocket, sent: &OnceLock<u64>) -> u64 {
        let mut seen = std::collections::HashSet::new();
        let (mut last, mut number) = (Instant::now(), [0; 8]);
        loop {
            let is_all = match socket.recv(&mut number) {
                Ok(_) => {
                    last = Instant::now();
                    seen.insert(u64::from_be_bytes(number));
                    false
                }
                Err(_) => last.elapsed() > Self::ON_ITS_WAY,
            };
            let came = seen.len() as u64;
            if sent.get().is_some_and(|&sent| is_all || came == sent) {
                return came;
            }
        }
    }

    /// Ends it, and counts once nothing comes any more.
    pub(crate) fn end(self) -> Result<Counted, Failed> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| "the sender panicked")?;
        // If it could not send, nothing is to be waited for.
        let _ = self.sent.set(*sent.as_ref().unwrap_or(&0));
        let came = self.receiver.join().map_err(|_| "the receiver panicked")?;
        Ok(Counted { sent: sent?, came })
    }
}
