//! Real processes: started, killed with -9, asked over their sockets.

mod account;
mod demo;
mod durable;
mod four;
mod messages;
mod run;
mod support;
