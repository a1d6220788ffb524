//! How a thread reads its publishers: into buffers that all of them share, as soon as each sends, or each every so often. A
//! thousand cameras send seventy thousand small pieces a second, and a read, a wake-up and an acknowledgement for each cost
//! more than their bytes. While a thread has time to spare nothing waits that somebody watches.
//!
//! Must not be in here: tasks and sessions of publishers (`ingest.rs`).

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::socket::Socket;

/// Room for one read from a publisher, bytes: a frame of an ordinary camera in one or two reads.
pub(super) const READ_LEN: usize = 16 * 1024;

/// A buffer that grew beyond this is not kept for the next publisher, bytes.
const UNREAD_MAX: usize = 256 * 1024;

/// Between two reads of a publisher that wakes nobody, at least and at first: gathered reads fall on multiples of it, so
/// that the thread wakes for many at once.
const STEP: Duration = Duration::from_millis(5);

/// The same at most, where somebody watches: a frame at 25 fps, so that what is gathered is about one with its sound.
const EVERY_MAX: Duration = Duration::from_millis(40);

/// The same where nobody does: a viewer that comes meanwhile begins at the newest key frame and is given the rest then.
const EVERY_MAX_UNHEARD: Duration = Duration::from_millis(200);

/// What a publisher sends between two reads, bytes: with less it is read more seldom, with more sooner. The kernel keeps
/// some 64 KiB for one before it must wait.
const CAME: RangeInclusive<usize> = 8 * 1024..=32 * 1024;

/// Busy fraction above which is gathered, and the one below which it would not be above that without.
const BUSY: (f64, f64) = (0.11, 0.30);

/// Reads a second with which it is worth while, and the same when fewer reads bring as much.
const READS: (f64, f64) = (500.0, 2_000.0);

/// A thread's reads from publishers.
pub(super) struct Reads {
    /// Where they go first; made by the first.
    scratch: RefCell<Vec<u8>>,
    /// Lent to a publisher that has read something, until its session took that.
    unread: Cell<BytesMut>,
    gather: Cell<Gather>,
    /// Reads that brought something since the last measurement.
    count: Cell<u32>,
    /// What the moments of gathered reads count from.
    began: Instant,
}

impl Reads {
    pub(super) fn new(began: Instant) -> Self {
        Self {
            scratch: RefCell::default(),
            unread: Cell::default(),
            gather: Cell::default(),
            count: Cell::default(),
            began,
        }
    }

    /// Reads from a publisher and adds what came to `unread`, which is the thread's own buffer where it was empty.
    pub(super) fn read(&self, socket: &mut Socket, unread: &mut BytesMut) -> io::Result<usize> {
        let mut scratch = self.scratch.borrow_mut();
        scratch.resize(READ_LEN, 0);
        let read = socket.try_read(&mut scratch)?;
        if unread.is_empty() {
            *unread = self.unread.take();
        }
        unread.extend_from_slice(scratch.get(..read).unwrap_or_default());
        self.count.set(self.count.get().saturating_add(1));
        Ok(read)
    }

    /// Takes the buffer back when its bytes were taken; of a rest the publisher keeps a copy. A thousand publishers must not
    /// keep a buffer each.
    pub(super) fn take_back(&self, unread: &mut BytesMut) {
        if unread.capacity() == 0 || unread.len() > READ_LEN {
            return;
        }
        let rest = BytesMut::from(&unread[..]);
        let mut lent = std::mem::replace(unread, rest);
        lent.clear();
        lent.reserve(READ_LEN);
        if lent.capacity() <= UNREAD_MAX {
            self.unread.set(lent);
        }
    }

    /// Whether publishers are read every so often instead of as soon as they send.
    pub(super) fn are_gathered(&self) -> bool {
        self.gather.get().on
    }

    /// The first moment for a gathered read after such a pause.
    pub(super) fn after(&self, now: Instant, pause: Duration) -> Instant {
        let at = now + pause;
        let beyond = at.saturating_duration_since(self.began).as_micros() % STEP.as_micros();
        at + STEP.saturating_sub(Duration::from_micros(u64::try_from(beyond).unwrap_or(0)))
    }

    /// Microseconds since the thread began to read, and the moment of such a number.
    pub(super) fn micros(&self, now: Instant) -> i64 {
        i64::try_from(now.saturating_duration_since(self.began).as_micros()).unwrap_or(i64::MAX)
    }

    pub(super) fn at(&self, micros: i64) -> Instant {
        self.began + Duration::from_micros(micros.unsigned_abs())
    }

    /// Takes how busy the thread was of late (0 to 1), after so much time.
    pub(super) fn measured(&self, busy: f64, span: Duration) {
        let reads = f64::from(self.count.take()) / span.as_secs_f64().max(1e-3);
        self.gather.set(self.gather.get().measured(busy, reads));
    }
}

/// How often one publisher is read while it wakes nobody.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace(Duration);

impl Default for Pace {
    fn default() -> Self {
        Self(STEP)
    }
}

impl Pace {
    /// The pause after a read that brought so much; `heard`: somebody gets what it sends.
    pub(super) fn pause(&mut self, came: usize, heard: bool) -> Duration {
        let every = match came {
            _ if came < *CAME.start() => self.0 * 2,
            _ if came > *CAME.end() => self.0 / 2,
            _ => self.0,
        };
        self.0 = every.clamp(STEP, if heard { EVERY_MAX } else { EVERY_MAX_UNHEARD });
        self.0
    }
}

/// Whether reads are gathered.
#[derive(Debug, Default, Clone, Copy)]
struct Gather {
    on: bool,
}

impl Gather {
    fn measured(self, busy: f64, reads_per_second: f64) -> Self {
        let (busy_min, reads_min) = if self.on { (BUSY.0, READS.0) } else { (BUSY.1, READS.1) };
        Self { on: busy > busy_min && reads_per_second > reads_min }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;

    #[test]
    fn gathers_while_many_publishers_keep_the_thread_busy() {
        let spare = Gather::default().measured(0.1, 68_000.0);
        assert!(!spare.on, "there is time to spare");
        let busy = spare.measured(0.5, 68_000.0);
        assert!(busy.on);
        assert!(busy.measured(0.2, 25_000.0).on, "what it saves does not end it");
        assert!(!busy.measured(0.05, 2_000.0).on, "most have left");
    }

    #[test]
    fn a_thread_that_viewers_keep_busy_reads_its_few_publishers_at_once() {
        let gather = Gather::default().measured(0.9, 68.0);
        assert!(!gather.on);
        assert!(!gather.measured(0.9, 30_000.0).measured(0.9, 68.0).on);
    }

    #[test]
    fn gathered_reads_fall_together() {
        let began = Instant::now();
        let reads = Reads::new(began);
        for micros in [0, 1, 4_999, 5_000, 1_234_567, 3_600_000_000_000] {
            let now = began + Duration::from_micros(micros);
            let after = reads.after(now, EVERY_MAX);
            assert_eq!(after.duration_since(began).as_micros() % STEP.as_micros(), 0);
            assert!((EVERY_MAX..=EVERY_MAX + STEP).contains(&(after - now)));
        }
    }

    /// Reads of a publisher of so many bytes a second, until its pace is found: the pause between them.
    fn found(pace: &mut Pace, bytes_per_second: f64, heard: bool) -> Duration {
        let mut pause = STEP;
        for _ in 0..10 {
            pause = pace.pause((bytes_per_second * pause.as_secs_f64()) as usize, heard);
        }
        pause
    }

    #[test]
    fn who_sends_little_is_read_seldom_and_more_seldom_while_nobody_watches() {
        let (little, much, very_much) = (131_000.0, 1_000_000.0, 10_000_000.0);
        let mut pace = Pace::default();
        assert_eq!(found(&mut pace, little, true), EVERY_MAX);
        let unheard = found(&mut pace, little, false);
        assert!((EVERY_MAX * 2..=EVERY_MAX_UNHEARD).contains(&unheard), "{unheard:?}");
        assert_eq!(pace.pause(0, true), EVERY_MAX, "from the first read on that somebody waits for");
        assert_eq!(found(&mut pace, 0.0, false), EVERY_MAX_UNHEARD);
        let pause = found(&mut pace, much, false);
        assert!(CAME.contains(&((much * pause.as_secs_f64()) as usize)), "{pause:?}");
        assert_eq!(found(&mut pace, very_much, false), STEP);
    }

    #[test]
    fn the_buffer_goes_round_and_a_rest_stays_with_its_publisher() {
        let reads = Reads::new(Instant::now());
        let mut first = BytesMut::with_capacity(READ_LEN);
        first.extend_from_slice(b"taken and rest");
        drop(first.split_to(10));
        reads.take_back(&mut first);
        assert_eq!(&first[..], b"rest");
        assert!(first.capacity() < READ_LEN);
        let mut whole = BytesMut::with_capacity(READ_LEN);
        whole.extend_from_slice(b"all");
        whole.advance(3);
        reads.take_back(&mut whole);
        assert_eq!((whole.capacity(), reads.unread.take().capacity()), (0, READ_LEN));
    }
}
