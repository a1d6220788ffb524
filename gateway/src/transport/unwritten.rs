//! What waits to be written to one peer: in one buffer, and pieces of streams as they are shared with whoever else gets
//! them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};

/// From so many bytes on a piece is not copied, but kept as it came until the peer has taken it.
const SHARED_MIN: usize = 8 * 1024;
/// A peer has this long to take what is shared: a reader that trickles must not keep alive what others have long had.
pub(super) const SHARED_TIME_MAX: Duration = Duration::from_secs(30);

/// In order: the buffer, then the shared pieces.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    buffer: BytesMut,
    /// Whether large pieces are shared: those of a session that fetches them.
    shares: bool,
    shared: Option<Box<Shared>>,
}

#[derive(Debug)]
struct Shared {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    since: Instant,
}

impl Unwritten {
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        if !self.shares || (self.shared.is_none() && bytes.len() < SHARED_MIN) {
            self.buffer.extend_from_slice(&bytes);
            return;
        }
        let empty = || Box::new(Shared { pieces: VecDeque::new(), bytes: 0, since: Instant::now() });
        let shared = self.shared.get_or_insert_with(empty);
        shared.bytes += bytes.len();
        shared.pieces.push_back(bytes);
    }

    /// From now on large pieces are not copied.
    pub(super) fn share(&mut self) {
        self.shares = true;
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.has_remaining()
    }

    pub(super) fn len(&self) -> usize {
        self.remaining()
    }

    /// By when the peer must have taken what is shared.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.shared.as_ref().map(|shared| shared.since + SHARED_TIME_MAX)
    }

    /// An idle connection holds no buffer.
    pub(super) fn shrink(&mut self) {
        // Not asked for its capacity: what is left of a buffer read to its end says 0 and still holds it.
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}

impl Buf for Unwritten {
    fn remaining(&self) -> usize {
        self.buffer.len() + self.shared.as_ref().map_or(0, |shared| shared.bytes)
    }

    fn chunk(&self) -> &[u8] {
        if !self.buffer.is_empty() {
            return &self.buffer;
        }
        self.shared.as_ref().and_then(|shared| shared.pieces.front()).map_or(&[], |piece| piece)
    }

    fn advance(&mut self, count: usize) {
        let from_buffer = count.min(self.buffer.len());
        self.buffer.advance(from_buffer);
        let mut left = count - from_buffer;
        let Some(shared) = &mut self.shared else { return };
        while left > 0 {
            let Some(piece) = shared.pieces.front_mut() else { break };
            let taken = left.min(piece.len());
            piece.advance(taken);
            shared.bytes -= taken;
            left -= taken;
            if piece.is_empty() {
                shared.pieces.pop_front();
            }
        }
        if shared.pieces.is_empty() {
            self.shared = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_comes_out_in_order_and_large_pieces_are_not_copied() {
        let mut unwritten = Unwritten::default();
        unwritten.share();
        let large = Bytes::from(vec![2; SHARED_MIN]);
        let at = large.as_ptr();
        unwritten.push(Bytes::from_static(&[1; 100]));
        unwritten.push(large);
        unwritten.push(Bytes::from_static(&[3; 10]));
        assert_eq!(unwritten.len(), 110 + SHARED_MIN);
        unwritten.advance(100);
        assert_eq!(unwritten.chunk().as_ptr(), at);
        assert!(unwritten.deadline().is_some());
        unwritten.advance(SHARED_MIN - 1);
        assert_eq!(unwritten.chunk(), [2]);
        unwritten.advance(2);
        assert_eq!(unwritten.chunk(), [3; 9]);
        unwritten.advance(9);
        assert!(unwritten.is_empty() && unwritten.deadline().is_none());
    }
}
