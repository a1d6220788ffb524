//! Firmware update over a link: an image is offered, sent in chunks from where the device stands, and proved by SHA-256.
//!
//! Both ends are here: [`Sender`] for the gateway, [`Receiver`] for the device, over a [`Slot`] that the firmware
//! implements on its flash. Either end may restart at any moment: the gateway offers again, the device answers with the
//! offset it has stored, and the transfer goes on there.
//!
//! The SHA-256 proves that the image arrived whole, not who made it: a boot loader must check the image's own signature.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::link::MESSAGE_MAX;
use crate::message::{Chunk, Offer, Outcome, Verdict, Want};

/// Bytes of image in one chunk: a message less the envelope (tags, lengths, offset: at most 16 bytes).
pub const CHUNK_MAX: usize = MESSAGE_MAX - 16;
/// Bytes read back at a time to prove the image: a small microcontroller's stack must hold them.
const READ_LEN: usize = 256;

/// Why a message about an update makes no sense here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    #[error("an image of {0} bytes; it has 1 to {max}", max = u32::MAX)]
    Size(usize),
    #[error("the device speaks of another image")]
    OtherImage,
    #[error("the device wants byte {offset} of an image of {size}")]
    Offset { offset: u32, size: u32 },
}

/// The gateway's end: one image for one device.
#[derive(Debug, Clone)]
pub struct Sender {
    version: String,
    image: Bytes,
    size: u32,
    sha256: [u8; 32],
    /// Where the next chunk starts; `None` until the device wants something.
    position: Option<u32>,
    verdict: Option<Verdict>,
}

/// What the device has of an image; lives in the slot and survives restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub sha256: [u8; 32],
    pub size: u32,
    /// Bytes stored from the start, without a hole.
    pub stored: u32,
}

/// The device's storage for one image, implemented by firmware. What an operation did before an error or a power cut
/// does not matter, as long as [`progress`](Self::progress) is the last one saved.
pub trait Slot {
    type Error: fmt::Display;

    /// Bytes an image may have.
    fn capacity(&self) -> u32;
    /// Makes room for an image of this size.
    fn erase(&mut self, size: u32) -> Result<(), Self::Error>;
    /// The same bytes may be written to the same place twice.
    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Self::Error>;
    fn read(&mut self, offset: u32, into: &mut [u8]) -> Result<(), Self::Error>;
    /// The progress saved last, also before a restart.
    fn progress(&self) -> Option<Progress>;
    /// Replaces the saved progress, all of it or not at all. Everything written before must be stored by then.
    fn save(&mut self, progress: Option<Progress>) -> Result<(), Self::Error>;
}

/// The device's end.
#[derive(Debug)]
pub struct Receiver<S> {
    slot: S,
}

/// What the device says to an offer or a chunk.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Want(Want),
    Verdict(Verdict),
}

// === impl Sender ===

impl Sender {
    pub fn new(version: impl Into<String>, image: Bytes) -> Result<Self, UpdateError> {
        let size = u32::try_from(image.len()).ok().filter(|size| *size > 0).ok_or(UpdateError::Size(image.len()))?;
        let sha256 = Sha256::digest(&image).into();
        Ok(Self { version: version.into(), image, size, sha256, position: None, verdict: None })
    }

    /// To be sent at the start, and again whenever the link or the device has started anew.
    pub fn offer(&self) -> Offer {
        Offer { version: self.version.clone(), size: self.size, sha256: self.sha256.to_vec() }
    }

    /// The device says where to go on.
    pub fn want(&mut self, want: &Want) -> Result<(), UpdateError> {
        if want.sha256 != self.sha256 {
            return Err(UpdateError::OtherImage);
        }
        if want.offset >= self.size {
            return Err(UpdateError::Offset { offset: want.offset, size: self.size });
        }
        self.position = Some(want.offset);
        Ok(())
    }

    /// The next chunk, of at most `length` (and [`CHUNK_MAX`]) bytes. Ask when the link can send.
    pub fn next_chunk(&mut self, length: usize) -> Option<Chunk> {
        if self.verdict.is_some() {
            return None;
        }
        let offset = self.position.filter(|offset| *offset < self.size)?;
        let start = offset as usize;
        let end = start.saturating_add(length.clamp(1, CHUNK_MAX)).min(self.image.len());
        let data = self.image.get(start..end)?.to_vec();
        self.position = u32::try_from(end).ok();
        Some(Chunk { offset, data })
    }

    /// The device says how it ended.
    pub fn verdict(&mut self, verdict: Verdict) -> Result<(), UpdateError> {
        if verdict.sha256 != self.sha256 {
            return Err(UpdateError::OtherImage);
        }
        self.verdict = Some(verdict);
        Ok(())
    }

    /// How it ended, once the device has said so.
    pub fn ended(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// Bytes sent, of how many.
    pub fn progress(&self) -> (u32, u32) {
        (self.position.unwrap_or(0), self.size)
    }
}

// === impl Receiver ===

impl<S: Slot> Receiver<S> {
    pub fn new(slot: S) -> Self {
        Self { slot }
    }

    pub fn slot(&self) -> &S {
        &self.slot
    }

    pub fn into_slot(self) -> S {
        self.slot
    }

    /// Goes on with the image if it is the one begun, else begins it.
    pub fn offer(&mut self, offer: &Offer) -> Answer {
        let Ok(sha256) = <[u8; 32]>::try_from(offer.sha256.as_slice()) else {
            return verdict(&offer.sha256, Outcome::Refused, "the SHA-256 must have 32 bytes");
        };
        if offer.size == 0 || offer.size > self.slot.capacity() {
            let reason = format!("an image of {} bytes; there is room for {}", offer.size, self.slot.capacity());
            return verdict(&sha256, Outcome::Refused, reason);
        }
        let begun = self.slot.progress().filter(|begun| begun.sha256 == sha256 && begun.size == offer.size);
        let progress = begun.unwrap_or(Progress { sha256, size: offer.size, stored: 0 });
        if begun.is_none() {
            // Forget the old image first: its bytes go now.
            let fresh = self.slot.save(None).and_then(|()| self.slot.erase(offer.size));
            if let Err(error) = fresh.and_then(|()| self.slot.save(Some(progress))) {
                return verdict(&sha256, Outcome::Refused, error.to_string());
            }
        }
        self.go_on(progress)
    }

    /// Stores a chunk. `None`: nothing to say, more is expected.
    pub fn chunk(&mut self, chunk: &Chunk) -> Option<Answer> {
        let mut progress = self.slot.progress()?;
        if chunk.offset < progress.stored {
            return None;
        }
        if chunk.offset > progress.stored {
            return Some(want(&progress));
        }
        let length = u32::try_from(chunk.data.len()).ok();
        let Some(stored) = length.and_then(|length| progress.stored.checked_add(length)) else {
            return Some(want(&progress));
        };
        if stored > progress.size {
            let reason = format!("a chunk up to byte {stored} of an image of {}", progress.size);
            return Some(verdict(&progress.sha256, Outcome::Refused, reason));
        }
        progress.stored = stored;
        let kept = self.slot.write(chunk.offset, &chunk.data).and_then(|()| self.slot.save(Some(progress)));
        if let Err(error) = kept {
            return Some(verdict(&progress.sha256, Outcome::Refused, error.to_string()));
        }
        (stored == progress.size).then(|| self.go_on(progress))
    }

    /// Asks for what is missing, or proves what is there.
    fn go_on(&mut self, progress: Progress) -> Answer {
        if progress.stored < progress.size {
            return want(&progress);
        }
        match self.digest(progress.size) {
            Ok(found) if found == progress.sha256 => verdict(&progress.sha256, Outcome::Verified, ""),
            Ok(_) => {
                let reason = match self.slot.save(None) {
                    Ok(()) => "the stored image has another SHA-256".to_owned(),
                    Err(error) => format!("the stored image has another SHA-256, and stays: {error}"),
                };
                verdict(&progress.sha256, Outcome::Corrupt, reason)
            }
            Err(error) => verdict(&progress.sha256, Outcome::Refused, error.to_string()),
        }
    }

    /// Of what is stored, not of what was sent.
    fn digest(&mut self, size: u32) -> Result<[u8; 32], S::Error> {
        let mut sha256 = Sha256::new();
        let mut buffer = [0; READ_LEN];
        let mut offset = 0;
        while offset < size {
            let length = (size - offset).min(READ_LEN as u32);
            let (part, _) = buffer.split_at_mut(length as usize);
            self.slot.read(offset, part)?;
            sha256.update(part);
            offset += length;
        }
        Ok(sha256.finalize().into())
    }
}

fn want(progress: &Progress) -> Answer {
    Answer::Want(Want { sha256: progress.sha256.to_vec(), offset: progress.stored })
}

fn verdict(sha256: &[u8], outcome: Outcome, reason: impl Into<String>) -> Answer {
    Answer::Verdict(Verdict { sha256: sha256.to_vec(), outcome: outcome.into(), reason: reason.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 100;

    /// Flash that loses its power at the operation `dies_at`, in the middle of it.
    #[derive(Debug, Clone)]
    struct Flash {
        bytes: Vec<u8>,
        saved: Option<Progress>,
        operations: usize,
        dies_at: usize,
    }

    impl Flash {
        fn new(capacity: usize) -> Self {
            Self { bytes: vec![0; capacity], saved: None, operations: 0, dies_at: usize::MAX }
        }

        fn alive(&mut self) -> Result<(), &'static str> {
            self.operations += 1;
            if self.operations < self.dies_at { Ok(()) } else { Err("no power") }
        }
    }

    impl Slot for Flash {
        type Error = &'static str;

        fn capacity(&self) -> u32 {
            self.bytes.len() as u32
        }

        fn erase(&mut self, size: u32) -> Result<(), &'static str> {
            let alive = self.alive();
            let done = if alive.is_ok() { size } else { size / 2 };
            self.bytes[..done as usize].fill(0xff);
            alive
        }

        fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), &'static str> {
            let alive = self.alive();
            let done = if alive.is_ok() { bytes.len() } else { bytes.len() / 2 };
            self.bytes[offset as usize..][..done].copy_from_slice(&bytes[..done]);
            alive
        }

        fn read(&mut self, offset: u32, into: &mut [u8]) -> Result<(), &'static str> {
            self.alive()?;
            into.copy_from_slice(&self.bytes[offset as usize..][..into.len()]);
            Ok(())
        }

        fn progress(&self) -> Option<Progress> {
            self.saved
        }

        fn save(&mut self, progress: Option<Progress>) -> Result<(), &'static str> {
            self.alive()?;
            self.saved = progress;
            Ok(())
        }
    }

    fn image() -> Bytes {
        (0..1234_u32).map(|n| (n * 7 + n / 256) as u8).collect()
    }

    /// Sends until a verdict, or until `chunks` chunks and one are stored; the answer to the last is lost.
    fn transfer(sender: &mut Sender, receiver: &mut Receiver<Flash>, chunks: usize) -> Option<Outcome> {
        let mut answer = Some(receiver.offer(&sender.offer()));
        for _ in 0..=chunks {
            match answer {
                Some(Answer::Verdict(verdict)) => {
                    sender.verdict(verdict).unwrap();
                    return sender.ended().map(Verdict::outcome);
                }
                Some(Answer::Want(want)) => sender.want(&want).unwrap(),
                None => {}
            }
            answer = sender.next_chunk(CHUNK).and_then(|chunk| receiver.chunk(&chunk));
        }
        None
    }

    #[test]
    fn resumes_after_a_restart_at_every_chunk() {
        let image = image();
        for chunks in 0..image.len().div_ceil(CHUNK) {
            let mut receiver = Receiver::new(Flash::new(2000));
            assert_eq!(transfer(&mut Sender::new("2.0", image.clone()).unwrap(), &mut receiver, chunks), None);
            let mut receiver = Receiver::new(receiver.into_slot());
            let mut sender = Sender::new("2.0", image.clone()).unwrap();
            let begun = (chunks + 1) * CHUNK;
            match receiver.offer(&sender.offer()) {
                Answer::Want(want) => assert_eq!(want.offset as usize, begun, "goes on where it stood"),
                Answer::Verdict(_) => assert!(begun >= image.len(), "all but the verdict was through"),
            }
            assert_eq!(transfer(&mut sender, &mut receiver, 100), Some(Outcome::Verified), "after {chunks} chunks");
            assert_eq!(receiver.slot().bytes[..image.len()], image[..]);
        }
    }

    #[test]
    fn survives_a_power_cut_at_every_operation() {
        let image = image();
        for dies_at in 1.. {
            let mut flash = Flash::new(2000);
            flash.dies_at = dies_at;
            let mut receiver = Receiver::new(flash);
            let first = transfer(&mut Sender::new("2.0", image.clone()).unwrap(), &mut receiver, 100);
            if first == Some(Outcome::Verified) {
                assert!(dies_at > 2 * image.len().div_ceil(CHUNK), "every write and save was cut once");
                return;
            }
            let mut flash = receiver.into_slot();
            flash.dies_at = usize::MAX;
            let mut receiver = Receiver::new(flash);
            let mut sender = Sender::new("2.0", image.clone()).unwrap();
            assert_eq!(transfer(&mut sender, &mut receiver, 100), Some(Outcome::Verified), "cut at {dies_at}");
            assert_eq!(receiver.slot().bytes[..image.len()], image[..]);
        }
    }

    #[test]
    fn a_wrong_bit_in_flash_is_found_and_the_image_given_up() {
        let mut receiver = Receiver::new(Flash::new(2000));
        transfer(&mut Sender::new("2.0", image()).unwrap(), &mut receiver, 5);
        let mut flash = receiver.into_slot();
        flash.bytes[17] ^= 4;
        let mut receiver = Receiver::new(flash);
        let mut sender = Sender::new("2.0", image()).unwrap();
        assert_eq!(transfer(&mut sender, &mut receiver, 100), Some(Outcome::Corrupt));
        assert_eq!(receiver.slot().progress(), None);
        let mut sender = Sender::new("2.0", image()).unwrap();
        assert_eq!(transfer(&mut sender, &mut receiver, 100), Some(Outcome::Verified), "the next try starts over");
    }

    #[test]
    fn another_image_replaces_the_one_begun() {
        let mut receiver = Receiver::new(Flash::new(2000));
        transfer(&mut Sender::new("2.0", image()).unwrap(), &mut receiver, 5);
        let other = Bytes::from(vec![9; 300]);
        let mut sender = Sender::new("2.1", other.clone()).unwrap();
        assert_eq!(transfer(&mut sender, &mut receiver, 100), Some(Outcome::Verified));
        assert_eq!(receiver.slot().bytes[..300], other[..]);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(Sender::new("x", Bytes::new()).unwrap_err(), UpdateError::Size(0));
        let mut sender = Sender::new("2.0", image()).unwrap();
        assert_eq!(sender.next_chunk(CHUNK), None, "nothing before the device wants it");
        let sha256 = sender.offer().sha256;
        let beyond = Want { sha256: sha256.clone(), offset: 1234 };
        assert_eq!(sender.want(&beyond), Err(UpdateError::Offset { offset: 1234, size: 1234 }));
        assert_eq!(sender.want(&Want { sha256: vec![], offset: 0 }), Err(UpdateError::OtherImage));

        let mut receiver = Receiver::new(Flash::new(1000));
        let refused = |answer: Option<Answer>| matches!(&answer, Some(Answer::Verdict(verdict)) if verdict.outcome() == Outcome::Refused);
        assert_eq!(receiver.chunk(&Chunk { offset: 0, data: vec![1] }), None, "no image was offered");
        assert!(refused(Some(receiver.offer(&sender.offer()))), "too large");
        assert!(refused(Some(receiver.offer(&Offer { size: 4, sha256: vec![1], version: String::new() }))));
        let offer = Offer { size: 4, sha256, version: String::new() };
        assert!(matches!(receiver.offer(&offer), Answer::Want(Want { offset: 0, .. })));
        assert!(refused(receiver.chunk(&Chunk { offset: 0, data: vec![1; 5] })));
        let hole = receiver.chunk(&Chunk { offset: 2, data: vec![1] });
        assert!(matches!(hole, Some(Answer::Want(Want { offset: 0, .. }))));
        assert_eq!(receiver.chunk(&Chunk { offset: 0, data: vec![1; 2] }), None);
        assert_eq!(receiver.chunk(&Chunk { offset: 0, data: vec![1; 2] }), None, "a chunk twice is one");
    }

    #[test]
    fn the_largest_chunk_fits_a_message() {
        use prost::Message as _;

        use crate::message::{Message, message::Body};
        let chunk = Chunk { offset: u32::MAX, data: vec![0; CHUNK_MAX] };
        assert!(Message { body: Some(Body::Chunk(chunk)) }.encoded_len() <= MESSAGE_MAX);
    }
}
