//! What the end-to-end tests share: starting the binary and its peers.
