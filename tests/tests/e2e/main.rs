//! End-to-end tests: the real binary, real peers, one process for all of them.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test stops at the first thing that is not as it should be"
)]

mod access;
mod arm;
mod check;
mod clocks;
mod complaints;
mod console;
mod demo;
mod destinations;
mod devices;
mod dialects;
mod docs;
mod durability;
mod enhanced;
mod formats;
mod forwarding;
mod gb28181;
mod gstreamer;
mod hls;
mod hostile;
mod http;
mod interop;
mod jt1078;
mod kafka;
mod load;
mod pull;
mod receipts;
mod records;
mod relays;
mod rtsp;
mod rtsp_in;
mod rules;
mod service;
mod settings;
mod shadow;
mod sound;
mod sparkplug;
mod store;
mod streams;
mod style;
mod tls;
mod trust;
mod webrtc;
