//! Pure decisions about the mesh: no runtime, no clock, no dice of their own, no order that depends on a hash.
//!
//! A machine is stepped: `step(now, input, &mut effects)` and `tick(now, &mut effects)` when its `deadline()` has come.
//! The same code decides in a node and in the simulator.

pub mod account;
pub mod aggregate;
pub mod beacon;
pub mod budget;
pub mod dedup;
pub mod durable;
pub mod election;
pub mod event;
#[cfg(test)]
mod exactly_once;
pub mod frame;
pub mod geo;
pub mod link;
pub mod node;
pub mod outbox;
pub mod packet;
pub mod ranges;
pub mod relay;
pub mod retirement;
pub mod router;
pub mod sample;
pub mod selection;
pub mod sketch;
pub mod strategy;
pub mod summary;
pub mod topology;
