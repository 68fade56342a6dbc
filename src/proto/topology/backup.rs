//! The backup: a second parent that keeps a slot, over a link that is up before it is needed.

use std::time::Duration;

use crate::id::NodeId;
use crate::proto::account::AccountId;
use crate::proto::topology::attempt::ATTEMPT;
use crate::proto::topology::machine::{Effect, Machine};
use crate::proto::topology::uplink::LISTEN;
use crate::proto::topology::{Frame, ParentView, Parting, Path, Tenure};
use crate::time::Time;

/// How long a node whose backup could not be had waits before it asks the next.
const NEXT_BACKUP: Duration = Duration::from_secs(1);
/// How long a node that was refused a slot waits before it asks for another: twice as long each time.
const BACKUP_REST: Duration = Duration::from_secs(5);
const LONGEST_BACKUP_REST: Duration = Duration::from_secs(600);

/// A node that may have us when the parent is gone.
#[derive(Clone, Debug)]
pub(super) struct Backup {
    pub id: NodeId,
    pub serial: u64,
    pub accepted: bool,
    /// What it has said of itself and of the root above it since it accepted.
    tenure: Tenure,
    account: Option<AccountId>,
    pub asked: Option<Time>,
    pub until: Time,
}

impl Machine {
    pub(super) fn choose_backup(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let Some(parent) = self.uplink.parent.as_ref() else { return };
        let waiting = now.since(parent.since) < LISTEN || now < self.uplink.backup_at;
        if self.uplink.backup.is_some() || waiting || !self.settings.repair {
            return;
        }
        let ranking = self.ranking(now);
        let others = || ranking.iter().filter(|rank| rank.id != parent.id);
        let Some(best) = others().next() else { return };
        let equals = others().take_while(|rank| rank.is_of_kind(best));
        let best = equals.min_by_key(|rank| self.would_fail_with(parent.id, &rank.id)).unwrap_or(best);
        let serial = self.uplink.next_serial();
        let until = now + ATTEMPT;
        self.uplink.backup = Some(Backup {
            id: best.id,
            serial,
            accepted: false,
            tenure: Tenure::default(),
            account: None,
            asked: None,
            until,
        });
        self.touch();
        self.ask_if_linked(now, effects);
    }

    /// Whether a candidate seems to be dead, and whether it is below the parent or the grandparent, whose death would take
    /// both ways up away.
    fn would_fail_with(&self, parent: NodeId, candidate: &NodeId) -> (bool, bool) {
        let grandparent = self.uplink.path.waypoints.get(1).map(|grandparent| grandparent.id.prefix());
        let Some(neighbour) = self.neighbours.get(candidate) else { return (true, true) };
        let above = neighbour.beacon.parent;
        let same_way = above.is_some_and(|above| above == parent.prefix() || Some(above) == grandparent);
        (self.is_doubted(&neighbour.beacon), same_way)
    }

    /// Does without this backup and looks for another; this one rests.
    pub(super) fn drop_backup(&mut self, now: Time) {
        if let Some(backup) = self.uplink.backup.take() {
            self.rest(now, backup.id, false);
            self.uplink.backup_at = now + if backup.accepted { Duration::ZERO } else { NEXT_BACKUP };
            self.touch();
        }
    }

    /// Who is refused by one is likely to be by the next.
    pub(super) fn backup_refused(&mut self, now: Time) {
        self.drop_backup(now);
        let wait = BACKUP_REST * 2u32.pow(self.uplink.backups_refused.min(10));
        self.uplink.backup_at = now + wait.min(LONGEST_BACKUP_REST);
        self.uplink.backups_refused += 1;
    }

    pub(super) fn backup_accepted(
        &mut self,
        now: Time,
        peer: NodeId,
        serial: u64,
        tenure: Tenure,
        path: &Path,
        effects: &mut Vec<Effect>,
    ) {
        match self.uplink.backup.as_mut().filter(|b| b.id == peer && b.serial == serial) {
            Some(kept) => {
                (kept.accepted, kept.tenure) = (true, tenure);
                self.uplink.backups_refused = 0;
                self.touch();
                self.backup_moved(now, peer, path, effects);
            }
            None => effects.push(Effect::Send(peer, Frame::Detach { serial, reason: Parting::Moved })),
        }
    }

    /// A backup that has stepped down to this node's level would refuse when it is needed: it need not keep the slot.
    pub(super) fn backup_moved(&mut self, now: Time, peer: NodeId, path: &Path, effects: &mut Vec<Effect>) {
        let low = path.waypoints.first().is_none_or(|backup| backup.effective_level <= self.effective_level());
        let Some(backup) = self.uplink.backup.as_mut().filter(|backup| backup.id == peer) else { return };
        backup.account = path.account;
        if low {
            effects.push(Effect::Send(peer, Frame::Detach { serial: backup.serial, reason: Parting::Moved }));
            self.drop_backup(now);
        }
        self.touch();
    }

    /// Has the backup say again what it may have said in vain.
    pub(super) fn confirm_backup(&self, effects: &mut Vec<Effect>) {
        if let Some(backup) = self.uplink.backup.as_ref().filter(|backup| backup.accepted) {
            effects.push(Effect::Send(backup.id, self.request(backup.serial, true)));
        }
    }

    /// The backup that is asked to take over, and where its root commits: samples go along with the request. Who commits
    /// samples itself waits for the answer, which tells whether it still does.
    pub(super) fn switching(&self) -> Option<(ParentView, AccountId)> {
        let (attempt, backup) = (self.uplink.attempt.as_ref()?, self.uplink.backup.as_ref()?);
        let since = self.uplink.unattached_since?;
        let may = backup.accepted && self.command.partition.is_none() && self.settings.account.is_none();
        let account = backup.account.filter(|_| may)?;
        let (id, tenure, serial) = (backup.id, backup.tenure, attempt.request_to(backup.id)?);
        Some((ParentView { id, tenure, serial, since }, account))
    }
}
