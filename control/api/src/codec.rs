//! Framing: length, version, body.
//!
//! A reader never trusts a length: it is checked against a bound before a byte is kept for it, and
//! memory grows only with bytes that really came. A message must fill its frame exactly, so that
//! two sides with different ideas of a type find out at once instead of reading on askew.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of every message. Both ends must have the same one.
pub const VERSION: u16 = 6;

/// Longest message body, in bytes.
pub const MAX_BODY: usize = 64 << 20;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The peer speaks another version.
    #[error(
        "a message of protocol version {peer}, and this firedoor speaks {VERSION}: use the firedoor that \
         the switch runs, or restart the switch with this one"
    )]
    Version {
        /// Its version.
        peer: u16,
    },
    /// The length field is out of bounds.
    #[error("a message of {length} bytes, outside 2 to {limit} bytes")]
    Length {
        /// Its length field.
        length: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// The body is not a message.
    #[error("a message body that cannot be read: {0}")]
    Body(#[from] postcard::Error),
    /// The body goes on after the message.
    #[error("a message followed by {0} bytes that are not part of it")]
    Trailing(usize),
}

/// Bytes of the length and version fields.
const HEADER: usize = 6;
/// Bytes of the length field, which counts what follows it.
const LENGTH: usize = 4;
/// Bytes of the version field.
const VERSION_FIELD: usize = 2;

/// One message as bytes: length, version, body.
///
/// # Errors
/// If its body is longer than [`MAX_BODY`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = postcard::to_extend(message, vec![0; HEADER])?;
    let length = bytes.len() - LENGTH;
    let limit = MAX_BODY + VERSION_FIELD;
    let field = u32::try_from(length).ok().filter(|_| length <= limit);
    let field = field.ok_or(ProtocolError::Length { length, limit })?;
    bytes[..LENGTH].copy_from_slice(&field.to_be_bytes());
    bytes[LENGTH..HEADER].copy_from_slice(&VERSION.to_be_bytes());
    Ok(bytes)
}

/// Collects bytes until they are messages of type `T`.
#[derive(Debug)]
pub struct Decoder<T> {
    pending: Vec<u8>,
    /// How much of `pending` was returned as messages already.
    taken: usize,
    max_body: usize,
    message: PhantomData<T>,
}

impl<T> Default for Decoder<T> {
    fn default() -> Self {
        Self::with_limit(MAX_BODY)
    }
}

impl<T> Decoder<T> {
    /// A decoder that takes bodies of at most `max_body` bytes, and never more than [`MAX_BODY`].
    pub fn with_limit(max_body: usize) -> Self {
        let max_body = max_body.min(MAX_BODY);
        Self { pending: Vec::new(), taken: 0, max_body, message: PhantomData }
    }

    /// Whether part of a message is waiting for the rest of it.
    pub fn is_partial(&self) -> bool {
        self.taken < self.pending.len()
    }
}

impl<T: DeserializeOwned> Decoder<T> {
    /// Takes what was read from the peer. Call [`next_message`](Self::next_message) until `None`
    /// before the next `push`; then no more than one message and one push are ever kept.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.taken);
        self.taken = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes come. After an error the stream has lost
    /// its place: close it.
    ///
    /// # Errors
    /// If the bytes are not a message of this version.
    pub fn next_message(&mut self) -> Result<Option<T>, ProtocolError> {
        let unread = &self.pending[self.taken..];
        let Some(&[a, b, c, d, version @ ..]) = unread.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let limit = self.max_body + VERSION_FIELD;
        if !(VERSION_FIELD..=limit).contains(&length) {
            return Err(ProtocolError::Length { length, limit });
        }
        let peer = u16::from_be_bytes(version);
        if peer != VERSION {
            return Err(ProtocolError::Version { peer });
        }
        let end = LENGTH + length;
        let Some(body) = unread.get(HEADER..end) else { return Ok(None) };
        let (message, rest) = postcard::take_from_bytes(body)?;
        if !rest.is_empty() {
            return Err(ProtocolError::Trailing(rest.len()));
        }
        self.taken += end;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{control, dataplane};

    /// Every message in `bytes`, given to the decoder in pieces of the given sizes, over and over.
    fn decode<T: DeserializeOwned>(
        bytes: &[u8],
        pieces: &[usize],
    ) -> Result<Vec<T>, ProtocolError> {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        let mut rest = bytes;
        let mut sizes = pieces.iter().cycle();
        while !rest.is_empty() {
            let size = sizes.next().map_or(rest.len(), |&s| s.clamp(1, rest.len()));
            let (piece, after) = rest.split_at(size);
            decoder.push(piece);
            rest = after;
            while let Some(message) = decoder.next_message()? {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    fn request() -> impl Strategy<Value = control::Request> {
        use control::Request;
        prop_oneof![
            Just(Request::Status),
            Just(Request::FollowDenies),
            any::<String>().prop_map(|workload| Request::PortAdd { workload }),
            any::<String>().prop_map(|name| Request::PortDel { name }),
            any::<(String, String)>().prop_map(|(path, text)| Request::Apply { path, text }),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_any_split(
            messages in prop::collection::vec(request(), 1..6),
            pieces in prop::collection::vec(1usize..40, 1..6),
        ) {
            let bytes = messages.iter().map(|m| encode(m).expect("small")).collect::<Vec<_>>().concat();
            let decoded: Vec<control::Request> = decode(&bytes, &pieces).expect("well-formed");
            prop_assert_eq!(decoded, messages);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<control::Request>(&bytes, &[]);
            let _ = decode::<dataplane::Reply>(&bytes, &[7]);
        }

        #[test]
        fn arbitrary_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let length = u32::try_from(body.len() + VERSION_FIELD).expect("short");
            let bytes = [&length.to_be_bytes()[..], &VERSION.to_be_bytes(), &body].concat();
            let _ = decode::<control::Request>(&bytes, &[]);
            let _ = decode::<control::Reply>(&bytes, &[]);
            let _ = decode::<dataplane::Request>(&bytes, &[]);
            let _ = decode::<dataplane::Reply>(&bytes, &[]);
            let _ = decode::<dataplane::Event>(&bytes, &[]);
        }
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_the_body_comes() {
        for length in [0, 1, u32::MAX] {
            let bytes = [&length.to_be_bytes()[..], &VERSION.to_be_bytes()].concat();
            let result = decode::<control::Request>(&bytes, &[]);
            assert!(matches!(result, Err(ProtocolError::Length { .. })), "{length}: {result:?}");
        }
        let mut small = Decoder::<control::Request>::with_limit(10);
        small.push(&encode(&control::Request::PortDel { name: "eleven-long".into() }).unwrap());
        assert!(matches!(small.next_message(), Err(ProtocolError::Length { limit: 12, .. })));
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = encode(&control::Request::Status).unwrap();
        bytes[4..6].copy_from_slice(&(VERSION + 1).to_be_bytes());
        let error = decode::<control::Request>(&bytes, &[]).unwrap_err();
        assert!(matches!(error, ProtocolError::Version { peer } if peer == VERSION + 1));
    }

    #[test]
    fn bytes_after_the_message_are_refused() {
        let mut bytes = encode(&control::Request::Status).unwrap();
        bytes.push(0);
        bytes[3] += 1;
        let error = decode::<control::Request>(&bytes, &[]).unwrap_err();
        assert!(matches!(error, ProtocolError::Trailing(1)), "{error}");
    }
}
