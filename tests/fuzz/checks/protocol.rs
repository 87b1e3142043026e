//! What must hold for the protocol, whatever the bytes. Shared by the fuzz target and the test that
//! replays the corpus.

use std::fmt::Debug;

use firedoor_api::codec::VERSION;
use firedoor_api::{Decoder, control, dataplane, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Panics if the codec breaks its promise for `bytes` as any type of message: as they are, and as
/// the body of one message. (Else a fuzzer would spend its time on lengths and versions.)
pub(crate) fn check(bytes: &[u8]) {
    check_stream(bytes);
    let length = (bytes.len() + 2) as u32;
    check_stream(&[&length.to_be_bytes()[..], &VERSION.to_be_bytes(), bytes].concat());
}

fn check_stream(stream: &[u8]) {
    check_as::<control::Request>(stream);
    check_as::<control::Reply>(stream);
    check_as::<dataplane::Request>(stream);
    check_as::<dataplane::Reply>(stream);
    check_as::<dataplane::Event>(stream);
}

fn check_as<T: Serialize + DeserializeOwned + PartialEq + Debug>(stream: &[u8]) {
    let whole = decode::<T>(stream, stream.len());
    for piece in [1, 5, 7] {
        assert_eq!(decode::<T>(stream, piece), whole, "in pieces of {piece} bytes");
    }
    let (messages, _) = whole;
    for message in messages {
        let bytes = encode(&message).expect("what was short enough to come is short enough to go");
        assert_eq!(decode::<T>(&bytes, bytes.len()), (vec![message], Ending::Between));
    }
}

#[derive(Debug, PartialEq)]
enum Ending {
    /// After a message.
    Between,
    /// Within one.
    Within,
    /// At an error.
    Broken(String),
}

/// The messages of a stream that comes in pieces of `piece` bytes, and how it ends.
fn decode<T: DeserializeOwned>(stream: &[u8], piece: usize) -> (Vec<T>, Ending) {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();
    for bytes in stream.chunks(piece.max(1)) {
        decoder.push(bytes);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Ending::Broken(error.to_string())),
            }
        }
    }
    let ending = if decoder.is_partial() { Ending::Within } else { Ending::Between };
    (messages, ending)
}
