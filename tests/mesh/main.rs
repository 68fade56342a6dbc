//! Whole nodes with all their actors: over the switchboard under virtual time, and over QUIC on loopback.

mod backend;
mod conformance;
mod hierarchy;
mod host;
mod ractor_facts;
mod supervision;
mod support;
