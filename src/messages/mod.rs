//! What is said: the wire form of frames, and the messages of each actor.

pub mod wire;
