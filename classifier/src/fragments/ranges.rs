//! Which bytes of a packet have come: a few ranges, in order, none touching the next.

/// Most ranges. A packet's fragments make one as long as they come in order, either way, and at most
/// half as many as there are fragments: 23 of 46 for the largest packet over an MTU of 1,500. Senders
/// do not shuffle that badly; who does loses fragments.
const RANGES: usize = 16;

/// Ranges of bytes, each from its first up to, without, its second number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ranges {
    ranges: [(u32, u32); RANGES],
    len: usize,
}

/// What became of a range that was to be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    /// It is in now, and no byte of it was.
    New,
    /// All of its bytes were in.
    Repeated,
    /// Some of its bytes were in.
    Overlapping,
    /// No byte of it was in, nor is now: there would be too many ranges.
    NoRoom,
}

impl Ranges {
    /// Inserts the bytes from `start` to `end`, which is larger. Only [`Inserted::New`] changes
    /// anything.
    pub(super) fn insert(&mut self, start: u32, end: u32) -> Inserted {
        let ranges = &self.ranges[..self.len];
        if ranges.iter().any(|&(s, e)| s <= start && end <= e) {
            return Inserted::Repeated;
        }
        if ranges.iter().any(|&(s, e)| s < end && start < e) {
            return Inserted::Overlapping;
        }
        let at = ranges.partition_point(|&(s, _)| s < start);
        let extends_left = at > 0 && ranges[at - 1].1 == start;
        let extends_right = at < self.len && ranges[at].0 == end;
        match (extends_left, extends_right) {
            (true, true) => {
                self.ranges[at - 1].1 = self.ranges[at].1;
                self.ranges.copy_within(at + 1..self.len, at);
                self.len -= 1;
            }
            (true, false) => self.ranges[at - 1].1 = end,
            (false, true) => self.ranges[at].0 = start,
            (false, false) if self.len == RANGES => return Inserted::NoRoom,
            (false, false) => {
                self.ranges.copy_within(at..self.len, at + 1);
                self.ranges[at] = (start, end);
                self.len += 1;
            }
        }
        Inserted::New
    }

    /// Just past the last byte that is in; 0 if none is.
    pub(super) fn end(&self) -> u32 {
        self.ranges[..self.len].last().map_or(0, |&(_, end)| end)
    }

    /// Whether all bytes before `total` are in.
    pub(super) fn is_all_of(&self, total: u32) -> bool {
        self.len == 1 && self.ranges[0] == (0, total)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_room_for_more_gaps() {
        let mut ranges = Ranges::default();
        for n in 0..RANGES as u32 {
            assert_eq!(ranges.insert(n * 16, n * 16 + 8), Inserted::New);
        }
        assert_eq!(ranges.insert(1_000, 1_008), Inserted::NoRoom);
        assert_eq!(ranges.insert(8, 16), Inserted::New, "one that closes a gap always fits");
        assert_eq!(ranges.insert(1_000, 1_008), Inserted::New);
    }

    proptest! {
        #[test]
        fn ranges_are_a_set_of_bytes(parts in prop::collection::vec((0u32..40, 1u32..12), 0..30)) {
            let mut ranges = Ranges::default();
            let mut bytes = [false; 64];
            for (start, len) in parts {
                let part = start as usize..(start + len) as usize;
                let known = bytes[part.clone()].iter().filter(|&&known| known).count();
                let expected = match known {
                    0 => Inserted::New,
                    n if n == part.len() => Inserted::Repeated,
                    _ => Inserted::Overlapping,
                };
                let inserted = ranges.insert(start, start + len);
                if inserted == Inserted::NoRoom {
                    prop_assert_eq!(expected, Inserted::New);
                    continue;
                }
                prop_assert_eq!(inserted, expected);
                if inserted == Inserted::New {
                    bytes[part].fill(true);
                }
                let end = bytes.iter().rposition(|&known| known).map_or(0, |at| at + 1);
                prop_assert_eq!(ranges.end() as usize, end);
                let is_all = bytes[..end].iter().all(|&known| known);
                prop_assert_eq!(ranges.is_all_of(end as u32), is_all && end > 0);
            }
        }
    }
}
