//! What a node must not forget: one list of records, and the state they add up to.
//!
//! Whoever keeps the records (memory, a disk) applies them to a [`Durable`] of its own and hands a copy to each
//! incarnation of the router, so that a crash loses nothing that was acknowledged. Written anew, a state is the records
//! that restore it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::NodeId;
use crate::level::Level;
use crate::limits::Limits;
use crate::proto::account::{Account, AccountId};
use crate::proto::aggregate::{JournalId, Source, Stats, Unit};
use crate::proto::outbox::{Outbox, Renewal};
use crate::proto::packet::Verdict;
use crate::proto::ranges::RangeSet;
use crate::proto::retirement::Retirement;
use crate::proto::sample::Sample;
use crate::proto::sketch::Sketch;
use crate::proto::topology::Fence;

/// One durable change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Record {
    /// Packets below this number may have been sent by this run of the node.
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
    /// What waits for an account goes to another one.
    Retire {
        retirement: Retirement,
        renewal: Renewal,
    },
    Restore(Restore),
    /// The level of a root that this node or anybody below was ever under.
    KnownRoot(Level),
}

impl Record {
    /// Whether others lean on it so much that it is worth two copies: without a binding or a part of an account, samples
    /// could count twice.
    pub fn is_leaned_on(&self) -> bool {
        matches!(self, Self::Bind { .. } | Self::Fence(_) | Self::Retire { .. } | Self::Restore(_))
    }
}

/// A part of a state that was written anew. To apply it twice is to apply it once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Restore {
    /// The next sequence of the outbox, how many samples it gave up, and how many sequences it left out.
    Outbox { next: u64, evictions: u64, skipped: u64 },
    /// Sequences given up that no account knows of yet.
    Evicted { first: u64, last: u64 },
    /// How many samples the account has.
    Samples(u64),
    /// What a metric of the account adds up to.
    Metric { name: String, stats: Stats, sketch: Option<Sketch> },
    /// What of a journal is settled in the account.
    Settled { source: Source, ranges: RangeSet },
    /// How many samples of an origin the account has.
    Counted { origin: NodeId, samples: u64 },
    /// A retirement that concerns the account here.
    Retired(Retirement),
}

/// What a host said to a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq)]
pub struct Durable {
    pub reserved: u64,
    pub outbox: Outbox,
    /// Absent on a node that does not commit samples.
    pub account: Option<Account>,
    /// The accounts that were retired into the one here, and those that this one comes after.
    pub retirements: Vec<Retirement>,
    /// The highest term of command known.
    pub fence: Option<Fence>,
    /// The highest level of a root known.
    pub known_root: Option<Level>,
    delivered: BTreeMap<Uuid, Delivery>,
    delivered_order: VecDeque<Uuid>,
}

impl Durable {
    pub fn new(journal: JournalId, account: Option<AccountId>) -> Self {
        Self {
            reserved: 0,
            outbox: Outbox::new(journal),
            account: account.map(Account::new),
            retirements: Vec::new(),
            fence: None,
            known_root: None,
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
            Record::KnownRoot(level) => self.known_root = self.known_root.max(Some(*level)),
            Record::Retire { retirement, renewal } => {
                self.outbox.renew(retirement.retired, retirement.into, renewal);
                self.retire(retirement);
            }
            Record::Restore(Restore::Retired(retirement)) => self.retire(retirement),
            Record::Restore(part @ (Restore::Outbox { .. } | Restore::Evicted { .. })) => self.outbox.restore(part),
            Record::Restore(part) => {
                if let Some(account) = &mut self.account {
                    account.restore(part);
                }
            }
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

    fn retire(&mut self, retirement: &Retirement) {
        let own = self.account.as_ref().map(|account| account.id);
        if own == Some(retirement.retired) {
            self.account = Some(Account::new(retirement.successor()));
        }
        let concerns = own == Some(retirement.retired) || own == Some(retirement.into);
        if concerns && !self.retirements.contains(retirement) {
            self.retirements.push(retirement.clone());
        }
    }

    /// The retirement of an account into the one here.
    pub fn retirement(&self, retired: AccountId) -> Option<&Retirement> {
        let own = self.account.as_ref()?.id;
        self.retirements.iter().find(|retirement| retirement.retired == retired && retirement.into == own)
    }

    /// The records that restore this state, in an order in which they can be applied.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let delivered = self.delivered_order.iter().filter_map(|id| Some((*id, self.delivered.get(id)?)));
        let delivered = delivered.flat_map(|(command, delivery)| {
            let answer = delivery.answer.clone().map(|answer| Record::Answer { command, answer });
            std::iter::once(Record::Deliver { command, incarnation: delivery.incarnation }).chain(answer)
        });
        std::iter::once(Record::Reserve(self.reserved))
            .chain(self.fence.map(Record::Fence))
            .chain(self.known_root.map(Record::KnownRoot))
            .chain(self.retirements.iter().cloned().map(|retirement| Record::Restore(Restore::Retired(retirement))))
            .chain(delivered)
            .chain(self.outbox.records())
            .chain(self.account.iter().flat_map(Account::records).map(Record::Restore))
    }

    pub fn delivery(&self, command: &Uuid) -> Option<&Delivery> {
        self.delivered.get(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Keypair, NodeId};
    use crate::proto::aggregate::Spans;
    use crate::proto::sample::Priority;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const OWN: AccountId = AccountId([1; 16]);
    const OTHER: AccountId = AccountId([2; 16]);

    fn sample(sequence: u64) -> Arc<Sample> {
        Arc::new(Sample { sequence, priority: Priority::Normal, metrics: vec![("n".into(), sequence as f64)] })
    }

    fn unit(sequence: u64, void: RangeSet) -> Arc<Unit> {
        let source = Source { origin: NodeId::from_bytes([7; 32]), journal: 5 };
        let mut unit = Unit::empty(OWN);
        unit.add(source, &sample(sequence));
        unit.totals.sketch(&sample(sequence));
        unit.provenance.0.insert(source, Spans { counted: RangeSet::of(sequence, sequence), void });
        Arc::new(unit)
    }

    /// What a node may do, in the order in which it may.
    fn record(durable: &Durable, kind: u8, n: u64) -> Option<Record> {
        let outbox = &durable.outbox;
        let nth = || outbox.sequences().nth(n as usize % outbox.depth().max(1));
        Some(match kind {
            0 => Record::Reserve(n),
            1..=3 => Record::Sample(sample(outbox.next_sequence())),
            4 => Record::Bind { from: outbox.next_sequence(), account: if n < 20 { OWN } else { OTHER } },
            5 => Record::Evict(nth()?),
            6 => Record::Truncate { account: if n < 20 { OWN } else { OTHER }, upto: nth()? },
            7 => Record::Commit(unit(durable.account.as_ref()?.totals.samples * 3 + 1, RangeSet::new())),
            8 => Record::Void(unit(1, RangeSet::of(2, 2 + n % 9))),
            9 => Record::Deliver { command: Uuid::from_u128(u128::from(n % 9)), incarnation: n },
            10 => {
                let answer = Answered { verdict: Verdict::Accepted, text: n.to_string() };
                Record::Answer { command: Uuid::from_u128(u128::from(n % 9)), answer }
            }
            11 => Record::Fence(Fence { counter: n, leader: NodeId::from_bytes([3; 32]) }),
            12 => Record::KnownRoot(Level(n as u8)),
            _ => {
                let (key, own) = (Keypair::from_seed([7; 32]), durable.account.as_ref()?.id);
                let (retired, into) = if n == 0 { (own, OTHER) } else { (OTHER, own) };
                let renewal = outbox.renewal(retired);
                Record::Retire { retirement: Retirement::sign(&key, retired, into), renewal }
            }
        })
    }

    proptest! {
        #[test]
        fn a_state_is_restored_by_its_records(steps in vec((0u8..14, 0u64..40), 0..120)) {
            let mut durable = Durable::new(9, Some(OWN));
            for (kind, n) in steps {
                if let Some(record) = record(&durable, kind, n) {
                    durable.apply(&record);
                }
            }
            let mut restored = Durable::new(9, Some(OWN));
            for record in durable.records() {
                restored.apply(&record);
                // Some are on the disk twice.
                if record.is_leaned_on() {
                    restored.apply(&record);
                }
            }
            prop_assert_eq!(restored, durable);
        }
    }
}
