//! What goes, and when: segments that every reader has passed at once; else the oldest of a class that has more than its
//! share, at the cap, below the free-space floor and on a full disk; and what is older than its class allows.
//!
//! Must not be in here: how a loss is told (`commit.rs`).

use std::io;
use std::sync::atomic::Ordering;

use device_models::Class;
use tracing::{debug, warn};

use super::disk::is_full;
use super::index;
use super::log::{Log, Loss, Segment, Table};

/// Which class goes first when something must go and more than one has more than its share.
const EVICTION: [Class; 4] = [Class::Historical, Class::Live, Class::Event, Class::Control];
/// Below the free-space floor an active segment of at least this many bytes is closed, so that it can go.
const FLOOR_SEGMENT: u64 = 1024 * 1024;

// === impl Log ===

impl Log {
    /// Lets go of sealed segments that every reader has passed.
    pub(super) fn collect(&mut self) {
        for class in Class::ALL {
            loop {
                let front = self.files.table.lock().class(class).front().copied();
                match front {
                    Some(segment) if segment.sealed && segment.last <= self.passed[index(class)] => {
                        if !self.remove(segment) {
                            break;
                        }
                    }
                    _ => break,
                }
            }
        }
    }

    /// Keeps the cap and the free-space floor before `bytes` more are written.
    pub(super) fn make_room(&mut self, bytes: u64) {
        while self.files.table.lock().bytes() + bytes > self.limits.cap {
            if !self.evict("cap") {
                break;
            }
        }
        if let Some(free) = self.free().filter(|free| *free < self.limits.free_min.saturating_add(bytes)) {
            let reason = if free < bytes { "disk-full" } else { "free-space" };
            if !self.evict(reason) {
                self.close_lowest();
            }
        }
    }

    /// Lets go of the oldest segment of the class that has to give. False when there is none.
    pub(super) fn evict(&mut self, reason: &'static str) -> bool {
        let victim = victim(&self.files.table.lock(), &self.limits.share_percent);
        victim.is_some_and(|segment| self.let_go(segment, reason))
    }

    /// Removes a segment, and notes what of it not every reader has passed.
    fn let_go(&mut self, segment: Segment, reason: &'static str) -> bool {
        let class = segment.name.class;
        self.files.table.lock().let_go(class, segment.last, reason);
        if !self.remove(segment) {
            return false;
        }
        if let Some(loss) = self.unread(Loss { class, first: segment.name.first, last: segment.last, reason }) {
            self.files.evicted.fetch_add(1, Ordering::Relaxed);
            warn!(
                class = class.topic(),
                first = loss.first,
                last = loss.last,
                reason,
                "the log let go of unread records"
            );
            self.say(loss);
        }
        true
    }

    /// Lets go of what is older than its class allows. A segment goes as a whole, once its newest record is old enough;
    /// the active one is closed early enough that nothing outlives its time by more than an eighth.
    pub(super) fn expire(&mut self) {
        for class in Class::ALL {
            let ttl = self.limits.ttl_seconds[index(class)].cast_signed();
            if ttl == 0 {
                continue;
            }
            self.close_old(class, ttl / 8);
            loop {
                let old = {
                    let table = self.files.table.lock();
                    let now = table.ages.now();
                    let front = table.class(class).front().filter(|segment| segment.sealed).copied();
                    front.filter(|segment| table.ages.latest(class, segment.last) < now - ttl)
                };
                if !old.is_some_and(|segment| self.let_go(segment, "ttl")) {
                    break;
                }
            }
        }
    }

    /// Lets go of everything of a class. Returns how many numbers went.
    pub(super) fn purge(&mut self, class: Class) -> u64 {
        self.close_old(class, i64::MIN);
        let mut gone = 0;
        loop {
            let front = self.files.table.lock().class(class).front().filter(|segment| segment.sealed).copied();
            match front {
                Some(segment) if self.let_go(segment, "purge") => gone += segment.last + 1 - segment.name.first,
                _ => return gone,
            }
        }
    }

    /// Closes the class's active segment if its first record is older than so many seconds.
    fn close_old(&mut self, class: Class, age_max: i64) {
        let next = {
            let table = self.files.table.lock();
            let active =
                table.class(class).back().filter(|segment| !segment.sealed && segment.last >= segment.name.first);
            let now = table.ages.now();
            active
                .filter(|s| table.ages.earliest(class, s.name.first) < now.saturating_sub(age_max))
                .map(|s| s.last + 1)
        };
        if let Some(Err(error)) = next.map(|next| self.roll(class, next)) {
            debug!(%error, class = class.topic(), "cannot start a segment; old records stay a while longer");
        }
    }

    /// Closes the active segment of the lowest class that has a big one, so that it can go.
    fn close_lowest(&mut self) {
        let big = {
            let table = self.files.table.lock();
            EVICTION.into_iter().find(|class| table.class(*class).back().is_some_and(|s| s.len > FLOOR_SEGMENT))
        };
        let Some(class) = big else { return };
        let next = self.files.table.lock().class(class).back().map_or(1, |segment| segment.last + 1);
        if let Err(error) = self.roll(class, next) {
            debug!(%error, class = class.topic(), "cannot start a segment below the free-space floor");
        }
    }

    /// Removes a class's oldest segment; of a class that would be left without a file, only once it has a new one.
    fn remove(&mut self, segment: Segment) -> bool {
        let class = segment.name.class;
        let only = self.files.table.lock().class(class).len() == 1;
        // A start knows by the files alone how far the numbers of a class went.
        let followed = if only { self.follow(&segment) } else { Ok(()) };
        if let Err(error) = &followed
            && !is_full(error)
        {
            debug!(%error, class = class.topic(), "cannot start a segment; the one before stays");
            return false;
        }
        // First out of sight: whoever finds the file missing must not find it listed.
        self.files.table.lock().class_mut(class).retain(|old| old.name != segment.name);
        let path = self.files.path(&segment.name);
        match self.files.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, file = %path.display(), "cannot remove a segment");
                self.files.table.lock().class_mut(class).push_front(segment);
                return false;
            }
            _ => {}
        }
        // A full disk has room for it now.
        if followed.is_err()
            && let Err(error) = self.follow(&segment)
        {
            warn!(%error, class = class.topic(), "a class is without a file");
        }
        // Frees the blocks now on file systems that free at their own commit; a segment that comes back is let go again.
        if let Err(error) = self.files.disk.sync_folder(&self.files.folder) {
            debug!(%error, "cannot sync the log's folder");
        }
        true
    }

    /// Starts the segment behind a class's last one.
    fn follow(&mut self, last: &Segment) -> io::Result<()> {
        if last.last < last.name.first {
            return Err(io::Error::other("it holds no record, and the next would have its name"));
        }
        self.roll(last.name.class, last.last + 1)
    }
}

/// The oldest sealed segment of the class that has to give: the lowest one that keeps its share of all bytes without it;
/// if each would fall below its share, the lowest that has more than it; else the lowest that has one at all.
fn victim(table: &Table, share_percent: &[u64; 4]) -> Option<Segment> {
    let total = table.bytes();
    let fronts = EVICTION.iter().filter_map(|class| {
        let front = table.class(*class).front().filter(|segment| segment.sealed)?;
        let kept = total.saturating_mul(share_percent[index(*class)]) / 100;
        Some((*front, table.class_bytes(*class), kept))
    });
    let fronts: Vec<_> = fronts.collect();
    let spare = fronts.iter().find(|(front, bytes, kept)| bytes - front.len >= *kept);
    let above = fronts.iter().find(|(_, bytes, kept)| bytes > kept);
    spare.or(above).or(fronts.first()).map(|(front, ..)| *front)
}
