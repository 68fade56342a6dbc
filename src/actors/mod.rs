//! What is done: thin shells around the machines, addresses that outlive actors, and the supervisor.

mod address;
mod beacon;
mod context;
mod counters;
mod discovery;
mod janitor;
mod link;
mod metrics;
mod router;
mod shell;
mod supervisor;
mod topology;
mod transport;

pub use address::{Address, AskError, Envelope, MailboxLevel, Undelivered};
pub use context::{Addresses, Context};
pub use counters::Counters;
pub use supervisor::{ActorReport, ExitKind, HostActor, LastExit, NodeExit, NodeSupervisor, SupervisorMessage};
