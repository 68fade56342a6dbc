//! Retiring an account: at its heir, at the origins whose samples wait for it, and at its owner should that return.

use std::sync::Arc;

use crate::id::NodeId;
use crate::limits::Limits;
use crate::proto::account::AccountId;
use crate::proto::durable::Record;
use crate::proto::packet::{Direction, PacketType, Payload, Target};
use crate::proto::retirement::{RetireError, Retirement};
use crate::proto::router::machine::{Effect, Machine, RequestId};
use crate::time::Time;

impl Machine {
    /// The host of this node, whose account is the heir, retires another one.
    pub(super) fn retire(&mut self, now: Time, request: RequestId, retirement: Retirement, effects: &mut Vec<Effect>) {
        let result = self.may_retire(&retirement).map(|()| retirement.clone());
        if result.is_ok() && self.durable.retirement(retirement.retired).is_none() {
            let renewal = self.durable.outbox.renewal(retirement.retired);
            self.persist(vec![Record::Retire { retirement, renewal }], effects);
            self.offer_again(now);
            self.pump(now, effects);
        }
        effects.push(Effect::Retired { request, result });
    }

    fn may_retire(&self, retirement: &Retirement) -> Result<(), RetireError> {
        let own = self.durable.account.as_ref().map(|account| account.id);
        let most = Limits::RETIRED;
        match self.owner_of(retirement.retired) {
            _ if own != Some(retirement.into) => Err(RetireError::NotOurs { own }),
            _ if self.view.account != own => Err(RetireError::NotTheRoot { root: self.view.account }),
            Some(owner) => Err(RetireError::InUse { owner }),
            None if self.durable.retirements.len() >= most => Err(RetireError::TooMany { most }),
            None if !self.keeps() => Err(RetireError::Journal),
            None => Ok(()),
        }
    }

    /// The node of this tree that commits to an account, this one included.
    fn owner_of(&self, account: AccountId) -> Option<NodeId> {
        if self.view.account == Some(account) {
            return Some(self.view.root());
        }
        let below = self.view.descendants.values().find(|(_, below)| below.account == Some(account));
        below.map(|(_, below)| below.id)
    }

    /// Tells whoever offers samples for an account that was retired into the one here. Says whether it was.
    pub(super) fn answer_for_retired(&mut self, account: AccountId, origin: NodeId, effects: &mut Vec<Effect>) -> bool {
        let Some(retirement) = self.durable.retirement(account).cloned() else { return false };
        let (target, payload) = (Target::Node(origin), Payload::Retired(retirement));
        let packet = self.packet(target, Direction::Downward, PacketType::Status, payload, effects);
        self.send_direct(packet, None, effects);
        true
    }

    /// The owner of a retired account is back: it hears of it before it commits anything more.
    pub(super) fn tell_returned_owners(&mut self, effects: &mut Vec<Effect>) {
        let back = |retirement: &Retirement| self.owner_of(retirement.retired).filter(|owner| *owner != self.view.me);
        let back: Vec<_> = self.durable.retirements.iter().filter_map(|r| Some((r.retired, back(r)?))).collect();
        for (account, owner) in back {
            self.answer_for_retired(account, owner, effects);
        }
    }

    /// An account was retired. Only its heir's owner says so.
    pub(super) fn retired(&mut self, now: Time, retirement: Retirement, effects: &mut Vec<Effect>) {
        let account = retirement.retired;
        let concerns = self.commits(account) || self.durable.outbox.oldest(account).is_some();
        if !concerns || !self.keeps() {
            return;
        }
        if self.owner_of(retirement.into) != Some(retirement.by) || !retirement.is_signed() {
            return effects.push(Effect::Dropped("foreign_retirement"));
        }
        let renewal = self.durable.outbox.renewal(account);
        self.persist(vec![Record::Retire { retirement, renewal }], effects);
        self.offer_again(now);
        self.placed(now, Arc::clone(&self.view), effects);
    }
}
