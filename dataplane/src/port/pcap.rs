//! A port that plays a capture file once: its frames are received in order, as fast as the path
//! takes them, and what is sent to it is counted and discarded.
//!
//! Reads pcap and pcapng. A frame that was cut when it was captured, is longer than a chunk, or is
//! not Ethernet is skipped and counted, because the path would judge something that never was.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError};
use thiserror::Error;

use crate::frame::Frame;
use crate::pool::FramePool;
use crate::port::{BURST, Port};
use crate::sys::umem::{HEADROOM, MAX_FRAME, Umem};

/// First bytes of a pcapng file: the type of its section header block.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Why a capture file cannot be played.
#[derive(Debug, Error)]
pub enum PcapOpenError {
    /// It cannot be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// It is neither pcap nor pcapng.
    #[error("{} is neither a pcap nor a pcapng file", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: PcapError,
    },
    /// Its frames are not Ethernet frames.
    #[error("{} was captured on {link:?}, not Ethernet; there is nothing to switch", .path.display())]
    NotEthernet {
        /// The file.
        path: PathBuf,
        /// Its link type.
        link: DataLink,
    },
}

/// The frames of a capture file, all in memory.
#[derive(Debug, Default)]
pub struct Recording {
    /// Whole Ethernet frames, in order, each at most [`MAX_FRAME`] bytes long.
    pub frames: Vec<Vec<u8>>,
    /// How many frames could not be played.
    pub skipped: u64,
    /// What is wrong with the file behind these frames, if it is damaged.
    pub damage: Option<PcapError>,
}

impl Recording {
    /// Reads a capture file to its end, or to where it is damaged.
    ///
    /// # Errors
    /// See [`PcapOpenError`].
    pub fn read(path: &Path) -> Result<Self, PcapOpenError> {
        let mut capture = Capture::open(path)?;
        let mut recording = Self::default();
        while let Some(record) = capture.next() {
            match record {
                Ok(Record::Frame(bytes)) => recording.frames.push(bytes.into_owned()),
                Ok(Record::Unplayable) => recording.skipped += 1,
                Ok(Record::NoFrame) => {}
                Err(error) => {
                    recording.damage = Some(error);
                    break;
                }
            }
        }
        Ok(recording)
    }
}

/// How far the replay is. May be watched from any thread.
#[derive(Debug, Default)]
pub struct Replay {
    played: AtomicU64,
    skipped: AtomicU64,
    discarded: AtomicU64,
    finished: AtomicBool,
}

impl Replay {
    /// Frames received from the file so far.
    pub fn played(&self) -> u64 {
        self.played.load(Ordering::Relaxed)
    }

    /// Frames of the file that could not be played.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Frames that were sent to the port.
    pub fn discarded(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }

    /// Whether the file has been played to its end, or to where it is damaged.
    pub fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }
}

/// A capture file as a port.
pub struct PcapPort {
    umem: Arc<Umem>,
    capture: Capture,
    replay: Arc<Replay>,
    discarded: Vec<Frame>,
}

impl PcapPort {
    /// Opens a capture file.
    ///
    /// # Errors
    /// See [`PcapOpenError`].
    pub fn open(umem: Arc<Umem>, path: &Path) -> Result<Self, PcapOpenError> {
        let capture = Capture::open(path)?;
        Ok(Self { umem, capture, replay: Arc::default(), discarded: Vec::new() })
    }

    /// Where to watch how far the replay is.
    pub fn replay(&self) -> Arc<Replay> {
        Arc::clone(&self.replay)
    }

    /// Fills `frame` with the next frame of the file. `None` at its end.
    fn play(&mut self, frame: &mut Frame) -> Option<()> {
        loop {
            match self.capture.next() {
                Some(Ok(Record::Frame(bytes))) => {
                    frame.set_span(HEADROOM, bytes.len());
                    self.umem.bytes_mut(frame).copy_from_slice(&bytes);
                    self.replay.played.fetch_add(1, Ordering::Relaxed);
                    return Some(());
                }
                Some(Ok(Record::Unplayable)) => {
                    self.replay.skipped.fetch_add(1, Ordering::Relaxed);
                }
                Some(Ok(Record::NoFrame)) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "the capture file is damaged; the replay ends here");
                    return None;
                }
                None => return None,
            }
        }
    }
}

impl Port for PcapPort {
    fn receive(&mut self, pool: &mut FramePool, batch: &mut Vec<Frame>) -> usize {
        let before = batch.len();
        while batch.len() - before < BURST && !self.replay.is_finished() {
            let Some(mut frame) = pool.take() else { break };
            if self.play(&mut frame).is_some() {
                batch.push(frame);
            } else {
                pool.give(frame);
                self.replay.finished.store(true, Ordering::Release);
            }
        }
        batch.len() - before
    }

    fn transmit(&mut self, frames: &mut Vec<Frame>) -> usize {
        let count = frames.len();
        self.replay.discarded.fetch_add(count as u64, Ordering::Relaxed);
        self.discarded.append(frames);
        count
    }

    fn reclaim(&mut self, pool: &mut FramePool) {
        self.discarded.drain(..).for_each(|frame| pool.give(frame));
    }

    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn max_frame(&self) -> usize {
        MAX_FRAME
    }

    fn is_busy(&self) -> bool {
        !self.discarded.is_empty()
    }

    fn close(mut self: Box<Self>, pool: &mut FramePool) {
        self.reclaim(pool);
    }
}

/// A capture in either format.
enum Capture {
    Pcap(PcapReader<Source>),
    PcapNg(Box<PcapNgReader<Source>>),
}

type Source = Box<dyn Read + Send>;

/// One record of a capture.
enum Record<'a> {
    /// A whole Ethernet frame.
    Frame(Cow<'a, [u8]>),
    /// A frame that is cut, too long, or not Ethernet.
    Unplayable,
    /// A comment, a statistic, the description of an interface, ….
    NoFrame,
}

impl Capture {
    fn open(path: &Path) -> Result<Self, PcapOpenError> {
        let file = File::open(path)
            .map_err(|source| PcapOpenError::Unreadable { path: path.to_owned(), source })?;
        let capture = Self::new(Box::new(file)).map_err(|error| match error {
            PcapError::IoError(source) => {
                PcapOpenError::Unreadable { path: path.to_owned(), source }
            }
            source => PcapOpenError::Malformed { path: path.to_owned(), source },
        })?;
        if let Some(link) = capture.foreign_link() {
            return Err(PcapOpenError::NotEthernet { path: path.to_owned(), link });
        }
        Ok(capture)
    }

    fn new(mut source: Source) -> Result<Self, PcapError> {
        let mut magic = [0; 4];
        source.read_exact(&mut magic).map_err(PcapError::IoError)?;
        let source: Source = Box::new(std::io::Cursor::new(magic).chain(source));
        if magic == PCAPNG {
            Ok(Self::PcapNg(Box::new(PcapNgReader::new(source)?)))
        } else {
            Ok(Self::Pcap(PcapReader::new(source)?))
        }
    }

    /// The link type, if no frame of the file can be Ethernet.
    fn foreign_link(&self) -> Option<DataLink> {
        match self {
            Self::Pcap(reader) => {
                let link = reader.header().datalink;
                (link != DataLink::ETHERNET).then_some(link)
            }
            Self::PcapNg(_) => None,
        }
    }

    fn next(&mut self) -> Option<Result<Record<'_>, PcapError>> {
        match self {
            Self::Pcap(reader) => {
                let packet = reader.next_packet()?;
                Some(packet.map(|packet| Record::of(packet.data, packet.orig_len)))
            }
            Self::PcapNg(reader) => {
                // Known before the block, because the block borrows the reader.
                let ethernet: Vec<bool> = reader
                    .interfaces()
                    .iter()
                    .map(|interface| interface.linktype == DataLink::ETHERNET)
                    .collect();
                let on_ethernet = move |id: usize| ethernet.get(id).copied().unwrap_or(false);
                let block = reader.next_block()?;
                Some(block.map(|block| match block {
                    Block::EnhancedPacket(packet) if on_ethernet(packet.interface_id as usize) => {
                        Record::of(packet.data, packet.original_len)
                    }
                    Block::Packet(packet) if on_ethernet(packet.interface_id.into()) => {
                        Record::of(packet.data, packet.original_len)
                    }
                    Block::SimplePacket(packet) if on_ethernet(0) => {
                        Record::of(packet.data, packet.original_len)
                    }
                    Block::EnhancedPacket(_) | Block::Packet(_) | Block::SimplePacket(_) => {
                        Record::Unplayable
                    }
                    _ => Record::NoFrame,
                }))
            }
        }
    }
}

impl<'a> Record<'a> {
    fn of(bytes: Cow<'a, [u8]>, original_len: u32) -> Self {
        if bytes.len() == original_len as usize && bytes.len() <= MAX_FRAME {
            Self::Frame(bytes)
        } else {
            Self::Unplayable
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use pcap_file::pcap::{PcapPacket, PcapWriter};
    use pcap_file::pcapng::PcapNgWriter;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
    use proptest::prelude::*;

    use super::*;
    use crate::pool::FrameStore;

    const FRAMES: u32 = 256;

    /// A pcap file of frames with these lengths, the last one cut to half.
    fn pcap(lengths: &[usize]) -> Vec<u8> {
        let mut writer = PcapWriter::new(Vec::new()).unwrap();
        for (number, length) in lengths.iter().enumerate() {
            let bytes = vec![number as u8; *length];
            let packet = PcapPacket::new(Duration::ZERO, *length as u32, &bytes);
            writer.write_packet(&packet).unwrap();
        }
        let cut = PcapPacket::new(Duration::ZERO, 100, &[0; 50]);
        writer.write_packet(&cut).unwrap();
        writer.into_writer()
    }

    /// A pcapng file of one frame on Ethernet and one on another link.
    fn pcapng() -> Vec<u8> {
        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        for linktype in [DataLink::ETHERNET, DataLink::RAW] {
            let interface =
                InterfaceDescriptionBlock { linktype, snaplen: 0xffff, options: Vec::new() };
            writer.write_pcapng_block(interface).unwrap();
        }
        for interface_id in [0, 1] {
            let packet = EnhancedPacketBlock {
                interface_id,
                timestamp: Duration::ZERO,
                original_len: 60,
                data: Cow::Owned(vec![7; 60]),
                options: Vec::new(),
            };
            writer.write_pcapng_block(packet).unwrap();
        }
        writer.into_inner()
    }

    fn open(file: &[u8]) -> Result<(PcapPort, FramePool, Arc<FrameStore>), PcapOpenError> {
        let mut on_disk = tempfile::NamedTempFile::new().unwrap();
        on_disk.write_all(file).unwrap();
        let (umem, frames) = Umem::new(FRAMES).unwrap();
        let (umem, store) = (Arc::new(umem), FrameStore::new(frames));
        let pool = FramePool::new(Arc::clone(&umem), Arc::clone(&store));
        Ok((PcapPort::open(umem, on_disk.path())?, pool, store))
    }

    /// Plays a file to its end, sending every frame back to the port, and checks that none is lost.
    fn play(file: &[u8]) -> Result<(Vec<Vec<u8>>, Arc<Replay>), PcapOpenError> {
        let (mut port, mut pool, store) = open(file)?;
        let (replay, umem) = (port.replay(), Arc::clone(pool.umem()));
        let (mut batch, mut played) = (Vec::new(), Vec::new());
        while !replay.is_finished() {
            port.receive(&mut pool, &mut batch);
            played.extend(batch.iter().map(|frame| umem.bytes(frame).to_vec()));
            port.transmit(&mut batch);
            port.reclaim(&mut pool);
        }
        Box::new(port).close(&mut pool);
        pool.flush();
        assert_eq!(store.len(), FRAMES as usize);
        Ok((played, replay))
    }

    #[test]
    fn a_pcap_file_is_played_once_in_order() {
        let lengths: Vec<usize> = (60..60 + 3 * BURST).collect();
        let (played, replay) = play(&pcap(&lengths)).unwrap();
        assert_eq!(played.iter().map(Vec::len).collect::<Vec<_>>(), lengths);
        assert_eq!(played[70], [70; 130]);
        assert_eq!((replay.played(), replay.skipped()), (192, 1));
        assert_eq!(replay.discarded(), 192);
    }

    #[test]
    fn frames_longer_than_a_chunk_are_skipped() {
        let (played, replay) = play(&pcap(&[MAX_FRAME, MAX_FRAME + 1])).unwrap();
        assert_eq!((played.len(), replay.skipped()), (1, 2));
    }

    #[test]
    fn of_a_pcapng_file_the_ethernet_frames_are_played() {
        let (played, replay) = play(&pcapng()).unwrap();
        assert_eq!(played, [vec![7; 60]]);
        assert_eq!(replay.skipped(), 1);
    }

    #[test]
    fn what_cannot_be_played_says_why() {
        assert!(matches!(
            open(b"GIF89a, not a capture...........").err(),
            Some(PcapOpenError::Malformed { .. })
        ));
        assert!(matches!(open(b"").err(), Some(PcapOpenError::Unreadable { .. })));
        let mut wifi = pcap(&[60]);
        wifi[20..24].copy_from_slice(&105u32.to_be_bytes());
        assert!(matches!(open(&wifi).err(), Some(PcapOpenError::NotEthernet { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn damaged_files_neither_panic_nor_lose_frames(
            ng: bool,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut: prop::sample::Index,
        ) {
            let mut file = if ng { pcapng() } else { pcap(&[60, 61, 62]) };
            for (at, value) in damage {
                let at = at.index(file.len());
                file[at] = value;
            }
            file.truncate(cut.index(file.len()) + 1);
            // Either answer will do; `play` checks that every frame comes back.
            let played = play(&file);
            let mut on_disk = tempfile::NamedTempFile::new().unwrap();
            on_disk.write_all(&file).unwrap();
            match (played, Recording::read(on_disk.path())) {
                (Ok((frames, replay)), Ok(recording)) => {
                    prop_assert_eq!(frames, recording.frames);
                    prop_assert_eq!(replay.skipped(), recording.skipped);
                }
                (Err(_), Err(_)) => {}
                (played, recording) => panic!("{:?}, {:?}", played.err(), recording.err()),
            }
        }
    }
}
