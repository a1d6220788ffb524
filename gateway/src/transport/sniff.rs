//! Several protocols on one port: the first bytes decide.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use protocols::Sniff;

use super::Language;
use super::wire::{Arrived, Wire};

/// Bytes after which an undecided connection is closed.
const PREFIX_MAX: usize = 1_024;
/// Time a peer has to send them.
const PREFIX_TIME_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(super) enum SniffError {
    #[error("its first bytes belong to no protocol of this port")]
    Unknown,
    #[error("it sent nothing to tell its protocol by")]
    Silent,
    #[error("it left before its protocol was known")]
    Gone,
}

/// Reads until one protocol says yes or all say no. One protocol alone needs no bytes.
pub(super) async fn decide<'a>(
    wire: &mut Wire,
    unread: &mut BytesMut,
    languages: &'a [Arc<Language>],
) -> Result<&'a Arc<Language>, SniffError> {
    if let [only] = languages {
        return Ok(only);
    }
    let deadline = tokio::time::Instant::now() + PREFIX_TIME_MAX;
    loop {
        if !unread.is_empty() {
            // In the order of the table: a language that says yes to a whole family of requests comes behind those that
            // know their own among them, and waits for them.
            let mut answers = languages.iter().map(|language| (language, language.row.sniff(unread)));
            match answers.find(|(_, answer)| *answer != Sniff::No) {
                Some((language, Sniff::Yes)) => return Ok(language),
                Some(_) if unread.len() < PREFIX_MAX => {}
                _ => return Err(SniffError::Unknown),
            }
        }
        match tokio::time::timeout_at(deadline, wire.read(unread)).await {
            Err(_) => return Err(SniffError::Silent),
            Ok(Ok(Arrived::Bytes(_))) => {}
            Ok(_) => return Err(SniffError::Gone),
        }
    }
}
