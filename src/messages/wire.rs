//! The wire form: `length (u32, little endian) | version | kind | body` on a stream, `version | body` in a datagram.
//!
//! Every length is checked before anything is allocated, every value before anyone acts on it.

use std::sync::Arc;

use crate::codec::{self, DecodeError, VERSION};
use crate::id::Keypair;
use crate::limits::Limits;
use crate::proto::beacon::Beacon;
use crate::proto::frame::Frame;
use crate::proto::link::Beat;

/// Bytes of the length prefix.
pub const PREFIX: usize = 4;

mod kind {
    pub const HELLO: u8 = 0;
    pub const BEACON: u8 = 1;
    pub const TOPOLOGY: u8 = 2;
    pub const ROUTER: u8 = 3;
}

/// Why a frame of our own cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {bytes} bytes is over the limit of {limit}", limit = Limits::FRAME_BYTES)]
pub struct TooLarge {
    pub bytes: usize,
}

/// Appends the frame with its length prefix. A beacon is signed with `key`.
pub fn encode_frame(frame: &Frame, key: &Keypair, out: &mut Vec<u8>) -> Result<(), TooLarge> {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    out.push(VERSION);
    match frame {
        Frame::Hello(hello) => {
            out.push(kind::HELLO);
            codec::encode_into(hello, out);
        }
        Frame::Beacon(beacon) => {
            out.push(kind::BEACON);
            out.extend_from_slice(&beacon.sign(key));
        }
        Frame::Topology(frame) => {
            out.push(kind::TOPOLOGY);
            codec::encode_into(frame, out);
        }
        Frame::Router(frame) => {
            out.push(kind::ROUTER);
            codec::encode_into(frame, out);
        }
    }
    let bytes = out.len() - start - PREFIX;
    if bytes > Limits::FRAME_BYTES {
        out.truncate(start);
        return Err(TooLarge { bytes });
    }
    out[start..start + PREFIX].copy_from_slice(&(bytes as u32).to_le_bytes());
    Ok(())
}

/// Reads a length prefix and refuses one that is too long.
pub fn frame_length(prefix: [u8; PREFIX]) -> Result<usize, DecodeError> {
    let length = u32::from_le_bytes(prefix) as usize;
    match length {
        0 | 1 => Err(DecodeError::Truncated),
        n if n > Limits::FRAME_BYTES => Err(DecodeError::TooLong(n)),
        n => Ok(n),
    }
}

/// Reads a frame without its length prefix: its version, its kind, its body, and whether every value is possible.
pub fn decode_frame(bytes: &[u8]) -> Result<Frame, DecodeError> {
    let [version, kind, body @ ..] = bytes else { return Err(DecodeError::Truncated) };
    if *version != VERSION {
        return Err(DecodeError::Version(*version));
    }
    match *kind {
        kind::HELLO => codec::decode(body).map(Frame::Hello),
        kind::BEACON => Beacon::verify(body).map(|beacon| Frame::Beacon(Arc::new(beacon))),
        kind::TOPOLOGY => match codec::decode(body)? {
            frame if crate::proto::topology::Frame::is_possible(&frame) => Ok(Frame::Topology(frame)),
            _ => Err(DecodeError::Range),
        },
        kind::ROUTER => match codec::decode(body)? {
            frame if crate::proto::packet::RouterFrame::is_possible(&frame) => Ok(Frame::Router(frame)),
            _ => Err(DecodeError::Range),
        },
        _ => Err(DecodeError::Malformed),
    }
}

/// A heartbeat as a datagram.
pub fn encode_beat(beat: &Beat) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    codec::encode_into(beat, &mut bytes);
    bytes
}

pub fn decode_beat(bytes: &[u8]) -> Result<Beat, DecodeError> {
    if bytes.len() > Limits::DATAGRAM_BYTES {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    match bytes {
        [] => Err(DecodeError::Truncated),
        [VERSION, body @ ..] => codec::decode(body),
        [version, ..] => Err(DecodeError::Version(*version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{FormationId, NodeName};
    use crate::level::Level;
    use crate::proto::beacon::tests::sample;
    use crate::proto::link::{Hello, Purpose};
    use crate::proto::packet::RouterFrame;
    use crate::proto::topology::{self, Path, Tenure, Waypoint};
    use proptest::prelude::*;

    fn key() -> Keypair {
        Keypair::from_seed([7; 32])
    }

    fn frames() -> Vec<Frame> {
        let name = NodeName::new("alpha-3").unwrap();
        let waypoint =
            Waypoint { id: key().id(), name: name.clone(), level: Level::SQUAD, effective_level: Level::SQUAD };
        let tenure = Tenure { incarnation: 3, counter: 1 };
        let path = Path { waypoints: vec![waypoint], ..Path::default() };
        let formation = FormationId(*b"training");
        vec![
            Frame::Hello(Hello { formation, name, level: Level::PLATFORM, incarnation: 3, count: 9 }),
            Frame::Beacon(Arc::new(sample(&key()))),
            Frame::Topology(topology::Frame::Accept { serial: 4, tenure, path, backup: false }),
            Frame::Router(RouterFrame::Receipt { number: 77 }),
        ]
    }

    fn encoded(frame: &Frame) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_frame(frame, &key(), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn frames_read_back() {
        for frame in frames() {
            let bytes = encoded(&frame);
            let (prefix, body) = bytes.split_first_chunk::<PREFIX>().unwrap();
            assert_eq!(frame_length(*prefix), Ok(body.len()));
            assert_eq!(decode_frame(body), Ok(frame));
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused() {
        for frame in frames() {
            let bytes = encoded(&frame);
            for cut in PREFIX..bytes.len() {
                assert!(decode_frame(&bytes[PREFIX..cut]).is_err(), "{frame:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn foreign_versions_and_kinds_are_refused() {
        assert_eq!(decode_frame(&[9, 0, 0]), Err(DecodeError::Version(9)));
        assert_eq!(decode_frame(&[VERSION, 200, 0]), Err(DecodeError::Malformed));
        assert_eq!(frame_length(u32::MAX.to_le_bytes()), Err(DecodeError::TooLong(u32::MAX as usize)));
    }

    #[test]
    fn a_heartbeat_is_small() {
        let beat = Beat { sequence: u32::MAX, echo: u32::MAX, purpose: Purpose::Answer, pace: u32::MAX };
        let bytes = encode_beat(&beat);
        assert!(bytes.len() <= 24);
        assert_eq!(decode_beat(&bytes), Ok(beat));
    }

    proptest! {
        #[test]
        fn nothing_from_the_network_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..5) {
            let _ = decode_frame(&bytes);
            let _ = decode_beat(&bytes);
            let _ = decode_frame(&[&[VERSION, kind], bytes.as_slice()].concat());
        }

        #[test]
        fn a_mutated_frame_is_read_or_refused(which in 0usize..4, at in any::<usize>(), with in 1u8..) {
            let mut bytes = encoded(&frames()[which]).split_off(PREFIX);
            let at = at % bytes.len();
            bytes[at] ^= with;
            let _ = decode_frame(&bytes);
        }
    }
}
