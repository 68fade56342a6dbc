//! What a node must not forget: one list of records, and the state they add up to.
//!
//! Whoever keeps the records (memory, a disk) applies them to a [`Durable`] of its own and hands a copy to each
//! incarnation of the router, so that a crash loses nothing that was acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use uuid::Uuid;

use crate::limits::Limits;
use crate::proto::account::{Account, AccountId};
use crate::proto::aggregate::{JournalId, Unit};
use crate::proto::outbox::Outbox;
use crate::proto::packet::Verdict;
use crate::proto::sample::Sample;
use crate::proto::topology::Fence;

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
    /// A command is about to be delivered to the host of this run of the node.
    Deliver {
        command: Uuid,
        incarnation: u64,
    },
    /// A delivered command was answered.
    Answer {
        command: Uuid,
        answer: Answered,
    },
    /// The term of command that this node knows.
    Fence(Fence),
}

/// What a host said to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub verdict: Verdict,
    pub text: String,
}

/// A command that was given to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The run of the node whose host got it.
    pub incarnation: u64,
    pub answer: Option<Answered>,
}

/// The state that records add up to.
#[derive(Clone, Debug)]
pub struct Durable {
    pub reserved: u64,
    pub outbox: Outbox,
    /// Absent on a node that does not commit samples.
    pub account: Option<Account>,
    /// The highest term of command known.
    pub fence: Option<Fence>,
    delivered: BTreeMap<Uuid, Delivery>,
    delivered_order: VecDeque<Uuid>,
}

impl Durable {
    pub fn new(journal: JournalId, account: Option<AccountId>) -> Self {
        Self {
            reserved: 0,
            outbox: Outbox::new(journal),
            account: account.map(Account::new),
            fence: None,
            delivered: BTreeMap::new(),
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
            Record::Fence(fence) => self.fence = self.fence.max(Some(*fence)),
            Record::Answer { command, answer } => {
                if let Some(delivery) = self.delivered.get_mut(command) {
                    delivery.answer.get_or_insert_with(|| answer.clone());
                }
            }
            Record::Deliver { command, incarnation } => {
                let delivery = Delivery { incarnation: *incarnation, answer: None };
                if self.delivered.insert(*command, delivery).is_none() {
                    self.delivered_order.push_back(*command);
                }
                if self.delivered_order.len() > Limits::DELIVERED
                    && let Some(oldest) = self.delivered_order.pop_front()
                {
                    self.delivered.remove(&oldest);
                }
            }
        }
    }

    pub fn delivery(&self, command: &Uuid) -> Option<&Delivery> {
        self.delivered.get(command)
    }
}
