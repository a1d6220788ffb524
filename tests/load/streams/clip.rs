//! The picture that is sent: a generated clip, taken apart into FLV tags, with a time stamp in every video frame.
//!
//! The stamp is an SEI message (H.264, D.1.7, unregistered user data) in front of the frame, so that every server passes it
//! on untouched: 16 bytes to recognise it by and 16 hexadecimal digits of microseconds.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};

/// What a stamp is recognised by. No zero bytes: nothing needs to be escaped.
pub(crate) const MARK: &[u8; 16] = b"sluicegate-load:";
/// Where the digits begin in a stamped video tag: frame type, packet type, composition time, length, SEI header.
const DIGITS_AT: usize = 5 + 4 + 3 + MARK.len();
const DIGITS: usize = 16;

/// A key frame of a quiet camera: its stamp and some of the picture.
const QUIET_LEN: usize = 1024;

const AUDIO: u8 = 8;
const VIDEO: u8 = 9;

/// One FLV tag.
#[derive(Debug, Clone)]
pub(crate) struct Tag {
    pub(crate) kind: u8,
    pub(crate) time_ms: u32,
    pub(crate) body: Vec<u8>,
}

/// A clip that can be repeated without a seam.
#[derive(Debug)]
pub(crate) struct Clip {
    /// Metadata and codec configuration.
    pub(crate) head: Vec<Tag>,
    /// Frames in order of decoding.
    pub(crate) frames: Vec<Tag>,
    pub(crate) length_ms: u32,
}

impl Tag {
    pub(crate) fn is_key(&self) -> bool {
        self.kind == VIDEO && self.body.first().is_some_and(|b| b >> 4 == 1)
    }

    fn is_config(&self) -> bool {
        match self.kind {
            VIDEO => self.body.get(1) == Some(&0),
            AUDIO => self.body.first().is_some_and(|b| b >> 4 == 10) && self.body.get(1) == Some(&0),
            _ => true,
        }
    }

    /// Writes the present moment into the frame's stamp. The codec's configuration has none: written into it, the digits
    /// would stand in its parameter sets, and a server that reads those closes on the camera.
    pub(crate) fn stamp(&mut self, epoch: Instant) {
        if self.kind == VIDEO
            && !self.is_config()
            && let Some(digits) = self.body.get_mut(DIGITS_AT..DIGITS_AT + DIGITS)
        {
            digits.copy_from_slice(format!("{:016x}", epoch.elapsed().as_micros()).as_bytes());
        }
    }

    /// Makes room for the stamp.
    fn with_stamp(mut self) -> Self {
        if self.kind == VIDEO {
            let payload = MARK.len() + DIGITS;
            let mut sei = ((3 + payload + 1) as u32).to_be_bytes().to_vec();
            sei.extend([0x06, 0x05, payload as u8]);
            sei.extend(MARK);
            sei.extend([b'0'; DIGITS]);
            sei.push(0x80);
            self.body.splice(5..5, sei);
        }
        self
    }
}

impl Clip {
    /// Takes an FLV file apart.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
        let mut rest = bytes.get(13..).context("not an FLV file")?;
        let (mut head, mut frames) = (Vec::new(), Vec::new());
        while let Some((header, after)) = rest.split_first_chunk::<11>() {
            let [kind, a, b, c, t0, t1, t2, t3, ..] = *header;
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            let (body, after) = after.split_at_checked(len).context("a tag is cut off")?;
            let tag = Tag { kind, time_ms: u32::from_be_bytes([t3, t0, t1, t2]), body: body.to_vec() };
            if tag.is_config() {
                head.push(tag);
            } else if tag.body.len() > 5 && (tag.is_key() || !frames.is_empty()) {
                frames.push(tag.with_stamp());
            }
            rest = after.get(4..).unwrap_or_default();
        }
        ensure!(frames.first().is_some_and(Tag::is_key), "the clip has no key frame");
        let last = frames.iter().filter(|t| t.kind == VIDEO).map(|t| t.time_ms).max().unwrap_or(0);
        Ok(Self { head, frames, length_ms: last + 40 })
    }

    /// Of the same camera, next to nothing: a short key frame every so often.
    pub(crate) fn quiet(&self, interval_ms: u32) -> anyhow::Result<Self> {
        let mut frame = self.frames.first().context("a key frame")?.clone();
        frame.body.truncate(QUIET_LEN);
        frame.time_ms = 0;
        let head = self.head.iter().filter(|tag| tag.kind == VIDEO).cloned().collect();
        Ok(Self { head, frames: vec![frame], length_ms: interval_ms })
    }

    /// Media bits a second, Mb/s.
    pub(crate) fn rate(&self) -> f64 {
        let bytes: usize = self.frames.iter().map(|tag| tag.body.len()).sum();
        bytes as f64 * 8e-3 / f64::from(self.length_ms)
    }

    /// Bytes of the largest group of pictures, with its audio.
    pub(crate) fn gop_bytes(&self) -> usize {
        let starts = self.frames.iter().enumerate().filter(|(_, tag)| tag.is_key()).map(|(at, _)| at);
        let ends = starts.clone().skip(1).chain([self.frames.len()]);
        let bytes = |(from, to)| self.frames.get(from..to).unwrap_or_default().iter().map(|tag| tag.body.len()).sum();
        starts.zip(ends).map(bytes).max().unwrap_or(0)
    }
}

/// The time since `epoch` of the first stamp in the bytes, and where the stamp ends.
pub(crate) fn stamp_in(bytes: &[u8]) -> Option<(u64, usize)> {
    let at = bytes.windows(MARK.len()).position(|w| w == MARK)?;
    let end = at + MARK.len() + DIGITS;
    let digits = std::str::from_utf8(bytes.get(at + MARK.len()..end)?).ok()?;
    Some((u64::from_str_radix(digits, 16).ok()?, end))
}

/// 10 s of a test pattern: H.264 of so many kbit/s at 25 fps with a key frame every 2 s, and AAC.
pub(crate) fn make(file: &Path, video_kbps: u32) -> anyhow::Result<()> {
    let (rate, buffer) = (format!("{video_kbps}k"), format!("{}k", video_kbps / 2));
    let status = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-y"])
        .args(["-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25,noise=alls=12:allf=t,format=yuv420p"])
        .args(["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=44100", "-t", "10"])
        .args(["-c:v", "libx264", "-preset", "veryfast", "-profile:v", "main", "-bf", "0", "-g", "50"])
        .args(["-keyint_min", "50", "-sc_threshold", "0", "-b:v", &rate, "-maxrate", &rate, "-bufsize", &buffer])
        .args(["-c:a", "aac", "-b:a", "64k", "-ac", "1", "-flvflags", "no_duration_filesize", "-f", "flv"])
        .arg(file)
        .status()
        .context("ffmpeg (is its package installed?)")?;
    ensure!(status.success(), "ffmpeg could not make the clip");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn video(packet: u8) -> Tag {
        let body = [[0x17, packet, 0, 0, 0].as_slice(), &[0xab; 60]].concat();
        Tag { kind: VIDEO, time_ms: 0, body }
    }

    #[test]
    fn a_frame_carries_its_moment_and_the_configuration_stays_as_it_was() {
        let epoch = Instant::now();
        let mut frame = video(1).with_stamp();
        frame.stamp(epoch);
        assert!(stamp_in(&frame.body).is_some_and(|(us, _)| u128::from(us) <= epoch.elapsed().as_micros()));
        let mut configuration = video(0);
        configuration.stamp(epoch);
        assert_eq!(configuration.body, video(0).body);
    }
}
