#![doc = "A runtime for hierarchical peer-to-peer meshes."]
#![forbid(unsafe_code)]

pub mod codec;
pub mod config;
pub mod id;
pub mod level;
pub mod limits;
pub mod messages;
pub mod proto;
#[cfg(feature = "cli")]
pub mod sim;
pub mod time;
pub mod transport;
