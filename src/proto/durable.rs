//! What a node must not forget: one list of records, and the state they add up to.
//!
//! Whoever keeps the records (memory, a disk) applies them to a [`Durable`] of its own and hands a copy to each
//! incarnation of the router, so that a crash loses nothing that was acknowledged.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use uuid::Uuid;

use crate::limits::Limits;
use crate::proto::account::{Account, AccountId};
use crate::proto::aggregate::{JournalId, Unit};
use crate::proto::outbox::Outbox;
use crate::proto::sample::Sample;

/// One durable change.
#[derive(Clone, Debug)]
pub enum Record {
    /// Packets below this number may have been sent.
    Reserve(u64),
    Sample(Arc<Sample>),
    /// Samples from `from` on are for `account`.
    Bind {
        from: u64,
        account: AccountId,
    },
    /// Given up by policy.
    Evict(u64),
    /// Settled by the account's owner.
    Truncate {
        account: AccountId,
        upto: u64,
    },
    /// Committed here as a root.
    Commit(Arc<Unit>),
    /// Sequences that will not be counted here.
    Void(Arc<Unit>),
    /// A command is about to be delivered to the host.
    Deliver(Uuid),
}

/// The state that records add up to.
#[derive(Clone, Debug)]
pub struct Durable {
    pub reserved: u64,
    pub outbox: Outbox,
    /// Absent on a node that does not commit samples.
    pub account: Option<Account>,
    delivered: BTreeSet<Uuid>,
    delivered_order: VecDeque<Uuid>,
}

impl Durable {
    pub fn new(journal: JournalId, account: Option<AccountId>) -> Self {
        Self {
            reserved: 0,
            outbox: Outbox::new(journal),
            account: account.map(Account::new),
            delivered: BTreeSet::new(),
            delivered_order: VecDeque::new(),
        }
    }

    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Reserve(upto) => self.reserved = self.reserved.max(*upto),
            Record::Sample(sample) => self.outbox.put(sample.clone()),
            Record::Bind { from, account } => self.outbox.bind(*from, *account),
            Record::Evict(sequence) => self.outbox.evict(*sequence),
            Record::Truncate { account, upto } => {
                self.outbox.truncate(*account, *upto);
            }
            Record::Commit(unit) => {
                if let Some(account) = &mut self.account {
                    account.commit(unit);
                }
            }
            Record::Void(unit) => {
                if let Some(account) = &mut self.account {
                    account.void(&unit.provenance);
                }
            }
            Record::Deliver(id) => {
                if self.delivered.insert(*id) {
                    self.delivered_order.push_back(*id);
                }
                if self.delivered_order.len() > Limits::DELIVERED
                    && let Some(oldest) = self.delivered_order.pop_front()
                {
                    self.delivered.remove(&oldest);
                }
            }
        }
    }

    pub fn was_delivered(&self, id: &Uuid) -> bool {
        self.delivered.contains(id)
    }
}
