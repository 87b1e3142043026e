//! A program that the supervisor starts as a data plane, and that does not become one: this test's own executable,
//! under the arguments of the role. A [file](Conduct::ask) in the run directory says how it is to fail.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use firedoor_api::Decoder;
use firedoor_classifier::snapshot::Snapshot;
use firedoor_dataplane::engine::Engine;
use firedoor_dataplane::interface::Interfaces;
use libtest_mimic::Failed;

/// How a stand-in fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// It gets ready beside the data plane that runs, has that one's misses sent to itself, and does no more.
    Hangs,
    /// It asks the data plane that runs to retire, by a message of protocol version 4.
    SpeaksAnother,
}

/// `Request::Retire` as protocol version 4 has it: three bytes, the version, the variant.
const RETIRE: [u8; 7] = [0, 0, 0, 3, 0, 4, 6];

impl Conduct {
    /// Says how the next stand-in of that run directory is to fail.
    pub(crate) fn ask(self, run_dir: &Path) -> io::Result<()> {
        Self::forget(run_dir)?;
        fs::write(conduct(run_dir), format!("{self:?}"))
    }

    /// Leaves nothing of what stand-ins were asked, and what they have said.
    pub(crate) fn forget(run_dir: &Path) -> io::Result<()> {
        [conduct(run_dir), heard(run_dir)].iter().try_for_each(|path| match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }

    /// Whether a stand-in that hangs has got as far.
    pub(crate) fn hangs(run_dir: &Path) -> bool {
        heard(run_dir).exists()
    }

    /// What the data plane has answered a stand-in that speaks another version.
    pub(crate) fn heard(run_dir: &Path) -> Result<String, Failed> {
        Ok(String::from_utf8_lossy(&fs::read(heard(run_dir))?).into_owned())
    }
}

fn conduct(run_dir: &Path) -> PathBuf {
    run_dir.join("stand-in")
}

fn heard(run_dir: &Path) -> PathBuf {
    run_dir.join("stand-in.heard")
}

/// Stands in, if this process was started as a data plane.
pub(crate) fn run_if_asked() -> Option<io::Result<()>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let at = arguments.iter().position(|argument| argument == "--run-dir")?;
    let run_dir = Path::new(arguments.get(at + 1)?);
    let at = arguments.iter().position(|argument| argument == "--pins");
    let pins = at.and_then(|at| arguments.get(at + 1)).map(PathBuf::from);
    (arguments.first()? == "dataplane").then(|| run(run_dir, pins))
}

fn run(run_dir: &Path, pins: Option<PathBuf>) -> io::Result<()> {
    if fs::read_to_string(conduct(run_dir))? == format!("{:?}", Conduct::Hangs) {
        let mut decoder = Decoder::<Snapshot>::default();
        decoder.push(&fs::read(run_dir.join("snapshot"))?);
        let saved = decoder.next_message().map_err(io::Error::other)?;
        let snapshot = saved.ok_or(io::ErrorKind::UnexpectedEof)?;
        let engine = Engine::prepare(snapshot, Box::new(Interfaces::new(pins)));
        let engine = engine.map_err(io::Error::other)?;
        engine.take_misses();
        fs::write(heard(run_dir), "")?;
        loop {
            thread::sleep(Duration::from_secs(60));
        }
    }
    let mut stream = UnixStream::connect(run_dir.join("dataplane.sock"))?;
    stream.write_all(&RETIRE)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    fs::write(heard(run_dir), answer)
}
