//! HOW it all runs: all I/O, threads and policy. `main.rs` is the command line; `app.rs` is the one place that knows
//! all the parts.
//!
//! Must not be in here: how a thing speaks (`protocols`), what its words mean (`device-models`), the contract with firmware
//! (`firmware-bridge`).

pub mod admin;
pub mod admission;
pub mod app;
pub mod broker;
pub mod bus;
pub mod cameras;
pub mod cli;
pub mod clock;
pub mod config;
pub mod corrections;
pub mod credentials;
pub mod demo;
pub mod devices;
pub mod edge;
pub mod hls;
pub mod hooks;
pub mod http;
pub mod intake;
pub mod metrics;
pub mod outlet;
mod presence;
pub mod pull;
pub mod receive;
pub mod record;
pub mod relay;
pub mod shadow;
pub mod signing;
pub mod sim;
pub mod stream;
pub mod threads;
pub mod tls;
pub mod transport;
pub mod upstream;
pub mod webrtc;
