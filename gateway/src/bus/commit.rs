//! Group commit: records are framed into a bounded buffer under a short lock; the writer thread writes what has come
//! together, makes it durable, and publishes how far.
//!
//! Must not be in here: files (`log.rs`).

use std::io;
use std::sync::{Arc, Condvar, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use device_models::wire::Template;
use device_models::{Body, Class, Message};
use tokio::sync::{Notify, oneshot, watch};
use tracing::{debug, error, info};

use super::cursors::Cursors;
use super::disk::is_full;
use super::log::{Batch, Log, Loss};
use super::segment::{self, FRAME, RECORD_MAX};
use super::{BusError, Durable, Lock, index};
use crate::clock;

/// Bytes of records that may wait for the writer, together with those being written. Beyond it `append` waits.
const BUFFER_MAX: usize = 4 * 1024 * 1024;
/// How long the idle writer waits before it looks whether segments can go.
const IDLE: Duration = Duration::from_secs(1);
/// Pause after a failed commit: the first, doubled up to the longest.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A batch buffer that grew larger than this is given back to the allocator after use.
const SPARE_MAX: usize = 512 * 1024;

/// When a batch is due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub time: Duration,
    pub bytes: usize,
}

/// Records on their way to the writer.
#[derive(Debug)]
pub(super) struct Buffer {
    waiting: Lock<Waiting>,
    /// Wakes the writer.
    wake: Condvar,
    /// Wakes whoever waits for room.
    room: Notify,
    seed: u32,
    bytes_max: usize,
    window: Window,
}

#[derive(Debug)]
struct Waiting {
    batches: [Batch; 4],
    next: [u64; 4],
    bytes: usize,
    /// The shortest window that somebody of those who wait wants; none waits: the longest there is.
    within: Duration,
    writing: usize,
    closing: bool,
    /// How often an append had to wait for room.
    waits: u64,
    errand: Option<Errand>,
    /// The next numbers at the start.
    began: [u64; 4],
}

/// Something to be done between two batches, and who is told of how many numbers it was done.
#[derive(Debug)]
pub(super) enum Errand {
    /// The records of these classes are to go.
    Purge { classes: Vec<Class>, reply: oneshot::Sender<u64> },
    /// These were found to be lost: what not every reader had is told.
    Tell { losses: Vec<Loss>, reply: oneshot::Sender<u64> },
}

/// What the writer does next.
enum Turn {
    Write(Box<[Batch; 4]>),
    Errand(Errand),
    Idle,
    Stop,
}

// === impl Buffer ===

impl Buffer {
    pub(super) fn new(epoch: u64, next: [u64; 4], segment_bytes: u64, window: Window) -> Self {
        let waiting = Waiting {
            batches: Default::default(),
            next,
            bytes: 0,
            within: Duration::MAX,
            writing: 0,
            closing: false,
            waits: 0,
            errand: None,
            began: next,
        };
        Self {
            waiting: Lock::new(waiting),
            wake: Condvar::new(),
            room: Notify::new(),
            seed: segment::seed(epoch),
            // A batch always fits into one segment.
            bytes_max: BUFFER_MAX.min(segment_bytes as usize - 4096),
            window,
        }
    }

    /// Takes a record in and gives its number. Waits while the buffer is full.
    pub(super) async fn append(
        &self,
        class: Class,
        template: Option<&Template>,
        record: &[u8],
        within: Option<Duration>,
    ) -> Result<u64, BusError> {
        let label = template.map(|template| template.label);
        let bytes = segment::record_len(label, record) - FRAME;
        let template_bytes = template.map_or(0, |template| template.bytes.len());
        if bytes.max(template_bytes) > RECORD_MAX {
            return Err(BusError::TooLong { bytes: bytes.max(template_bytes) });
        }
        let crc = segment::record_crc(self.seed, label, record);
        let within = within.unwrap_or(self.window.time);
        if let Some(seq) = self.push(class, crc, template, record, within)? {
            return Ok(seq);
        }
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before looking, so that room made in between is not missed.
            room.as_mut().enable();
            if let Some(seq) = self.push(class, crc, template, record, within)? {
                return Ok(seq);
            }
            room.await;
        }
    }

    fn push(
        &self,
        class: Class,
        crc: u32,
        template: Option<&Template>,
        record: &[u8],
        within: Duration,
    ) -> Result<Option<u64>, BusError> {
        let mut waiting = self.waiting.lock();
        if waiting.closing {
            return Err(BusError::Closed);
        }
        let bytes = waiting.cost(class, template, record);
        if waiting.bytes + waiting.writing + bytes > self.bytes_max {
            waiting.waits += 1;
            return Ok(None);
        }
        let before = waiting.bytes;
        let seq = waiting.push(class, crc, template, record);
        let sooner = within < waiting.within;
        waiting.within = waiting.within.min(within);
        let wake = before == 0 || sooner || (before < self.window.bytes && waiting.bytes >= self.window.bytes);
        drop(waiting);
        if wake {
            self.wake.notify_one();
        }
        Ok(Some(seq))
    }

    /// The writer's own records (gap records): they do not wait for room, nor for a window, because what they name is gone
    /// from the disk already.
    fn push_own(&self, class: Class, record: &[u8]) {
        let crc = segment::record_crc(self.seed, None, record);
        let mut waiting = self.waiting.lock();
        waiting.push(class, crc, None, record);
        waiting.within = Duration::ZERO;
    }

    /// Sends the writer on an errand. An older one that still waits is dropped, which tells its owner.
    pub(super) fn send(&self, errand: Errand) {
        let mut waiting = self.waiting.lock();
        if !waiting.closing {
            waiting.errand = Some(errand);
        }
        drop(waiting);
        self.wake.notify_all();
    }

    pub(super) fn close(&self) {
        self.waiting.lock().closing = true;
        self.wake.notify_all();
        self.room.notify_waiters();
    }

    /// Bytes waiting and being written, how often an append had to wait, and numbers given by class.
    pub(super) fn stat(&self) -> (usize, u64, [u64; 4]) {
        let waiting = self.waiting.lock();
        let given = Class::ALL.map(|class| waiting.next[index(class)] - waiting.began[index(class)]);
        (waiting.bytes + waiting.writing, waiting.waits, given)
    }

    /// Waits until a batch is due: at once after a quiet spell, else the shortest wanted window after the last commit or
    /// when enough has come together.
    fn take(&self, committed: Option<Instant>, spare: &mut Vec<Vec<u8>>) -> Turn {
        let mut waiting = self.waiting.lock();
        loop {
            let now = Instant::now();
            let pause = if waiting.bytes == 0 {
                if let Some(errand) = waiting.errand.take() {
                    return Turn::Errand(errand);
                }
                if waiting.closing {
                    return Turn::Stop;
                }
                IDLE
            } else {
                let due = committed.and_then(|at| at.checked_add(waiting.within)).unwrap_or(now);
                if waiting.closing || now >= due || waiting.bytes >= self.window.bytes {
                    waiting.writing = std::mem::take(&mut waiting.bytes);
                    waiting.within = Duration::MAX;
                    let batches = waiting.batches.each_mut().map(|batch| {
                        let bytes = spare.pop().unwrap_or_default();
                        std::mem::replace(batch, Batch { bytes, ..Batch::default() })
                    });
                    return Turn::Write(Box::new(batches));
                }
                due - now
            };
            let idle = waiting.bytes == 0;
            let (guard, timeout) = self.wake.wait_timeout(waiting, pause).unwrap_or_else(PoisonError::into_inner);
            waiting = guard;
            if idle && timeout.timed_out() && waiting.bytes == 0 && waiting.errand.is_none() && !waiting.closing {
                return Turn::Idle;
            }
        }
    }

    fn written(&self) {
        self.waiting.lock().writing = 0;
        self.room.notify_waiters();
    }

    /// Sits out a pause; a stop ends it.
    fn rest(&self, pause: Duration) {
        let waiting = self.waiting.lock();
        let rested = self.wake.wait_timeout_while(waiting, pause, |waiting| !waiting.closing);
        drop(rested.unwrap_or_else(PoisonError::into_inner));
    }
}

// === impl Waiting ===

impl Waiting {
    /// Bytes that the record will take, with its template if that is new to the batch.
    fn cost(&self, class: Class, template: Option<&Template>, record: &[u8]) -> usize {
        let batch = &self.batches[index(class)];
        let new = template.filter(|template| !batch.templates.contains_key(&template.label));
        let lead = new.map_or(0, |template| segment::record_len(Some(template.label), &template.bytes));
        segment::record_len(template.map(|template| template.label), record) + lead
    }

    fn push(&mut self, class: Class, crc: u32, template: Option<&Template>, record: &[u8]) -> u64 {
        self.bytes += self.cost(class, template, record);
        let at = index(class);
        let seq = self.next[at];
        let batch = &mut self.batches[at];
        if batch.bytes.is_empty() {
            batch.first = seq;
        }
        batch.last = seq;
        if let Some(template) = template
            && !batch.templates.contains_key(&template.label)
        {
            batch.templates.insert(template.label, Bytes::clone(&template.bytes));
        }
        segment::push_record(&mut batch.bytes, crc, seq, template.map(|template| template.label), record);
        self.next[at] = seq + 1;
        seq
    }
}

/// The thread that owns the log.
#[derive(Debug)]
pub(super) struct Writer {
    log: Log,
    buffer: Arc<Buffer>,
    durable: watch::Sender<Durable>,
    cursors: Arc<Cursors>,
    /// Handed to the control class by the last commit, and not known to be on disk there.
    telling: Vec<Loss>,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(log: Log, buffer: Arc<Buffer>, durable: watch::Sender<Durable>, cursors: Arc<Cursors>) -> Self {
        Self { log, buffer, durable, cursors, telling: Vec::new() }
    }

    /// Runs until the buffer is closed and empty.
    pub(super) fn run(mut self) {
        let mut spare = Vec::new();
        let mut committed = None;
        let mut backoff = Duration::ZERO;
        loop {
            match self.buffer.take(committed, &mut spare) {
                // What was let go of since the last commit is said before the end.
                Turn::Stop if self.log.unsaid.is_empty() || !self.commit(&Default::default()) => {
                    return self.log.trim();
                }
                Turn::Stop => {}
                Turn::Errand(errand) => self.run_errand(errand),
                Turn::Idle => {
                    if self.log.owes() {
                        self.commit(&Default::default());
                    }
                    self.collect();
                    self.log.free();
                }
                Turn::Write(batches) => {
                    committed = Some(Instant::now());
                    let good = self.commit(&batches);
                    self.log.files.figures.committed(committed.map_or(Duration::ZERO, |began| began.elapsed()));
                    self.buffer.written();
                    spare = (*batches).into_iter().filter_map(recycle).collect();
                    self.collect();
                    if good {
                        if !backoff.is_zero() {
                            info!("the log can be written again");
                        }
                        backoff = Duration::ZERO;
                    } else {
                        backoff = (backoff * 2).clamp(BACKOFF, BACKOFF_MAX);
                        self.buffer.rest(backoff);
                    }
                }
            }
        }
    }

    fn run_errand(&mut self, errand: Errand) {
        self.collect();
        let (numbers, reply) = match errand {
            Errand::Purge { classes, reply } => (classes.iter().map(|class| self.log.purge(*class)).sum(), reply),
            Errand::Tell { losses, reply } => {
                let unread = losses.into_iter().filter_map(|loss| self.log.unread(loss)).collect::<Vec<_>>();
                let numbers = unread.iter().map(|loss| loss.last - loss.first + 1).sum();
                for loss in unread {
                    self.log.say(loss);
                }
                (numbers, reply)
            }
        };
        self.commit(&Default::default());
        if reply.send(numbers).is_err() {
            debug!(numbers, "whoever sent the errand has gone");
        }
    }

    fn commit(&mut self, batches: &[Batch; 4]) -> bool {
        let mut results: [Option<io::Result<u64>>; 4] = Default::default();
        for class in Class::ALL {
            let batch = &batches[index(class)];
            let batch = (!batch.bytes.is_empty()).then_some(batch);
            if batch.is_some() || self.log.unmarked[index(class)].is_some() {
                results[index(class)] = Some(self.log.write(class, batch));
            }
        }
        let good = results.iter().flatten().all(Result::is_ok);
        self.count(batches, &results);
        let mut failed = Vec::new();
        self.durable.send_modify(|durable| {
            for class in Class::ALL {
                let batch = &batches[index(class)];
                match &results[index(class)] {
                    Some(Ok(last)) => durable.succeed(class, *last),
                    Some(Err(error)) if !batch.bytes.is_empty() => {
                        durable.fail(class, batch.first, batch.last);
                        failed.push((class, batch.first, batch.last, reason(error)));
                    }
                    _ => {}
                }
            }
        });
        for (class, first, last, reason) in failed {
            error!(
                class = class.topic(),
                first, last, reason, "records could not be written; they are not acknowledged"
            );
            self.log.lose(Loss { class, first, last, reason });
        }
        let told = std::mem::take(&mut self.telling);
        match &results[index(Class::Control)] {
            Some(Ok(_)) => self.cursors.tell(&told),
            // They are said again once the disk takes them.
            Some(Err(_)) => self.log.unsaid.extend(told),
            None => self.telling = told,
        }
        if good {
            self.say();
            self.cursors.mark(self.log.marks());
            self.cursors.reached(self.durable.borrow().through);
        }
        good
    }

    fn count(&self, batches: &[Batch; 4], results: &[Option<io::Result<u64>>; 4]) {
        let figures = &self.log.files.figures;
        for class in Class::ALL {
            let batch = &batches[index(class)];
            let records = if batch.bytes.is_empty() { 0 } else { batch.last - batch.first + 1 };
            match &results[index(class)] {
                Some(Ok(_)) => figures.settled(class, records),
                Some(Err(_)) => figures.failed(class, records),
                None => {}
            }
        }
    }

    /// Tells the control class of losses, once it can be written.
    fn say(&mut self) {
        for loss in std::mem::take(&mut self.log.unsaid) {
            self.buffer.push_own(Class::Control, &gap_record(&loss));
            self.telling.push(loss);
        }
    }

    fn collect(&mut self) {
        if let Some(passed) = self.cursors.passed(self.log.sealed()) {
            self.log.passed = passed;
            self.log.collect();
        }
        self.log.expire();
    }
}

impl Drop for Writer {
    /// However the writer ends: without it nothing may be taken in, and nobody may wait for room.
    fn drop(&mut self) {
        self.buffer.close();
        self.buffer.waiting.lock().errand = None;
    }
}

/// An emptied buffer for the next batch, unless it is empty by nature or too large to keep.
fn recycle(batch: Batch) -> Option<Vec<u8>> {
    let mut bytes = batch.bytes;
    bytes.clear();
    (1..=SPARE_MAX).contains(&bytes.capacity()).then_some(bytes)
}

fn reason(error: &io::Error) -> &'static str {
    if is_full(error) { "disk-full" } else { "disk-error" }
}

/// The message that tells upstream what was lost, as it stands in the control class.
fn gap_record(loss: &Loss) -> Vec<u8> {
    let now = clock::now_us();
    let body = Body::Gap { class: loss.class, first: loss.first, last: loss.last, reason: loss.reason.to_owned() };
    let message = Message { thing: "gateway".into(), model: "gateway".into(), time_us: now, received_us: now, body };
    device_models::wire::encode_message(&message)
}
