//! What outlives an actor, and what outlives the process.

mod data_dir;
mod journal;

pub use data_dir::{DataDir, StorageError, identity};
pub use journal::Journal;
