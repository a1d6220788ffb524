//! How a platform wants it said: the seam between the messages and the topics and payloads they become, and the table of
//! all dialects. A new dialect is one file beside this one and one row here.
//!
//! A dialect is pure: no clock, no connection, no files. What it has to remember of a connection it is told of: when one
//! [begins](Dialect::begin), and when a publication [departs](Dialect::depart). What it cannot say it names in
//! [`Said::left_out`]; nothing is left out in silence.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use device_models::wire::{Catalog, Clock, Compression, Hole, WireError};
use device_models::{Body, Class, Message, Value};

use super::alink::Alink;
pub(super) use super::destination::{Origin, Publication};
use super::down::{Change, Command, Malformed};
use super::homeassistant::HomeAssistant;
use super::jetlinks::JetLinks;
use super::json::Json;
use super::native::Native;
use super::queue::Cut;
use super::receipt::Receipt;
use super::sparkplug::Sparkplug;
use super::thinedge::ThinEdge;
use super::things::Known;
use super::thingsboard::ThingsBoard;
use crate::config;

/// Who speaks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    pub gateway: &'a str,
    /// The destination's name in the configuration.
    pub upstream: &'a str,
}

/// Consecutive messages of one class, on their way out.
#[derive(Debug)]
pub(super) struct Parcel<'a> {
    pub scope: Scope<'a>,
    pub epoch: u64,
    pub class: Class,
    /// Backlog, not live.
    pub hist: bool,
    pub now_us: i64,
    pub clock: Clock,
    /// How the platform wants bodies packed, in dialects that can.
    pub compression: Compression,
    pub messages: &'a [(u64, Message)],
    /// Sequence numbers that no longer exist, between the messages.
    pub holes: &'a [Hole],
    pub catalog: &'a Catalog,
}

/// What a parcel became.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// In order.
    pub publications: Vec<Publication>,
    /// Values or messages that the dialect has no words for: reason and how many, for the counter of what was dropped.
    pub left_out: Vec<(&'static str, u64)>,
}

/// How it is told whether the gateway is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Station {
    /// Said first on a connection.
    pub online: Option<Publication>,
    /// Said by the broker when the connection breaks.
    pub offline: Publication,
    /// What is said at an orderly end.
    pub stopped: Publication,
}

/// What is known of this run when a [`Station`] is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub now_us: i64,
    pub since_us: i64,
    pub epoch: u64,
}

/// A connection that is about to be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beginning<'a> {
    /// How many there were before, over all restarts; 0 unless the dialect [counts](Dialect::counts) them.
    pub session: u64,
    pub now_us: i64,
    /// What is in the [files](Dialect::files), in their order.
    pub files: &'a [String],
}

/// Who signs in, where the dialect has its own way to say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SignIn {
    pub client_id: String,
    pub username: String,
    pub password: String,
}

/// What messages have to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wait {
    pub what: String,
    /// Longer, and the connection is given up; `None`: for ever.
    pub most: Option<Duration>,
}

/// What has to be said before a cut's messages, and after them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Around {
    pub before: Vec<Publication>,
    pub after: Vec<Publication>,
}

/// What arrived from the platform.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    Command {
        thing: String,
        command: Result<Command, Malformed>,
        /// Said at once: that it is under way.
        receipt: Option<Box<Publication>>,
    },
    /// A consumer has these messages.
    Received(Receipt),
    /// A command that may wait for its thing: so long at most, or as long as is usual.
    Patient { thing: String, command: Command, wait: Option<Duration> },
    /// What the thing is to have.
    Shadow { thing: String, change: Change },
    /// The platform has started anew: every thing is to be introduced again.
    Introduce,
    /// The platform is to be told something.
    Say(Box<Publication>),
    /// The platform does not take something that the broker took: what, and why.
    Refused(String),
    /// This connection has to end, in order; the reason.
    Leave(String),
    /// Not for us: an echo, or a notice that asks for nothing.
    Nothing,
    /// Nobody can tell what is wanted.
    Unreadable(String),
}

pub(super) trait Dialect: Send + Sync + std::fmt::Debug {
    /// Its word in the configuration.
    fn word(&self) -> &'static str;

    /// Whether payloads use the catalog's aliases, so that the catalog must be published first.
    fn aliases(&self) -> bool {
        false
    }

    /// Whether its words carry the time, so that backlog may come after newer messages.
    fn tells_time(&self) -> bool {
        true
    }

    /// Whether it accounts for every number, also for those that the destination does not want.
    fn accounts(&self) -> bool {
        false
    }

    /// Whether its messages go [at most once](Publication::at_most_once).
    fn at_most_once(&self) -> bool {
        false
    }

    /// Whether connections are counted, over restarts too.
    fn counts(&self) -> bool {
        false
    }

    /// Files that are read anew for each connection.
    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// A connection is about to be asked for: nothing of the last one counts any more.
    fn begin(&mut self, beginning: Beginning<'_>) -> Result<(), String> {
        let _ = beginning;
        Ok(())
    }

    /// Instead of the name and password of the configuration.
    fn sign_in(&self) -> Option<SignIn> {
        None
    }

    /// The last look at a publication, in the order of the wire. One that is held back here does not exist.
    fn depart(&mut self, publication: &mut Publication) {
        let _ = publication;
    }

    /// What messages have to wait for now.
    fn waits(&self) -> Option<Wait> {
        None
    }

    /// The media type of its payloads, for destinations that name it.
    fn content_type(&self) -> &'static str {
        "application/json"
    }

    fn station(&self, scope: Scope<'_>, run: Run) -> Option<Station>;

    /// What to subscribe to.
    fn filters(&self, scope: Scope<'_>) -> Vec<String>;

    /// Whether all that arrives is for things of this gateway. If not, what names no thing of ours is somebody else's.
    fn addressed(&self) -> bool {
        true
    }

    /// Whether things are introduced: on every connection before anything else, within a second of being new or having
    /// another model, and when the platform asks.
    fn introduces(&self) -> bool {
        false
    }

    /// What goes before the first introduction, each time they begin anew.
    fn open(&mut self, scope: Scope<'_>, now_us: i64) -> Said {
        let _ = (scope, now_us);
        Said::default()
    }

    /// The publishes that introduce a thing.
    fn introduce(&mut self, scope: Scope<'_>, now_us: i64, thing: &Known) -> Said {
        let _ = (scope, now_us, thing);
        Said::default()
    }

    /// What has to go around all that becomes of a cut, which [`encode`](Self::encode) may get in parts. `find` gives a
    /// thing as it is now.
    fn around(&mut self, _scope: Scope<'_>, _now_us: i64, _cut: &Cut, _find: &dyn Fn(&str) -> Option<Known>) -> Around {
        Around::default()
    }

    /// The publishes that carry the parcel.
    fn encode(&self, parcel: &Parcel<'_>) -> Result<Said, WireError>;

    /// `stamp`: a number not given before on this gateway, for commands without an id of their own.
    fn hear(&mut self, scope: Scope<'_>, topic: &str, payload: &[u8], stamp: i64) -> Heard;
}

/// Every dialect by its word in the configuration.
pub(super) fn dialect(config: &config::Upstream) -> Box<dyn Dialect> {
    match config.dialect {
        config::Dialect::Native => Box::new(Native),
        config::Dialect::Json => Box::new(Json),
        config::Dialect::Thingsboard => Box::new(ThingsBoard),
        config::Dialect::Jetlinks => Box::new(JetLinks),
        config::Dialect::Homeassistant => Box::new(HomeAssistant),
        config::Dialect::ThinEdge => Box::new(ThinEdge),
        config::Dialect::Alink => Box::new(Alink::new(config)),
        config::Dialect::Sparkplug => Box::new(Sparkplug::new(&config.sparkplug)),
    }
}

// === impl Station ===

impl Station {
    /// One retained topic that says one or the other.
    pub(super) fn retained(topic: &str, online: String, offline: String, stopped: String) -> Self {
        let said = |payload: String| Publication::new(topic.to_owned(), payload.into_bytes()).retained();
        Self { online: Some(said(online)), offline: said(offline), stopped: said(stopped) }
    }
}

// === impl Heard ===

impl Heard {
    pub(super) const fn command(thing: String, command: Result<Command, Malformed>) -> Self {
        Self::Command { thing, command, receipt: None }
    }
}

// === impl Parcel ===

impl Parcel<'_> {
    /// The numbers `first..=last` of this parcel, of one thing or of several.
    pub(super) fn origin(&self, first: u64, last: u64, thing: Option<&Arc<str>>) -> Origin {
        let (gateway, thing) = (Arc::from(self.scope.gateway), thing.map(Arc::clone));
        Origin { gateway, epoch: self.epoch, class: self.class, first, last, thing }
    }

    /// All its numbers: the first, and the last.
    pub(super) fn span(&self) -> (u64, u64) {
        let message = |at: Option<&(u64, Message)>| at.map(|(seq, _)| *seq);
        let first = self.holes.first().map(|hole| hole.first).into_iter().chain(message(self.messages.first())).min();
        let end = |hole: &Hole| hole.first.saturating_add(hole.count.saturating_sub(1));
        let last = self.holes.last().map(end).max(message(self.messages.last()));
        (first.unwrap_or_default(), last.unwrap_or_default())
    }
}

// === impl Scope ===

impl Scope<'_> {
    /// A command's id on the bus, without a `/` of our own so that devices get it as it is, for one that came from this upstream: replies to others' commands are told apart by it.
    pub(super) fn command_id(&self, tag: &str) -> String {
        format!("{}:{tag}", self.upstream)
    }

    /// What [`command_id`](Self::command_id) was made of; `None`: somebody else's command.
    pub(super) fn own<'i>(&self, id: &'i str) -> Option<&'i str> {
        id.strip_prefix(self.upstream)?.strip_prefix(':')
    }
}

// === impl Said ===

impl Said {
    /// Counts something that the dialect has no words for.
    pub(super) fn leave_out(&mut self, reason: &'static str, count: u64) {
        if count == 0 {
            return;
        }
        match self.left_out.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, known)) => *known += count,
            None => self.left_out.push((reason, count)),
        }
    }
}

impl From<Vec<Publication>> for Said {
    fn from(publications: Vec<Publication>) -> Self {
        Self { publications, left_out: Vec::new() }
    }
}

// === backlog ===

/// Where a platform knows only the present: of backlog, the newest value of each property goes. These are the others, by
/// number and place in the message; `present` says which values are of that kind.
pub(super) fn superseded(messages: &[(u64, Message)], present: impl Fn(&Value) -> bool) -> HashSet<(u64, usize)> {
    let mut seen = HashSet::new();
    let mut older = HashSet::new();
    for (seq, message) in messages.iter().rev() {
        let Body::Properties(samples) = &message.body else { continue };
        for (at, sample) in samples.iter().enumerate().rev() {
            if present(&sample.value) && !seen.insert((&message.thing, &sample.name)) {
                older.insert((*seq, at));
            }
        }
    }
    older
}

// === ids as topic levels ===

/// A thing's id as one topic level: what a level must not hold goes as `%` and two hex digits.
pub(super) fn level(id: &str) -> String {
    let mut text = String::with_capacity(id.len());
    for c in id.chars() {
        if matches!(c, '%' | '/' | '+' | '#') || c.is_control() {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                text.push('%');
                text.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or_default()));
            }
        } else {
            text.push(c);
        }
    }
    text
}

/// The id behind a topic level; `None` when it is none that [`level`] makes.
pub(super) fn unlevel(level: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(level.len());
    let mut rest = level.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = rest.get(2..)?;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_one_topic_level_and_comes_back() {
        for (id, expected) in
            [("meter-1", "meter-1"), ("gb/34/1", "gb%2f34%2f1"), ("50%", "50%25"), ("设备+#", "设备%2b%23")]
        {
            assert_eq!(level(id), expected);
            assert_eq!(unlevel(expected).as_deref(), Some(id));
        }
        for wrong in ["%", "%2", "%zz", "%FF"] {
            assert_eq!(unlevel(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_reply_belongs_to_the_upstream_that_asked() {
        let scope = Scope { gateway: "g", upstream: "up" };
        assert_eq!(scope.own(&scope.command_id("rpc:7")), Some("rpc:7"));
        for other in ["upper:rpc:7", "7", "other:rpc:7"] {
            assert_eq!(scope.own(other), None, "{other}");
        }
    }
}
