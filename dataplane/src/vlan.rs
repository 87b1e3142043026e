//! VLAN tags on output: a frame leaves as its port's mode says, whatever it came in as.

use firedoor_classifier::snapshot::VlanMode;

use crate::frame::Frame;
use crate::sys::umem::Umem;

/// Bytes of the two MAC addresses, which a tag stands behind.
const MACS: usize = 12;
/// Bytes of an 802.1Q tag.
const TAG: usize = 4;
/// Ethertype of an 802.1Q tag (IEEE 802.1Q-2022 §9.5).
const TPID: u16 = 0x8100;
/// The bits of a tag that name its VLAN; priority and drop eligibility are before them.
const VID: u16 = 0x0fff;

/// Makes the frame, which carries `tags` VLAN tags (0 or 1) and belongs to VLAN `vlan`, look as a
/// port of this mode sends it. Costs a 12-byte move where the number of tags changes. A tag that is
/// there already keeps its priority, but not its name for the VLAN: an access port takes tags that
/// name none, and both kinds of ports take 802.1ad's.
///
/// Returns false if the chunk has no room before the frame for a tag.
pub fn retag(umem: &Umem, frame: &mut Frame, tags: u8, vlan: u16, mode: &VlanMode) -> bool {
    match (mode, tags) {
        (VlanMode::Access(_), 0) => true,
        (VlanMode::Trunk(_), 1) => {
            rename(umem, frame, vlan);
            true
        }
        (VlanMode::Access(_), _) => {
            pop(umem, frame);
            true
        }
        (VlanMode::Trunk(_), _) => push(umem, frame, vlan),
    }
}

/// Gives the tag the VLAN's number and the usual ethertype; its priority stays.
fn rename(umem: &Umem, frame: &mut Frame, vlan: u16) {
    if let Some([kind @ .., high, low]) = umem.bytes_mut(frame).get_mut(MACS..MACS + TAG) {
        kind.copy_from_slice(&TPID.to_be_bytes());
        let priority = u16::from_be_bytes([*high, *low]) & !VID;
        [*high, *low] = (priority | vlan).to_be_bytes();
    }
}

fn pop(umem: &Umem, frame: &mut Frame) {
    umem.bytes_mut(frame).copy_within(..MACS, TAG);
    let (offset, len) = (frame.offset() as usize, frame.len());
    frame.set_span(offset + TAG, len - TAG);
}

fn push(umem: &Umem, frame: &mut Frame, vlan: u16) -> bool {
    let (offset, len) = (frame.offset() as usize, frame.len());
    let Some(offset) = offset.checked_sub(TAG) else { return false };
    frame.set_span(offset, len + TAG);
    let bytes = umem.bytes_mut(frame);
    bytes.copy_within(TAG..TAG + MACS, 0);
    bytes[MACS..MACS + 2].copy_from_slice(&TPID.to_be_bytes());
    bytes[MACS + 2..MACS + TAG].copy_from_slice(&vlan.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pool::{FramePool, FrameStore};

    #[test]
    fn a_pushed_tag_pops_to_the_same_bytes() {
        let (umem, frames) = Umem::new(1).unwrap();
        let umem = Arc::new(umem);
        let mut pool = FramePool::new(Arc::clone(&umem), FrameStore::new(frames));
        let bytes: Vec<u8> = (0..60).collect();
        let mut frame = pool.copy_of(&bytes).unwrap();

        let trunk = VlanMode::Trunk(vec![10]);
        assert!(retag(&umem, &mut frame, 0, 10, &trunk));
        assert_eq!(frame.len(), 64);
        assert_eq!(&umem.bytes(&frame)[..12], &bytes[..12]);
        assert_eq!(&umem.bytes(&frame)[12..16], &[0x81, 0, 0, 10]);
        assert_eq!(&umem.bytes(&frame)[16..], &bytes[12..]);

        assert!(retag(&umem, &mut frame, 1, 10, &trunk), "already tagged");
        assert_eq!(frame.len(), 64);
        assert!(retag(&umem, &mut frame, 1, 10, &VlanMode::Access(10)));
        assert_eq!(umem.bytes(&frame), bytes);
        pool.give(frame);
    }

    #[test]
    fn a_priority_tag_becomes_the_vlans_and_keeps_its_priority() {
        let (umem, frames) = Umem::new(1).unwrap();
        let umem = Arc::new(umem);
        let mut pool = FramePool::new(Arc::clone(&umem), FrameStore::new(frames));
        let mut bytes = [0; 64];
        bytes[12..16].copy_from_slice(&[0x81, 0, 0xa0, 0]);
        let mut frame = pool.copy_of(&bytes).unwrap();
        assert!(retag(&umem, &mut frame, 1, 10, &VlanMode::Trunk(vec![10])));
        assert_eq!(&umem.bytes(&frame)[12..16], &[0x81, 0, 0xa0, 10]);
        pool.give(frame);
    }
}
