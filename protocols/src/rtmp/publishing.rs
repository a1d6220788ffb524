//! What a publisher sends, as units: timestamps unwrapped, aggregates taken apart, unknown codecs said once.

use bytes::{Buf, Bytes};

use super::frame::{Message, kind};
use crate::media::MediaError;
use crate::media::flv::{Demux, TagType};
use crate::session::{Fault, Outbox, Output};

#[derive(Debug, Default)]
pub(super) struct Publishing {
    demux: Demux,
    clock: Clock,
    /// An audio codec we do not carry was said already.
    audio_refused: bool,
}

impl Publishing {
    /// Turns a media message into units. A broken unit is a recoverable fault; video we cannot carry is fatal, audio
    /// is left out after one fault.
    pub(super) fn message(&mut self, message: Message, out: &mut Outbox) -> Result<(), Fault> {
        if message.type_id == kind::AGGREGATE {
            return self.aggregate(message, out);
        }
        let mut body = message.payload;
        let tag = match message.type_id {
            kind::DATA_AMF3 => {
                // Script data behind one byte that says how it is encoded.
                body.advance(usize::from(body.first() == Some(&0)));
                Some(TagType::Script)
            }
            other => TagType::of(other),
        };
        tag.map_or(Ok(()), |tag| self.unit(tag, message.timestamp, body, out))
    }

    fn unit(&mut self, tag: TagType, timestamp: u32, body: Bytes, out: &mut Outbox) -> Result<(), Fault> {
        let dts_ms = self.clock.unwrap(timestamp);
        let left_out = self.demux.left_out();
        match self.demux.unit(tag, dts_ms, body) {
            Ok(Some(unit)) => out.push(Output::Unit(unit)),
            Ok(None) => {}
            Err(error @ MediaError::Unsupported { .. }) if tag == TagType::Video => {
                return Err(Fault::fatal(format!("{error}: send H.264, H.265, AV1 or VP9")).ours());
            }
            Err(MediaError::Unsupported { .. }) if self.audio_refused => {}
            Err(error) => {
                let unsupported = matches!(error, MediaError::Unsupported { .. });
                self.audio_refused |= unsupported;
                let fault = Fault::recoverable(error.to_string());
                return Err(if unsupported { fault.ours() } else { fault });
            }
        }
        if self.demux.left_out() > left_out {
            return Err(
                Fault::recoverable("one more track of a kind: one video and one audio track are carried").ours()
            );
        }
        Ok(())
    }

    /// 7.1.6: FLV tags in one message; their times count from the first tag's.
    fn aggregate(&mut self, message: Message, out: &mut Outbox) -> Result<(), Fault> {
        let mut rest = message.payload;
        let mut first = None;
        let mut outcome = Ok(());
        while let Some(&[type_id, l0, l1, l2, t0, t1, t2, high, _, _, _]) = rest.first_chunk() {
            let len = u32::from_be_bytes([0, l0, l1, l2]) as usize;
            let time = u32::from_be_bytes([high, t0, t1, t2]);
            rest.advance(11);
            if rest.len() < len {
                return Err(Fault::recoverable("aggregate message with a cut tag"));
            }
            let body = rest.split_to(len);
            rest.advance(rest.len().min(4));
            let offset = time.wrapping_sub(*first.get_or_insert(time));
            if let Some(tag) = TagType::of(type_id) {
                let unit = self.unit(tag, message.timestamp.wrapping_add(offset), body, out);
                outcome = outcome.and(unit);
            }
        }
        outcome
    }
}

/// Turns wrapping 32-bit milliseconds into ones that never wrap.
#[derive(Debug, Default)]
struct Clock {
    last: Option<(u32, i64)>,
}

impl Clock {
    /// A step of less than 2^31 ms (24.8 days) either way is a step, not a wrap.
    fn unwrap(&mut self, timestamp: u32) -> i64 {
        let unwrapped = match self.last {
            None => i64::from(timestamp),
            Some((before, unwrapped)) => unwrapped + i64::from(timestamp.wrapping_sub(before) as i32),
        };
        self.last = Some((timestamp, unwrapped));
        unwrapped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{BufMut, BytesMut};

    #[test]
    fn a_wrap_goes_on_and_a_step_back_stays_one() {
        let mut clock = Clock::default();
        let times: Vec<i64> = [u32::MAX - 10, 5, u32::MAX - 3, 30].map(|time| clock.unwrap(time)).to_vec();
        let max = i64::from(u32::MAX);
        assert_eq!(times, [max - 10, max + 6, max - 3, max + 31]);
        let mut clock = Clock::default();
        assert_eq!([100, 40, 0].map(|time| clock.unwrap(time)), [100, 40, 0]);
    }

    fn units(out: &mut Outbox) -> Vec<(i64, Bytes)> {
        std::iter::from_fn(|| out.pop())
            .map(|output| match output {
                Output::Unit(unit) => (unit.dts_ms(), unit.data),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn message(type_id: u8, payload: &[u8]) -> Message {
        Message { type_id, stream_id: 1, timestamp: 1_000, payload: Bytes::copy_from_slice(payload) }
    }

    #[test]
    fn an_aggregate_is_taken_apart() {
        let mut payload = BytesMut::new();
        for (time, byte) in [(500u32, 1u8), (523, 2)] {
            payload.put_slice(&[8, 0, 0, 3]);
            payload.put_slice(&time.to_be_bytes()[1..]);
            payload.put_slice(&[0, 0, 0, 0, 0xaf, 1, byte, 0, 0, 0, 14]);
        }
        let (mut publishing, mut out) = (Publishing::default(), Outbox::default());
        publishing.message(message(kind::AGGREGATE, &payload), &mut out).unwrap();
        let expected = [(1_000, Bytes::from_static(&[1])), (1_023, Bytes::from_static(&[2]))];
        assert_eq!(units(&mut out), expected);
        let cut = payload.len() - 6;
        assert!(publishing.message(message(kind::AGGREGATE, &payload[..cut]), &mut out).is_err());
    }

    #[test]
    fn video_we_cannot_carry_is_fatal_and_audio_is_said_once() {
        let (mut publishing, mut out) = (Publishing::default(), Outbox::default());
        let fault = publishing.message(message(kind::VIDEO, &[0x22, 0, 0]), &mut out).unwrap_err();
        assert!(fault.fatal && fault.what.contains("codec 2"), "{fault}");
        let speex = message(kind::AUDIO, &[0xb2, 1]);
        assert!(!publishing.message(speex.clone(), &mut out).unwrap_err().fatal);
        assert_eq!(publishing.message(speex, &mut out), Ok(()));
        assert!(out.is_empty());
    }
}
