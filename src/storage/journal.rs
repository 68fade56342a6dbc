//! The journal: keeps durable records for the router, whichever incarnation it is in.
//!
//! In memory for now: it survives a crash of the router, not of the process. The supervisor owns it.

use tokio::sync::{mpsc, oneshot};

use crate::limits::Limits;
use crate::proto::durable::{Durable, Record};

enum Job {
    Append { records: Vec<Record>, kept: oneshot::Sender<()> },
    Load(oneshot::Sender<Durable>),
}

/// A handle on the task that owns the records.
#[derive(Clone, Debug)]
pub struct Journal(mpsc::Sender<Job>);

impl Journal {
    /// Starts a journal with this content. It ends with its last handle.
    pub fn in_memory(mut durable: Durable) -> Self {
        let (jobs, mut queue) = mpsc::channel(Limits::JOURNAL_QUEUE);
        tokio::spawn(async move {
            while let Some(job) = queue.recv().await {
                match job {
                    Job::Append { records, kept } => {
                        records.iter().for_each(|record| durable.apply(record));
                        // Who asked may have crashed since; the records are kept all the same.
                        let _ = kept.send(());
                    }
                    Job::Load(reply) => drop(reply.send(durable.clone())),
                }
            }
        });
        Self(jobs)
    }

    /// Keeps records; resolves when they are kept, `false` if they could not be.
    pub fn append(&self, records: Vec<Record>) -> impl Future<Output = bool> + Send + use<> {
        let (kept, done) = oneshot::channel();
        let queued = self.0.try_send(Job::Append { records, kept });
        async move { queued.is_ok() && done.await.is_ok() }
    }

    /// Everything that was kept.
    pub async fn load(&self) -> Option<Durable> {
        let (reply, loaded) = oneshot::channel();
        self.0.send(Job::Load(reply)).await.ok()?;
        loaded.await.ok()
    }
}
