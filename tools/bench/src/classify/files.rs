//! ClassBench's formats: rules, first line first, and headers to classify.
//!
//! A rule is `@SRC/LEN DST/LEN LOW : HIGH LOW : HIGH PROTOCOL/MASK`, the ports' source first; what
//! follows (ClassBench writes flags there) is ignored. A protocol mask of 0x00 means any protocol.
//! A header is `SRC DST SRC_PORT DST_PORT PROTOCOL` in decimal and, where it is known, the number of
//! the first rule that matches, from 0, or -1 for none. Empty lines and lines that begin with `#`
//! are skipped.
//!
//! Format: Taylor and Turner, "ClassBench: A Packet Classification Benchmark", INFOCOM '05; as
//! dpdk-test-acl reads it.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("cannot open {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not what it should be.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// Nothing is in it.
    #[error("{} has no {what}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
}

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Net {
    /// Its first address.
    pub start: u32,
    /// Its length in bits, 0 to 32.
    pub len: u8,
}

impl Net {
    /// Its last address.
    pub const fn end(self) -> u32 {
        self.start | if self.len == 0 { u32::MAX } else { (u32::MAX >> (self.len - 1)) >> 1 }
    }

    /// Whether `addr` is in it.
    pub const fn contains(self, addr: u32) -> bool {
        self.start <= addr && addr <= self.end()
    }
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Source addresses.
    pub src: Net,
    /// Destination addresses.
    pub dst: Net,
    /// First and last source port.
    pub src_ports: (u16, u16),
    /// First and last destination port.
    pub dst_ports: (u16, u16),
    /// IP protocol, `None` for any.
    pub protocol: Option<u8>,
}

/// One header to classify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub src: u32,
    /// Destination address.
    pub dst: u32,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// IP protocol.
    pub protocol: u8,
}

impl Line {
    /// Whether the rule matches, field by field.
    pub fn matches(&self, header: &Header) -> bool {
        self.src.contains(header.src)
            && self.dst.contains(header.dst)
            && within(self.src_ports, header.src_port)
            && within(self.dst_ports, header.dst_port)
            && self.protocol.is_none_or(|protocol| protocol == header.protocol)
    }
}

fn within((first, last): (u16, u16), port: u16) -> bool {
    first <= port && port <= last
}

/// The number of the first rule that matches `header`: the law that everything else is checked by.
pub fn linear_search(rules: &[Line], header: &Header) -> Option<u32> {
    rules.iter().position(|rule| rule.matches(header)).map(|at| at as u32)
}

/// A header and, if its file says so, the first rule that matches.
pub type Expected = (Header, Option<Option<u32>>);

/// Reads a file of rules.
///
/// # Errors
/// If it cannot be read, has a line that is no rule, or none at all.
pub fn read_rules(path: &Path) -> Result<Vec<Line>, FileError> {
    read(path, "rules", rule)
}

/// Reads a file of headers.
///
/// # Errors
/// If it cannot be read, has a line that is no header, or none at all.
pub fn read_trace(path: &Path) -> Result<Vec<Expected>, FileError> {
    read(path, "headers", header)
}

/// Writes headers and the first rule that matches each.
///
/// # Errors
/// If the file cannot be written.
pub fn write_trace(path: &Path, trace: &[(Header, Option<u32>)]) -> Result<(), FileError> {
    let mut text = String::new();
    for (header, first) in trace {
        let Header { src, dst, src_port, dst_port, protocol } = header;
        let first = first.map_or(-1, i64::from);
        text += &format!("{src}\t{dst}\t{src_port}\t{dst_port}\t{protocol}\t{first}\n");
    }
    fs::write(path, text).map_err(|source| FileError::Io { path: path.to_owned(), source })
}

fn read<T>(
    path: &Path,
    what: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, FileError> {
    let bytes = fs::read(path).map_err(|source| FileError::Io { path: path.to_owned(), source })?;
    let text = String::from_utf8_lossy(&bytes);
    let mut items = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let item = parse(line).map_err(|problem| FileError::Line {
            path: path.to_owned(),
            line: at + 1,
            problem,
        })?;
        items.push(item);
    }
    if items.is_empty() { Err(FileError::Empty { path: path.to_owned(), what }) } else { Ok(items) }
}

fn rule(line: &str) -> Result<Line, String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [src, dst, low, ":", high, dst_low, ":", dst_high, protocol, ..] = fields[..] else {
        return Err("a rule is `@SRC/LEN DST/LEN LOW : HIGH LOW : HIGH PROTOCOL/MASK`".to_owned());
    };
    let src = src.strip_prefix('@').ok_or("a rule begins with `@`")?;
    let rule = Line {
        src: net(src)?,
        dst: net(dst)?,
        src_ports: ports(low, high)?,
        dst_ports: ports(dst_low, dst_high)?,
        protocol: protocol_of(protocol)?,
    };
    let has_ports = matches!(rule.protocol, None | Some(6 | 17 | 132));
    if !has_ports && (rule.src_ports, rule.dst_ports) != (ALL_PORTS, ALL_PORTS) {
        return Err(format!("ports with protocol `{protocol}`, which has none"));
    }
    Ok(rule)
}

const ALL_PORTS: (u16, u16) = (0, u16::MAX);

fn header(line: &str) -> Result<Expected, String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [src, dst, src_port, dst_port, protocol, ref rest @ ..] = fields[..] else {
        return Err("a header is `SRC DST SRC_PORT DST_PORT PROTOCOL [RULE]`".to_owned());
    };
    let header = Header {
        src: number(src)?,
        dst: number(dst)?,
        src_port: number(src_port)?,
        dst_port: number(dst_port)?,
        protocol: number(protocol)?,
    };
    let first = match rest {
        [] => None,
        ["-1", ..] => Some(None),
        [first, ..] => Some(Some(number(first)?)),
    };
    Ok((header, first))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number that fits its field"))
}

fn net(text: &str) -> Result<Net, String> {
    let bad = || format!("`{text}` is no prefix; expected as in 10.0.0.0/8");
    let (addr, len) = text.split_once('/').ok_or_else(bad)?;
    let addr: Ipv4Addr = addr.parse().map_err(|_| bad())?;
    let len: u8 = len.parse().ok().filter(|&len| len <= 32).ok_or_else(bad)?;
    let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
    Ok(Net { start: addr.to_bits() & mask, len })
}

fn ports(low: &str, high: &str) -> Result<(u16, u16), String> {
    let (low, high) = (number(low)?, number(high)?);
    if low <= high { Ok((low, high)) } else { Err(format!("ports {low} : {high} are no range")) }
}

fn protocol_of(text: &str) -> Result<Option<u8>, String> {
    let bad = || format!("`{text}` is no protocol; expected as in 0x06/0xFF, or 0x00/0x00 for any");
    let hex = |text: &str| u8::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let (protocol, mask) = text.split_once('/').ok_or_else(bad)?;
    match (hex(protocol), hex(mask)) {
        (Some(_), Some(0)) => Ok(None),
        (Some(protocol), Some(0xff)) => Ok(Some(protocol)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_as_it_is_written() {
        let text = "@10.1.2.3/8\t192.0.2.7/32\t0 : 65535\t80 : 443\t0x06/0xFF\t0x0000/0x0200\t";
        let expected = Line {
            src: Net { start: 10 << 24, len: 8 },
            dst: Net { start: 0xc000_0207, len: 32 },
            src_ports: (0, 65_535),
            dst_ports: (80, 443),
            protocol: Some(6),
        };
        assert_eq!(rule(text), Ok(expected));
        assert_eq!(expected.src.end(), 0x0aff_ffff);
        assert_eq!(expected.dst.end(), expected.dst.start);
        assert_eq!(Net { start: 0, len: 0 }.end(), u32::MAX);
    }

    #[test]
    fn a_header_may_know_its_rule() {
        let expected = Header { src: 1, dst: 2, src_port: 3, dst_port: 4, protocol: 6 };
        assert_eq!(header("1\t2 3 4 6"), Ok((expected, None)));
        assert_eq!(header("1 2 3 4 6 0"), Ok((expected, Some(Some(0)))));
        assert_eq!(header("1 2 3 4 6 -1"), Ok((expected, Some(None))));
    }

    #[test]
    fn what_cannot_be_read_says_where() {
        for bad in [
            "10.0.0.0/8 0.0.0.0/0 0 : 1 0 : 1 0x06/0xFF",
            "@10.0.0.0/33 0.0.0.0/0 0 : 1 0 : 1 0x06/0xFF",
            "@10.0.0.0/8 0.0.0.0/0 2 : 1 0 : 1 0x06/0xFF",
            "@10.0.0.0/8 0.0.0.0/0 0 : 1 0 : 65536 0x06/0xFF",
            "@10.0.0.0/8 0.0.0.0/0 0 : 1 0 : 1 0x06/0x0F",
            "@10.0.0.0/8 0.0.0.0/0 0 : 1 0 : 65535 0x01/0xFF",
            "@10.0.0.0/8",
        ] {
            assert!(rule(bad).is_err(), "{bad}");
        }
        for bad in ["1 2 3 4", "4294967296 2 3 4 6", "1 2 3 65536 6", "1 2 3 4 256", "1 2 3 4 6 x"]
        {
            assert!(header(bad).is_err(), "{bad}");
        }
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let error = read_rules(&file).expect_err("it is no file of rules").to_string();
        assert!(
            error.ends_with(
                "Cargo.toml:1: a rule is `@SRC/LEN DST/LEN LOW : HIGH LOW : HIGH PROTOCOL/MASK`"
            ),
            "{error}"
        );
    }
}
