//! The simulator: the machines of many nodes under virtual time, from one seed, with faults on a schedule.
//!
//! It runs the same decision code as a node. A run is a pure function of its scenario and seed.

mod chaos;
mod commands;
mod disk;
mod faults;
mod generate;
mod invariants;
mod network;
mod node;
mod partitions;
mod recorder;
mod report;
mod roots;
mod scenario;
mod settled;
mod target;
mod truth;
mod wire;
mod world;

pub use report::{Placed, Report, Summary};
pub use scenario::{BUILT_IN, Scenario, ScenarioError};
pub use world::{Doctor, World};
