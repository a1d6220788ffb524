//! OUR contract with firmware.
