//! What outlives an actor, and what outlives the process.

mod beacons;
mod data_dir;
mod journal;
mod log;

pub use beacons::{BeaconStorage, FileBeacons, MemoryBeacons};
pub use data_dir::{DataDir, StorageError, identity};
pub use journal::{Journal, JournalState, Loaded};
pub use log::{Beginning, Damage};
