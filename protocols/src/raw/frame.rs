//! Bytes to frames: where one line ends and the next begins. Says nothing about what a line means.

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;

/// How frames are told apart. Declared framings (length fields, delimiters, fixed sizes) will be further variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Framing {
    /// LF ends a frame; a CR before it belongs to the end.
    #[default]
    Line,
}

/// Takes frames off a stream's buffer.
#[derive(Debug)]
pub(super) struct Splitter {
    framing: Framing,
    frame_max: usize,
    /// Bytes at the front of the buffer that hold no end of frame.
    searched: usize,
    /// The frame was too long: everything up to its end is thrown away.
    skipping: bool,
}

/// A frame longer than the limit. Reported once; its rest is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

// === impl Splitter ===

impl Splitter {
    pub(super) fn new(framing: Framing, frame_max: usize) -> Self {
        Self { framing, frame_max, searched: 0, skipping: false }
    }

    /// The next whole frame without its end, or `None` until more bytes come.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Option<Result<Bytes, TooLong>> {
        let Framing::Line = self.framing;
        loop {
            let unseen = buffer.get(self.searched..).unwrap_or_default();
            let end = unseen.iter().position(|b| *b == b'\n').map(|at| self.searched + at);
            let Some(end) = end else { return self.unfinished(buffer) };
            self.searched = 0;
            let mut frame = buffer.split_to(end + 1).freeze();
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            trim_end(&mut frame);
            return Some(if frame.len() > self.frame_max { Err(TooLong) } else { Ok(frame) });
        }
    }

    fn unfinished(&mut self, buffer: &mut BytesMut) -> Option<Result<Bytes, TooLong>> {
        self.searched = buffer.len();
        // A CR at the end may be half of the line's end.
        let long = buffer.len() > self.frame_max + 1 || (buffer.len() > self.frame_max && !buffer.ends_with(b"\r"));
        if self.skipping || long {
            buffer.advance(buffer.len());
            self.searched = 0;
        }
        (long && !std::mem::replace(&mut self.skipping, true)).then_some(Err(TooLong))
    }
}

/// The frames of one packet: the last one needs no end.
pub(super) fn split(framing: Framing, packet: &Bytes) -> impl Iterator<Item = Bytes> {
    let Framing::Line = framing;
    let mut rest = packet.clone();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |at| at + 1);
        let mut frame = rest.split_to(end);
        trim_end(&mut frame);
        Some(frame)
    })
}

fn trim_end(frame: &mut Bytes) {
    for end in [b'\n', b'\r'] {
        if frame.last() == Some(&end) {
            frame.truncate(frame.len() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(chunks: &[&[u8]]) -> Vec<Result<Bytes, TooLong>> {
        let mut splitter = Splitter::new(Framing::Line, 5);
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for chunk in chunks {
            buffer.extend_from_slice(chunk);
            while let Some(frame) = splitter.next(&mut buffer) {
                frames.push(frame);
            }
            assert!(buffer.len() <= 6, "the buffer stays bounded");
        }
        frames
    }

    #[test]
    fn lines_end_with_lf_or_crlf() {
        assert_eq!(frames(&[b"a\r\n\nbc\nd"]), [Ok("a".into()), Ok("".into()), Ok("bc".into())]);
        assert_eq!(frames(&[b"12345\n", b"12345\r", b"\n"]), [Ok("12345".into()), Ok("12345".into())]);
    }

    #[test]
    fn a_long_line_is_said_once_and_skipped() {
        let expected = [Err(TooLong), Ok("ok".into())];
        assert_eq!(frames(&[b"123456\nok\n"]), expected);
        assert_eq!(frames(&[b"123456", b"789", b"0\nok\n"]), expected);
        assert_eq!(frames(&[b"12345", b"\r", b"6", b"7\n", b"ok\n"]), expected);
    }

    #[test]
    fn a_packet_needs_no_last_line_end() {
        let packet = Bytes::from_static(b"a\r\nb\n\nc");
        let lines: Vec<Bytes> = split(Framing::Line, &packet).collect();
        assert_eq!(lines, ["a", "b", "", "c"]);
    }
}
