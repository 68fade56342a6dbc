#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod actors;
#[cfg(feature = "cli")]
pub mod admin;
pub mod codec;
pub mod config;
pub mod id;
pub mod level;
pub mod limits;
pub mod messages;
pub mod metrics;
pub mod node;
pub mod proto;
#[cfg(feature = "cli")]
pub mod sim;
pub mod storage;
pub mod time;
pub mod transport;

pub use crate::config::Config;
pub use crate::id::{Keypair, NodeId, NodeName};
pub use crate::level::{Level, Levels};
pub use crate::messages::{EventRecord, Failing, Subsystem};
pub use crate::node::{Node, NodeBuilder, NodeError, SpawnError};
pub use crate::proto::event::Event;
pub use crate::proto::geo::GeoPoint;
pub use crate::proto::packet::Target;
pub use crate::proto::sample::Telemetry;
