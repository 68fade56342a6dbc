//! The end of an account whose owner is gone for good: what waits for it goes to another one.
//!
//! Nothing else moves samples between accounts, for they may have been committed in the first one already. Whoever retires
//! an account says by that that its totals do not count any more; should its owner return, it begins a new account.

use serde::{Deserialize, Serialize};

use crate::id::{Keypair, NodeId, SIGNATURE_BYTES};
use crate::proto::account::AccountId;

/// What sets a retirement's signature apart from any other of the same key.
const PURPOSE: &[u8] = b"tussock account retirement 1";

/// "What waits for the account `retired` is for `into`, which is mine", signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retirement {
    pub retired: AccountId,
    pub into: AccountId,
    /// The owner of `into`.
    pub by: NodeId,
    signature: Vec<u8>,
}

impl Retirement {
    pub fn sign(key: &Keypair, retired: AccountId, into: AccountId) -> Self {
        let signature = key.sign(&message(retired, into)).to_vec();
        Self { retired, into, by: key.id(), signature }
    }

    /// Whether one from outside is within its bounds.
    pub fn is_possible(&self) -> bool {
        self.signature.len() == SIGNATURE_BYTES && self.retired != self.into
    }

    /// Whether `by` signed it.
    pub fn is_signed(&self) -> bool {
        let signature = <&[u8; SIGNATURE_BYTES]>::try_from(self.signature.as_slice());
        signature.is_ok_and(|signature| self.by.verifies(&message(self.retired, self.into), signature))
    }

    /// The account that the retired one's owner goes on with, should it return.
    pub fn successor(&self) -> AccountId {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(&message(self.retired, self.into)).as_bytes()[..16]);
        AccountId(id)
    }
}

fn message(retired: AccountId, into: AccountId) -> Vec<u8> {
    [PURPOSE, &retired.0, &into.0].concat()
}

/// Why an account is not retired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetireError {
    #[error("this node's account is {}", own.map_or("none: it is no sink".to_owned(), |own| own.to_string()))]
    NotOurs { own: Option<AccountId> },
    #[error("the samples of this tree go to the account {}", root.map_or("of nobody".to_owned(), |root| root.to_string()))]
    NotTheRoot { root: Option<AccountId> },
    #[error("its owner {owner} is in the mesh: what waits for it will be committed there")]
    InUse { owner: NodeId },
    #[error("{most} accounts were retired into this one already")]
    TooMany { most: usize },
    #[error("the journal cannot keep it; is the disk full?")]
    Journal,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_signed_it_says_so() {
        let (key, other) = (Keypair::from_seed([1; 32]), Keypair::from_seed([2; 32]));
        let retirement = Retirement::sign(&key, AccountId([3; 16]), AccountId([4; 16]));
        assert!(retirement.is_signed());
        assert!(!Retirement { by: other.id(), ..retirement.clone() }.is_signed());
        assert!(!Retirement { retired: AccountId([5; 16]), ..retirement.clone() }.is_signed());
        assert!(!Retirement { signature: vec![0; 3], ..retirement }.is_signed());
    }
}
