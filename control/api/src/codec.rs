//! Framing: length, version, body.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of every message. Both ends must have the same one.
pub const VERSION: u16 = 1;

/// Longest message body, in bytes.
pub const MAX_BODY: usize = 64 << 20;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The peer speaks another version.
    #[error(
        "the peer speaks protocol version {peer}, this is version {VERSION}: upgrade the older one"
    )]
    Version {
        /// Its version.
        peer: u16,
    },
    /// The length field is out of bounds.
    #[error("a message of {length} bytes, outside 2 to {} bytes", MAX_BODY + 2)]
    Length {
        /// Its length field.
        length: usize,
    },
    /// The body is not a message.
    #[error("a message body that cannot be read: {0}")]
    Body(#[from] postcard::Error),
}

/// One message as bytes.
///
/// # Errors
/// If it is longer than [`MAX_BODY`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let mut bytes = postcard::to_extend(message, vec![0; 6])?;
    let length = bytes.len() - 4;
    if length > MAX_BODY + 2 {
        return Err(ProtocolError::Length { length });
    }
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    bytes[4..6].copy_from_slice(&VERSION.to_be_bytes());
    Ok(bytes)
}

/// Collects bytes until they are messages of type `T`.
#[derive(Debug)]
pub struct Decoder<T> {
    pending: Vec<u8>,
    message: PhantomData<T>,
}

impl<T> Default for Decoder<T> {
    fn default() -> Self {
        Self { pending: Vec::new(), message: PhantomData }
    }
}

impl<T: DeserializeOwned> Decoder<T> {
    /// Takes what was read from the peer.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes come. After an error the stream has lost
    /// its place: close it.
    ///
    /// # Errors
    /// If the bytes are not a message of this version.
    pub fn next_message(&mut self) -> Result<Option<T>, ProtocolError> {
        let Some(&header) = self.pending.first_chunk::<6>() else { return Ok(None) };
        let [a, b, c, d, version @ ..] = header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(2..=MAX_BODY + 2).contains(&length) {
            return Err(ProtocolError::Length { length });
        }
        let peer = u16::from_be_bytes(version);
        if peer != VERSION {
            return Err(ProtocolError::Version { peer });
        }
        let Some(body) = self.pending.get(6..4 + length) else { return Ok(None) };
        let message = postcard::from_bytes(body)?;
        self.pending.drain(..4 + length);
        Ok(Some(message))
    }
}
