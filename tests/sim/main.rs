//! The simulator as proof: what forms, what survives, and that its invariants would notice.

mod chaos;
mod doctored;
mod faults;
mod scenarios;
mod support;
