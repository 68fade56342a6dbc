//! The only place that knows bincode: bounded, and strict about what is left over.
//!
//! bincode is unmaintained; keeping it behind these functions keeps its replacement a change of one file.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::Limits;

/// Version of everything that is encoded here; the first byte of every frame, datagram and beacon.
pub const VERSION: u8 = 1;

/// Why bytes were not decoded. The bytes are foreign; nothing of ours is harmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{0} bytes are too many")]
    TooLong(usize),
    #[error("the bytes end too early")]
    Truncated,
    #[error("version {0} is unknown")]
    Version(u8),
    #[error("the bytes are not what their place says")]
    Malformed,
    #[error("a value is out of its range")]
    Range,
    #[error("the signature does not fit")]
    Signature,
}

impl DecodeError {
    /// The label under which this is counted.
    pub fn label(self) -> &'static str {
        match self {
            Self::TooLong(_) => "frame_too_long",
            Self::Truncated => "frame_truncated",
            Self::Version(_) => "frame_version",
            Self::Malformed => "frame_malformed",
            Self::Range => "frame_out_of_range",
            Self::Signature => "frame_signature",
        }
    }
}

/// Appends the encoding of `value` to `out`.
pub fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    bincode::serde::encode_into_std_write(value, out, bincode::config::standard())
        .expect("our own types are encodable, and memory grows");
}

/// The bytes of `value`.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(value, &mut out);
    out
}

/// Reads a value that fills `bytes` exactly.
///
/// Allocation is limited by bincode's budget of [`Limits::FRAME_BYTES`]: a length prefix cannot reserve more.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, used) = decode_prefix(bytes)?;
    if used == bytes.len() { Ok(value) } else { Err(DecodeError::Malformed) }
}

/// Reads a value from the front of `bytes` and says how many it took.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
    if bytes.len() > Limits::FRAME_BYTES {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    let config = bincode::config::standard().with_limit::<{ Limits::FRAME_BYTES }>();
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    let decoded = bincode::serde::decode_from_slice(bytes, config);
    decoded.map_err(|error| match error {
        bincode::error::DecodeError::UnexpectedEnd { .. } => DecodeError::Truncated,
        bincode::error::DecodeError::LimitExceeded => DecodeError::TooLong(bytes.len()),
        _ => DecodeError::Malformed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_over_is_an_error() {
        let mut bytes = encode(&(7u32, "seven"));
        assert_eq!(decode::<(u32, String)>(&bytes), Ok((7, "seven".to_owned())));
        bytes.push(0);
        assert_eq!(decode::<(u32, String)>(&bytes), Err(DecodeError::Malformed));
    }

    #[test]
    fn a_length_that_promises_too_much_allocates_nothing() {
        let bomb = [253, 255, 255, 255, 255, 255, 255, 255, 127];
        assert!(decode::<String>(&bomb).is_err());
        assert!(decode::<Vec<u64>>(&bomb).is_err());
    }
}
