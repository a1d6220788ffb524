//! G.711 to AAC-LC, for players that know no G.711: browsers, most RTMP platforms. Runs on the control plane: a stream's
//! thread only hands packets over.
//!
//! Must not be in here: which streams get it, and where the frames go (`sound.rs`).

use bytes::Bytes;
use protocols::media::aac::AudioSpecificConfig;
use protocols::media::{Codec, Kind, Track, Unit, g711};
use syom::{EncodeOptions, Encoder};
use tokio::sync::mpsc;
use tracing::warn;

/// Bits a second: half of what G.711 takes, with less loss than G.711's own.
const BIT_RATE: u32 = 32_000;

/// Samples in a frame; the encoder's output begins one frame early.
const FRAME: i64 = 1024;

/// A packet further from the time that the samples before it make is taken at its word: a gap, or a clock that runs
/// differently. Media clock ticks, 60 ms: three packets of the common length.
const DRIFT_MAX: i64 = 5_400;

/// What a decoder of the frames is told: AAC-LC, 8 kHz, mono.
pub(super) fn config() -> Bytes {
    AudioSpecificConfig { object_type: 2, rate: g711::RATE, channels: 1 }.build()
}

/// One stream's transcoder: takes packets until there are no more, gives frames as long as somebody wants them.
pub(super) async fn run(mut packets: mpsc::Receiver<Unit>, frames: mpsc::Sender<Unit>) {
    let mut transcoder = match Transcoder::new() {
        Ok(transcoder) => transcoder,
        Err(error) => return warn!(error, "no AAC encoder"),
    };
    while let Some(packet) = packets.recv().await {
        if let Err(error) = transcoder.push(&packet) {
            // Not seen so far; without sound the stream goes on.
            return warn!(error, "AAC encoder");
        }
        for frame in transcoder.ready.drain(..) {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    }
}

struct Transcoder {
    encoder: Encoder,
    samples: Vec<f32>,
    ready: Vec<Unit>,
    clock: Clock,
}

impl Transcoder {
    fn new() -> Result<Self, String> {
        let options = EncodeOptions::raw().with_bitrate_bps(BIT_RATE);
        let encoder = Encoder::new(g711::RATE, 1, &options).map_err(|error| error.to_string())?;
        Ok(Self { encoder, samples: Vec::new(), ready: Vec::new(), clock: Clock::default() })
    }

    /// Takes one packet; finished frames are in `ready`.
    fn push(&mut self, packet: &Unit) -> Result<(), String> {
        self.samples.clear();
        self.samples.extend(g711::samples(packet.codec, &packet.data).map(|sample| f32::from(sample) / 32_768.0));
        self.clock.packet(packet.dts_90k, self.samples.len());
        let (clock, ready) = (&mut self.clock, &mut self.ready);
        let fed = self.encoder.feed(&[&self.samples], |frame| {
            let time = clock.frame();
            let data = Bytes::copy_from_slice(frame.payload);
            let (track, codec, kind) = (Track::Audio, Codec::Aac, Kind::Key);
            ready.push(Unit { track, codec, dts_90k: time, pts_90k: time, kind, data });
            Ok(())
        });
        fed.map(drop).map_err(|error| error.to_string())
    }
}

/// Times of frames from times of packets, in media clock ticks.
#[derive(Debug, Default)]
struct Clock {
    /// When the first sample of all would have been.
    begin: Option<i64>,
    samples: i64,
    frames: i64,
    last: i64,
}

impl Clock {
    fn ticks(samples: i64) -> i64 {
        samples.saturating_mul(90_000 / 1_000) / i64::from(g711::RATE / 1_000)
    }

    fn packet(&mut self, dts_90k: i64, samples: usize) {
        let so_far = Self::ticks(self.samples);
        let begin = *self.begin.get_or_insert_with(|| {
            self.last = dts_90k;
            dts_90k.saturating_sub(so_far)
        });
        let drift = dts_90k.saturating_sub(begin.saturating_add(so_far));
        if drift.abs() > DRIFT_MAX {
            self.begin = Some(begin.saturating_add(drift));
        }
        self.samples += samples as i64;
    }

    /// The time of the frame that is ready: what a decoder makes of it begins a frame earlier than what went in.
    fn frame(&mut self) -> i64 {
        let since = Self::ticks((self.frames - 1) * FRAME);
        self.frames += 1;
        self.last = self.begin.unwrap_or_default().saturating_add(since).max(self.last);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(dts_90k: i64, samples: usize) -> Unit {
        // A tone of 400 Hz, as loud as speech: 20 samples a turn.
        let byte = |at: usize| if at % 20 < 10 { 0x9a } else { 0x1a };
        let data = (0..samples).map(byte).collect::<Vec<u8>>().into();
        Unit { track: Track::Audio, codec: Codec::G711A, dts_90k, pts_90k: dts_90k, kind: Kind::Key, data }
    }

    fn times(packets: impl IntoIterator<Item = Unit>) -> Vec<i64> {
        let mut transcoder = Transcoder::new().unwrap();
        packets.into_iter().for_each(|packet| transcoder.push(&packet).unwrap());
        assert!(transcoder.ready.iter().all(|frame| !frame.data.is_empty() && frame.codec == Codec::Aac));
        transcoder.ready.iter().map(|frame| frame.dts_90k).collect()
    }

    #[test]
    fn the_encoder_makes_what_its_configuration_says() {
        assert_eq!(Transcoder::new().unwrap().encoder.asc(), &config()[..]);
        assert_eq!(config()[..], [0x15, 0x88]);
    }

    #[test]
    fn frames_follow_the_packets_times() {
        let steady = times((0..100).map(|n| packet(90_000 + n * 1_800, 160)));
        assert_eq!(steady[..4], [90_000, 90_000, 101_520, 113_040]);
        assert_eq!(steady.len(), 100 * 160 / 1024);
        // Jitter of a packet is smoothed.
        let jitter = times((0..100).map(|n| packet(90_000 + n * 1_800 + (n % 3) * 900, 160)));
        assert_eq!(jitter, steady);
    }

    #[test]
    fn a_gap_and_a_clock_that_runs_fast_are_followed_and_time_never_runs_back() {
        let gap = times((0..200).map(|n| packet(n * 1_800 + if n < 100 { 0 } else { 90_000 }, 160)));
        assert!(gap.windows(2).all(|pair| pair[0] <= pair[1]), "{gap:?}");
        let last = *gap.last().unwrap();
        assert!((200 * 1_800 + 90_000 - last - 3 * 11_520).abs() < 11_520, "{last}");
        // One packet in ten is lost, and its time with it.
        let lossy = times((0..1000).filter(|n| n % 10 != 0).map(|n| packet(n * 1_800, 160)));
        assert!(lossy.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!((1000 * 1_800 - lossy.last().unwrap()).abs() < 4 * 11_520);
        let back = times((0..200).map(|n| packet(if n < 100 { 900_000 } else { 0 } + n * 1_800, 160)));
        assert!(back.windows(2).all(|pair| pair[0] <= pair[1]));
    }
}
