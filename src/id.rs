//! Who a node is: its public key, and the key pair that proves it.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};

/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

/// A node's identity: its Ed25519 public key, which is also its iroh endpoint id.
///
/// Displays as 64 lower-case hex digits; [`NodeId::short`] gives the first ten.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeId([u8; 32]);

impl Ord for NodeId {
    /// By its bytes. The first eight tell two keys apart, in the many maps by node, without a call for all of them.
    fn cmp(&self, other: &Self) -> Ordering {
        let head = |id: &Self| id.0.first_chunk().copied().map(u64::from_be_bytes);
        head(self).cmp(&head(other)).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for NodeId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl NodeId {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight bytes, enough to tell members of one mesh apart in a beacon.
    pub fn prefix(&self) -> Prefix {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&self.0[..8]);
        Prefix(prefix)
    }

    /// The first ten hex digits, as shown beside a name.
    pub fn short(&self) -> String {
        HEXLOWER_PERMISSIVE.encode(&self.0[..5])
    }

    /// Whether this node signed `message`. Weak keys and malleable signatures are refused.
    pub fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .and_then(|key| key.verify_strict(message, &Signature::from_bytes(signature)))
            .is_ok()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// Why a text is not a node id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a node id is 64 hex digits, this has {length} characters{hint}")]
pub struct ParseNodeIdError {
    length: usize,
    hint: &'static str,
}

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let decoded = HEXLOWER_PERMISSIVE.decode(text.as_bytes());
        let bytes = decoded.ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(Self).ok_or_else(|| ParseNodeIdError {
            length: text.chars().count(),
            hint: if text.len() == 64 { ", some of them not hex" } else { "" },
        })
    }
}

/// The first eight bytes of a node id, as beacons name parents and roots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Prefix([u8; 8]);

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

/// A node's secret key. Its `Debug` shows the public half only.
#[derive(Clone)]
pub struct Keypair(SigningKey);

impl Keypair {
    /// A new key from the operating system's entropy.
    pub fn generate() -> Self {
        let mut seed = [0; 32];
        SysRng.try_fill_bytes(&mut seed).expect("the operating system has entropy");
        Self::from_seed(seed)
    }

    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The 32 secret bytes, for the identity file and the transport.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    pub fn id(&self) -> NodeId {
        NodeId(self.0.verifying_key().to_bytes())
    }

    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keypair").field(&self.id()).finish()
    }
}

/// Which mesh a node belongs to; beacons and hellos of another formation are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct FormationId(pub [u8; 8]);

/// A human name beside the id: lower-case letters, digits and dashes, at most 32 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct NodeName(String);

/// Why a text is not a node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a node name: lower-case letters, digits and dashes, starting with a letter or digit, at most 32 bytes"
)]
pub struct InvalidName(String);

impl NodeName {
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let valid = !text.is_empty() && text.len() <= 32 && !text.starts_with('-') && text.chars().all(allowed);
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidName(text.chars().take(64).collect())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_what_it_prints() {
        let id = Keypair::from_seed([7; 32]).id();
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert!(id.to_string().starts_with(&id.short()));
        assert!("12ab".parse::<NodeId>().unwrap_err().to_string().contains("4 characters"));
    }

    #[test]
    fn a_signature_binds_message_and_signer() {
        let key = Keypair::from_seed([1; 32]);
        let signature = key.sign(b"hold");
        assert!(key.id().verifies(b"hold", &signature));
        assert!(!key.id().verifies(b"go", &signature));
        assert!(!Keypair::from_seed([2; 32]).id().verifies(b"hold", &signature));
    }

    #[test]
    fn names_are_checked() {
        assert!(NodeName::new("alpha-3").is_ok());
        for bad in ["", "-a", "Alpha", "a b", &"x".repeat(33)] {
            assert!(NodeName::new(bad).is_err(), "{bad:?}");
        }
    }
}
