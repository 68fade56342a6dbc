//! The journal: keeps durable records for the router, whichever incarnation it is in.
//!
//! One task owns the records. What waits for it while it writes is kept by the next write and one sync. When the disk
//! fails, what was not kept is refused, and so is all that may rest on it: whoever appends loads anew first. The
//! supervisor owns the journal.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::limits::Limits;
use crate::proto::durable::{Durable, Record};
use crate::storage::log::{Beginning, Damage, Log};
use crate::storage::{DataDir, StorageError};

/// How often a disk that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

enum Job {
    /// Without `kept` the records may be lost.
    Append {
        session: u64,
        records: Vec<Record>,
        kept: Option<oneshot::Sender<()>>,
    },
    Load(oneshot::Sender<Loaded>),
    /// Tries whether the disk works again.
    Recover(oneshot::Sender<bool>),
    Close(oneshot::Sender<()>),
}

/// Everything that was kept, for who appends to it in this session.
#[derive(Debug)]
pub struct Loaded {
    pub durable: Durable,
    pub session: u64,
}

/// How a journal is doing.
#[derive(Clone, Debug, Default)]
pub struct JournalState {
    /// Whether it outlives the process.
    pub on_disk: bool,
    /// The size of its file.
    pub bytes: u64,
    pub damage: Damage,
    /// Why it cannot keep anything at present.
    pub failing: Option<String>,
}

/// A handle on the task that owns the records.
#[derive(Clone, Debug)]
pub struct Journal {
    jobs: mpsc::Sender<Job>,
    state: watch::Receiver<JournalState>,
}

impl Journal {
    /// Starts a journal with this content that lasts as long as the process.
    pub fn in_memory(durable: Durable) -> Self {
        let (jobs, mut queue) = mpsc::channel(Limits::JOURNAL_QUEUE);
        let mut keeper = Keeper::new(durable, None, JournalState::default());
        let state = keeper.state.subscribe();
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while keeper.closed.is_none() && queue.recv_many(&mut batch, Limits::JOURNAL_BATCH).await > 0 {
                keeper.serve(&mut batch);
            }
            keeper.closed.map(|closed| closed.send(()))
        });
        Self { jobs, state }
    }

    /// Opens the journal of a data directory, or makes it with this beginning. It holds the directory until it is
    /// closed, or its last handle is gone.
    pub fn open(
        directory: DataDir,
        fresh: Beginning,
        incarnation: u64,
        sink: bool,
    ) -> Result<(Self, Durable), StorageError> {
        let path = directory.subdirectory("journal")?.join("log");
        if incarnation > 1 && !path.exists() {
            tracing::warn!(path = %path.display(), "there is no journal of earlier runs; what they kept is gone");
        }
        let (log, mut durable, damage) = Log::open(&path, fresh)?;
        if damage != Damage::default() {
            let Damage { stretches, lost_samples } = damage;
            let aside = path.with_extension("damaged").display().to_string();
            tracing::error!(stretches, lost_samples, aside, "the journal was damaged; the rest of it was recovered");
        }
        // A node that no longer commits keeps what it has, for samples that are bound to it.
        if !sink && durable.account.as_ref().is_some_and(|account| account.is_empty()) {
            durable.account = None;
        }
        let state = JournalState { on_disk: true, bytes: log.bytes(), damage, failing: None };
        let (jobs, mut queue) = mpsc::channel(Limits::JOURNAL_QUEUE);
        let mut keeper = Keeper::new(durable.clone(), Some(log), state);
        let state = keeper.state.subscribe();
        // A thread of its own: it waits for the disk.
        let run = move || {
            let mut batch = Vec::new();
            while keeper.closed.is_none() && queue.blocking_recv_many(&mut batch, Limits::JOURNAL_BATCH) > 0 {
                keeper.serve(&mut batch);
            }
            let closed = keeper.closed.take();
            drop((keeper, directory));
            closed.map(|closed| closed.send(()))
        };
        let spawned = std::thread::Builder::new().name("journal".into()).spawn(run);
        spawned.map_err(|error| StorageError::Io { path, error })?;
        Ok((Self { jobs, state }, durable))
    }

    /// Keeps records; resolves when they are kept, `false` if they could not be, and nothing more is in this session.
    pub fn append(&self, session: u64, records: Vec<Record>) -> impl Future<Output = bool> + Send + use<> {
        let (kept, done) = oneshot::channel();
        let queued = self.jobs.try_send(Job::Append { session, records, kept: Some(kept) });
        async move { queued.is_ok() && done.await.is_ok() }
    }

    /// Keeps records that may be lost; says whether there is room for them.
    pub fn note(&self, session: u64, records: Vec<Record>) -> bool {
        self.jobs.try_send(Job::Append { session, records, kept: None }).is_ok()
    }

    /// Everything that was kept, and a session to go on with.
    pub async fn load(&self) -> Option<Loaded> {
        let (reply, loaded) = oneshot::channel();
        self.jobs.send(Job::Load(reply)).await.ok()?;
        loaded.await.ok()
    }

    pub fn state(&self) -> JournalState {
        self.state.borrow().clone()
    }

    /// Tries the disk until records can be kept again.
    pub async fn writable(&self) {
        loop {
            let (reply, recovered) = oneshot::channel();
            let asked = self.jobs.send(Job::Recover(reply)).await.is_ok();
            // A journal that has ended will not come back, and neither will the node.
            if !asked || recovered.await.unwrap_or(true) {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Ends the journal when all that was queued is kept.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if self.jobs.send(Job::Close(reply)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

/// The records, and the disk under them if there is one.
struct Keeper {
    durable: Durable,
    log: Option<Log>,
    session: u64,
    state: watch::Sender<JournalState>,
    closed: Option<oneshot::Sender<()>>,
}

impl Keeper {
    fn new(durable: Durable, log: Option<Log>, state: JournalState) -> Self {
        Self { durable, log, session: 1, state: watch::Sender::new(state), closed: None }
    }

    /// Does what has come: appends that follow each other with one write and one sync.
    fn serve(&mut self, batch: &mut Vec<Job>) {
        let (mut records, mut waiting) = (Vec::new(), Vec::new());
        for mut job in batch.drain(..) {
            if let Job::Append { records, .. } = &mut job {
                self.reserve(records);
            }
            match job {
                Job::Append { session, .. } if session != self.session => {}
                Job::Append { records: more, kept, .. } => {
                    records.extend(more);
                    waiting.extend(kept);
                }
                Job::Load(reply) => {
                    self.keep(&mut records, &mut waiting);
                    let _ = reply.send(Loaded { durable: self.durable.clone(), session: self.session });
                }
                Job::Recover(reply) => {
                    self.keep(&mut records, &mut waiting);
                    let _ = reply.send(self.recover());
                }
                Job::Close(reply) => self.closed = Some(reply),
            }
        }
        self.keep(&mut records, &mut waiting);
    }

    /// What is reserved is reserved for this process only: it needs no disk, and a disk that fails must not lose it.
    fn reserve(&mut self, records: &mut Vec<Record>) {
        let reserved = records.extract_if(.., |record| matches!(record, Record::Reserve(_)));
        reserved.for_each(|record| self.durable.apply(&record));
    }

    fn keep(&mut self, records: &mut Vec<Record>, waiting: &mut Vec<oneshot::Sender<()>>) {
        let (records, waiting) = (std::mem::take(records), std::mem::take(waiting));
        if let Some(log) = &mut self.log {
            if self.state.borrow().failing.is_some() {
                // Nobody waits for notes; whoever waits is refused by their end.
                return self.forget(waiting);
            }
            if let Err(error) = log.append(records.iter()) {
                tracing::warn!(%error, "the journal cannot keep anything");
                self.state.send_modify(|state| state.failing = Some(error.to_string()));
                return self.forget(waiting);
            }
        }
        records.iter().for_each(|record| self.durable.apply(record));
        // Who asked may have crashed since; the records are kept all the same.
        for kept in waiting {
            let _ = kept.send(());
        }
        if let Some(log) = &mut self.log {
            if log.is_bloated()
                && let Err(error) = log.rewrite(&self.durable)
            {
                tracing::warn!(%error, "the journal's file could not be written anew; it grows");
            }
            let bytes = log.bytes();
            self.state.send_if_modified(|state| std::mem::replace(&mut state.bytes, bytes) != bytes);
        }
    }

    /// Refuses who waits, and all that was appended without knowing.
    fn forget(&mut self, waiting: Vec<oneshot::Sender<()>>) {
        if !waiting.is_empty() {
            self.session += 1;
        }
    }

    /// Whether records can be kept, after another try if they could not.
    fn recover(&mut self) -> bool {
        let Some(log) = self.log.as_mut().filter(|_| self.state.borrow().failing.is_some()) else { return true };
        let failing = log.recover(&self.durable).err().map(|error| error.to_string());
        let recovered = failing.is_none();
        if recovered {
            tracing::info!("the journal keeps records again");
        }
        self.state.send_modify(|state| state.failing = failing);
        recovered
    }
}
