//! End-to-end tests: the real binary, real peers, one process for all of them.

mod arm;
mod check;
mod devices;
mod docs;
mod service;
mod streams;
mod style;
