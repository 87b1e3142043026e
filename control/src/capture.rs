//! The capture of denied frames: pcapng that Wireshark opens, a comment with each frame.
//!
//! Written straight from `draft-ietf-opsawg-pcapng`, of which it needs three blocks. Every block is
//! its type, its length, a body padded to four bytes, and its length again; integers are
//! little-endian, which the section header's byte-order magic tells.
//!
//! Invariants:
//! - Between calls the file is whole: it ends with a complete block. A block that could not be
//!   written whole is cut off again, and so is one that a killed control left half written.
//! - A file never grows beyond its bound. When the next block would not fit, the file becomes
//!   `denies.1.pcapng`, in place of the one before, and a new one begins.
//! - Each section declares an interface, by the name of the port, before its first frame.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use firedoor_api::dataplane::Denied;

use crate::denies;

/// File name of the capture that is being written.
pub const CURRENT: &str = "denies.pcapng";
/// File name of the one before.
pub const PREVIOUS: &str = "denies.1.pcapng";

/// Most bytes of one capture file; there are at most two.
const MAX_BYTES: u64 = 64 << 20;

/// Section Header Block (§4.1).
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
/// Interface Description Block (§4.2).
const INTERFACE_DESCRIPTION: u32 = 1;
/// Enhanced Packet Block (§4.3).
const ENHANCED_PACKET: u32 = 6;
/// Tells the byte order of a section.
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;

/// Option codes (§3.5, §4.1, §4.2).
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
/// A timestamp unit of 10⁻⁹ s.
const NANOSECONDS: u8 = 9;

/// Longest option value written, in bytes: names are short, this bounds those that are not.
const MAX_OPTION: usize = 1_000;
/// Smallest possible block: type, length, length.
const MIN_BLOCK: u64 = 12;

/// A capture that is being written.
#[derive(Debug)]
pub struct Capture {
    directory: PathBuf,
    file: File,
    /// Bytes of the file, all of them whole blocks.
    length: u64,
    /// How often the file was replaced by a new one.
    generation: u64,
    max_bytes: u64,
    /// Whether what is written next has to begin a section.
    is_between_sections: bool,
    /// Ports declared in this section; the index is the interface's number.
    interfaces: Vec<String>,
}

impl Capture {
    /// Goes on with the capture in this directory, or begins one. The directory must exist.
    ///
    /// # Errors
    /// If the file cannot be opened, read or written.
    pub fn open(directory: impl Into<PathBuf>) -> io::Result<Self> {
        Self::open_bounded(directory.into(), MAX_BYTES)
    }

    fn open_bounded(directory: PathBuf, max_bytes: u64) -> io::Result<Self> {
        let mut file = open_file(&directory)?;
        let length = whole_blocks(&mut file)?;
        file.set_len(length)?;
        file.seek(SeekFrom::Start(length))?;
        // A new writer is a new section: what the last one declared ends with it (§3.1).
        let is_between_sections = true;
        let interfaces = Vec::new();
        let mut capture = Self {
            directory,
            file,
            length,
            generation: 0,
            max_bytes,
            is_between_sections,
            interfaces,
        };
        let begun = if length + section_header().len() as u64 > max_bytes {
            capture.rotate()
        } else {
            capture.begin_section()
        };
        match begun {
            // Others go on, and so does the capture once there is room.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(capture),
            begun => begun.map(|()| capture),
        }
    }

    /// Path of the file that is being written.
    pub fn path(&self) -> PathBuf {
        self.directory.join(CURRENT)
    }

    /// How often the file was replaced by a new one: each time, what lay in [`CURRENT`] lies in
    /// [`PREVIOUS`] from then on, and what lay there is gone.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Appends a denied frame, with the port it came in by. Returns the offset of its block in
    /// [`CURRENT`]. Cost: one `write` call; the file is whole after it.
    ///
    /// # Errors
    /// If the file cannot be written; it is then as before.
    pub fn append(&mut self, denied: &Denied, port: &str) -> io::Result<u64> {
        let section = if self.is_between_sections { section_header().len() } else { 0 };
        let most = section + self.blocks(denied, port).concat().len();
        if self.length + most as u64 > self.max_bytes {
            self.rotate()?;
        }
        if self.is_between_sections {
            self.begin_section()?;
        }
        let blocks = self.blocks(denied, port);
        let [declaration, packet] = &blocks;
        self.write(&blocks.concat())?;
        if !declaration.is_empty() {
            self.interfaces.push(port.to_owned());
        }
        Ok(self.length - packet.len() as u64)
    }

    /// The declaration of the port, empty if this section has it already, and the frame.
    fn blocks(&self, denied: &Denied, port: &str) -> [Vec<u8>; 2] {
        match self.interfaces.iter().position(|declared| declared == port) {
            Some(interface) => [Vec::new(), enhanced_packet(denied, interface as u32)],
            None => {
                let next = self.interfaces.len() as u32;
                [interface_description(port), enhanced_packet(denied, next)]
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        match fs::rename(self.path(), self.directory.join(PREVIOUS)) {
            // It was renamed, and a new one could not be made then; or somebody has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        self.file = open_file(&self.directory)?;
        self.length = 0;
        self.generation += 1;
        self.is_between_sections = true;
        self.begin_section()
    }

    fn begin_section(&mut self) -> io::Result<()> {
        self.write(&section_header())?;
        self.is_between_sections = false;
        self.interfaces.clear();
        Ok(())
    }

    /// Appends whole blocks, or nothing.
    fn write(&mut self, blocks: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(blocks);
        if written.is_err() {
            self.file.set_len(self.length)?;
            self.file.seek(SeekFrom::Start(self.length))?;
        } else {
            self.length += blocks.len() as u64;
        }
        written
    }
}

fn open_file(directory: &Path) -> io::Result<File> {
    let path = directory.join(CURRENT);
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Length of the longest beginning of a file that is whole blocks; 0 if it is not a pcapng file of
/// our byte order.
fn whole_blocks(file: &mut File) -> io::Result<u64> {
    let end = file.metadata()?.len();
    let mut whole = 0;
    while end - whole >= MIN_BLOCK {
        let mut head = [0; 8];
        file.seek(SeekFrom::Start(whole))?;
        file.read_exact(&mut head)?;
        let [a, b, c, d, length @ ..] = head;
        let kind = u32::from_le_bytes([a, b, c, d]);
        let length = u32::from_le_bytes(length);
        let fits = u64::from(length) >= MIN_BLOCK
            && length % 4 == 0
            && u64::from(length) <= end - whole
            && (whole > 0 || kind == SECTION_HEADER);
        if !fits {
            break;
        }
        let mut tail = [0; 4];
        file.seek(SeekFrom::Start(whole + u64::from(length) - 4))?;
        file.read_exact(&mut tail)?;
        if u32::from_le_bytes(tail) != length {
            break;
        }
        whole += u64::from(length);
    }
    Ok(whole)
}

fn section_header() -> Vec<u8> {
    let mut block = Block::new(SECTION_HEADER);
    block.u32(BYTE_ORDER_MAGIC);
    block.u16(1); // major version
    block.u16(0); // minor version
    block.u32(u32::MAX); // section length, high and low half: not told
    block.u32(u32::MAX);
    block.option(SHB_USERAPPL, concat!("firedoor ", env!("CARGO_PKG_VERSION")).as_bytes());
    block.finish()
}

fn interface_description(port: &str) -> Vec<u8> {
    let mut block = Block::new(INTERFACE_DESCRIPTION);
    block.u16(ETHERNET);
    block.u16(0); // reserved
    block.u32(0); // frames may have any length
    block.option(IF_NAME, port.as_bytes());
    block.option(IF_DESCRIPTION, format!("the switch's port for workload {port}").as_bytes());
    block.option(IF_TSRESOL, &[NANOSECONDS]);
    block.finish()
}

fn enhanced_packet(denied: &Denied, interface: u32) -> Vec<u8> {
    let mut block = Block::new(ENHANCED_PACKET);
    block.u32(interface);
    block.u32((denied.unix_ns >> 32) as u32);
    block.u32(denied.unix_ns as u32);
    block.u32(denied.bytes.len() as u32);
    block.u32(denied.length);
    block.padded(&denied.bytes);
    block.option(OPT_COMMENT, denies::sentence(denied).as_bytes());
    block.finish()
}

/// A block under construction.
struct Block {
    bytes: Vec<u8>,
}

impl Block {
    fn new(kind: u32) -> Self {
        let mut block = Self { bytes: Vec::with_capacity(512) };
        block.u32(kind);
        block.u32(0); // length, set by `finish`
        block
    }

    fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(MAX_OPTION)];
        self.u16(code);
        self.u16(value.len() as u16);
        self.padded(value);
    }

    /// Ends the options and the block.
    fn finish(mut self) -> Vec<u8> {
        self.u32(0); // opt_endofopt
        let length = self.bytes.len() as u32 + 4;
        self.u32(length);
        self.bytes[4..8].copy_from_slice(&length.to_le_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denies::tests::denied;

    /// One frame, as a reader finds it.
    #[derive(Debug, PartialEq)]
    struct Packet {
        offset: u64,
        interface: String,
        unix_ns: u64,
        bytes: Vec<u8>,
        length: u32,
        comment: String,
    }

    fn u16_at(bytes: &[u8], at: usize) -> usize {
        u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()).into()
    }

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    fn option(mut options: &[u8], code: u16) -> Option<&[u8]> {
        while u16_at(options, 0) != 0 {
            let length = u16_at(options, 2);
            if u16_at(options, 0) == usize::from(code) {
                return Some(&options[4..4 + length]);
            }
            options = &options[4 + length.next_multiple_of(4)..];
        }
        None
    }

    /// A second implementation of the format, from the draft's diagrams: panics on anything odd.
    fn read(path: &Path) -> Vec<Packet> {
        let file = fs::read(path).unwrap();
        let mut packets = Vec::new();
        let mut interfaces: Option<Vec<String>> = None;
        let mut at = 0;
        while at < file.len() {
            let length = u32_at(&file, at + 4);
            let block = &file[at..at + length];
            assert_eq!(u32_at(block, length - 4), length);
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
            match u32_at(block, 0) {
                0x0a0d_0d0a => {
                    assert_eq!(u32_at(block, 8), 0x1a2b_3c4d);
                    assert_eq!((u16_at(block, 12), u16_at(block, 14)), (1, 0));
                    interfaces = Some(Vec::new());
                }
                1 => {
                    assert_eq!(u16_at(block, 8), 1);
                    assert_eq!(option(&block[16..], 9), Some(&[9][..]));
                    interfaces.as_mut().unwrap().push(text(option(&block[16..], 2)));
                }
                6 => {
                    let captured = u32_at(block, 20);
                    packets.push(Packet {
                        offset: at as u64,
                        interface: interfaces.as_ref().unwrap()[u32_at(block, 8)].clone(),
                        unix_ns: (u32_at(block, 12) as u64) << 32 | u32_at(block, 16) as u64,
                        bytes: block[28..28 + captured].to_vec(),
                        length: u32_at(block, 24) as u32,
                        comment: text(option(&block[28 + captured.next_multiple_of(4)..], 1)),
                    });
                }
                other => panic!("block type {other}"),
            }
            at += length;
        }
        packets
    }

    #[test]
    fn frames_are_read_back_with_port_time_and_comment() {
        let directory = tempfile::tempdir().unwrap();
        let mut capture = Capture::open(directory.path()).unwrap();
        let first = denied("intruder", "db");
        let second =
            Denied { unix_ns: u64::MAX, bytes: vec![7; 61], length: 1_500, ..first.clone() };
        let offsets = [
            capture.append(&first, "intruder").unwrap(),
            capture.append(&second, "web").unwrap(),
            capture.append(&first, "intruder").unwrap(),
        ];
        let packets = read(&capture.path());
        assert_eq!(packets.iter().map(|p| p.offset).collect::<Vec<_>>(), offsets);
        let interfaces: Vec<_> = packets.iter().map(|p| p.interface.as_str()).collect();
        assert_eq!(interfaces, ["intruder", "web", "intruder"]);
        assert_eq!(packets[0].unix_ns, first.unix_ns);
        assert_eq!(packets[0].bytes, first.bytes);
        assert_eq!(packets[1].bytes, second.bytes);
        assert_eq!(packets[1].length, 1_500);
        assert_eq!(packets[1].unix_ns, u64::MAX);
        assert_eq!(
            packets[0].comment,
            "intruder -> db tcp/5432 denied: no rule allows it (default-deny, epoch 7)"
        );
    }

    #[test]
    fn a_restart_goes_on_after_the_last_whole_block() {
        let directory = tempfile::tempdir().unwrap();
        let mut capture = Capture::open(directory.path()).unwrap();
        capture.append(&denied("web", "db"), "web").unwrap();
        let whole = capture.length;
        let path = capture.path();
        drop(capture);

        let block = enhanced_packet(&denied("web", "db"), 0);
        for cut in 0..block.len() {
            let mut file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(whole).unwrap();
            file.seek(SeekFrom::End(0)).unwrap();
            file.write_all(&block[..cut]).unwrap();
            let mut capture = Capture::open(directory.path()).unwrap();
            capture.append(&denied("api", "db"), "api").unwrap();
            let interfaces: Vec<_> = read(&path).into_iter().map(|p| p.interface).collect();
            assert_eq!(interfaces, ["web", "api"], "cut after {cut} bytes");
        }
    }

    #[test]
    fn what_is_no_capture_is_begun_anew() {
        for junk in [&b"hello, this is a text file"[..], &[0; 64], &[0xff; 5], &[]] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(CURRENT), junk).unwrap();
            let mut capture = Capture::open(directory.path()).unwrap();
            capture.append(&denied("api", "db"), "api").unwrap();
            assert_eq!(read(&capture.path()).len(), 1);
        }
    }

    #[test]
    fn files_are_bounded_and_one_older_one_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let bound = 1_500;
        let mut capture = Capture::open_bounded(directory.path().into(), bound).unwrap();
        // Where each frame should be found: the generation tells which file.
        let mut places = Vec::new();
        for i in 0..40 {
            let frame = Denied { unix_ns: i, ..denied("web", "db") };
            let offset = capture.append(&frame, "web").unwrap();
            places.push((i, capture.generation(), offset));
            assert!(capture.length <= bound);
            assert_eq!(fs::metadata(capture.path()).unwrap().len(), capture.length);
        }
        let mut kept = 0;
        for (name, generation) in
            [(CURRENT, capture.generation()), (PREVIOUS, capture.generation() - 1)]
        {
            let packets = read(&directory.path().join(name));
            let expected = places.iter().filter(|(_, g, _)| *g == generation);
            let expected: Vec<_> = expected.map(|&(i, _, offset)| (i, offset)).collect();
            assert_eq!(packets.iter().map(|p| (p.unix_ns, p.offset)).collect::<Vec<_>>(), expected);
            kept += packets.len();
        }
        assert!(kept > 2 && kept < 40);
    }
}
