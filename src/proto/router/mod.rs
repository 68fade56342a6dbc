//! The router: where each packet goes, what becomes of samples, and who has answered a command.

mod commands;
mod early;
mod flow;
mod held;
mod machine;
mod receipts;
mod retire;
mod root;
mod route;
mod state;
mod strays;
mod telemetry;
#[cfg(test)]
mod tests;

pub use commands::{Outcome, Reply};
pub use machine::{Effect, Input, Machine, Settings, Snapshot};
pub use route::{RoutingDecision, decide};
pub use telemetry::{Counts, PublishError, Published, SampleId};
