//! Sessions without a connection: their wills, how long they are kept, their end.

use std::sync::Arc;
use std::time::Instant;

use protocols::Identity;
use protocols::exchange::{Qos, Will};

use super::{Core, NotRouted, Routing, Slot};
use crate::broker::WillReport;
use crate::broker::sessions::Away;
use crate::intake::AdapterInfo;

impl Core {
    /// A connection is gone. Its will is published now, later, or not at all; its session is kept or ends.
    pub(in crate::broker) fn leave(&mut self, slot: Slot, publish_will: bool, now: Instant) {
        self.stat.connected -= 1;
        if let Some(fanout) = &mut self.fanout {
            fanout.release(slot);
        }
        let Some(session) = self.session(slot) else { return };
        session.connection = 0;
        // Whoever still waits for it learns that it is no longer theirs.
        session.wake();
        session.kicked = None;
        session.stuck = false;
        session.resend = 0;
        let will = session.will.take().filter(|_| publish_will);
        let mut freed = 0;
        while let Some(bytes) = session.drop_loose() {
            freed += bytes;
        }
        session.walks.retain(|walk| walk.subscriber.qos > Qos::AtMostOnce);
        let kept = session.is_kept();
        let expiry = session.expiry;
        let (mut ends, mut due) = (None, None);
        if kept {
            ends = now.checked_add(expiry);
            if let Some(will) = will.as_ref().filter(|will| !will.delay.is_zero()) {
                due = now.checked_add(will.delay.min(expiry));
            }
        }
        session.away = kept.then(|| Box::new(Away { ends, will_due: due }));
        let (by, adapter) = (session.by.clone(), session.adapter.clone());
        if due.is_some() {
            session.will = will;
        } else if let Some(will) = will {
            self.publish_will(&by, adapter.as_ref(), &will, now);
        }
        self.bytes -= freed.min(self.bytes);
        if kept {
            self.hurry.notify_one();
        } else {
            self.remove(slot);
        }
        self.left.notify_waiters();
        self.room.notify_waiters();
    }

    pub(in crate::broker) fn publish_will(
        &mut self,
        by: &Identity,
        adapter: Option<&Arc<AdapterInfo>>,
        will: &Will,
        now: Instant,
    ) {
        self.stat.wills += 1;
        let routing =
            Routing { publication: &will.publication, from: None, command: None, patient: false, waits: false };
        if let Err(NotRouted::Refused(refusal)) = self.route(routing, now) {
            tracing::warn!(%refusal, topic = %will.publication.topic, "a will is not stored");
        }
        if let Some(adapter) = adapter.filter(|_| !will.reports.is_empty()) {
            let report = WillReport { adapter: Arc::clone(adapter), by: by.clone(), reports: will.reports.clone() };
            if self.wills.try_send(report).is_err() {
                self.stat.will_reports_lost += 1;
            }
        }
    }

    /// Publishes wills and ends sessions that are due; returns the next moment at which something is.
    pub(in crate::broker) fn pass_time(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut wills = Vec::new();
        let mut over = Vec::new();
        for (slot, session) in self.sessions() {
            if session.is_connected() {
                continue;
            }
            let Some(away) = &session.away else { continue };
            match away.will_due {
                Some(due) if due <= now => wills.push(slot),
                Some(due) => next = Some(next.map_or(due, |next| next.min(due))),
                None => {}
            }
            match away.ends {
                Some(ends) if ends <= now => over.push(slot),
                Some(ends) => next = Some(next.map_or(ends, |next| next.min(ends))),
                None => {}
            }
        }
        for slot in wills {
            let Some(session) = self.session(slot) else { continue };
            if let Some(away) = &mut session.away {
                away.will_due = None;
            }
            let (by, adapter) = (session.by.clone(), session.adapter.clone());
            if let Some(will) = session.will.take() {
                self.publish_will(&by, adapter.as_ref(), &will, now);
            }
        }
        for slot in over {
            self.stat.expired += 1;
            self.remove(slot);
        }
        next
    }
}
