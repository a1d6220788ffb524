//! What the client sends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::dialects::{Context, DIALECTS, Heard, inward};
use super::super::frame::{
    Ack, Goodbye, Outcomes, Packet, PropertySet, Publish, Reason, Subscribe, Unsubscribe, Version,
};
use super::super::topic;
use super::outbound::reason_of;
use super::{Ending, Filing, MqttSession, Owed, Spoken, State, Taken, ask};
use crate::exchange::{Properties, Publication, Qos, Request, Subscription};
use crate::session::{Fault, Outbox, Output, Refusal, Session as _, Ticket};

/// SUBSCRIBE and UNSUBSCRIBE packets of one client that may wait for the exchange, which answers at once: a bound.
const FILING_MAX: usize = 64;

/// QoS 2 packet ids of one older client that wait for their release: such clients know no Receive Maximum, and some
/// send thousands at once.
const UNRELEASED_MAX: usize = 4096;

impl MqttSession {
    pub(super) fn packet(&mut self, packet: Packet, out: &mut Outbox) -> Result<(), Fault> {
        if matches!(self.state, State::New) && !matches!(packet, Packet::Connect(_)) {
            self.state = State::Over;
            return Err(Fault::fatal("first packet is not CONNECT").at(0));
        }
        match packet {
            Packet::Connect(connect) => self.connect(connect, out),
            Packet::Publish(publish) => self.publish(publish, out),
            Packet::PubAck(ack) => {
                self.acknowledged(ack.packet_id, ack.reason, out);
                Ok(())
            }
            Packet::PubRec(ack) if ack.reason.is_error() => {
                self.acknowledged(ack.packet_id, ack.reason, out);
                Ok(())
            }
            Packet::PubRec(ack) => {
                self.releasing += 1;
                ask(Request::Received { delivery: ack.packet_id }, out);
                Ok(())
            }
            Packet::PubRel(ack) => {
                self.pub_rel(ack.packet_id, out);
                Ok(())
            }
            Packet::PubComp(ack) => {
                self.acknowledged(ack.packet_id, ack.reason, out);
                Ok(())
            }
            Packet::Subscribe(subscribe) => self.subscribe(subscribe, out),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe, out),
            Packet::PingReq => {
                self.send(&Packet::PingResp, out);
                Ok(())
            }
            Packet::Disconnect(goodbye) => self.end(Ending::Disconnect(goodbye), out),
            Packet::Auth(_) => self.broken(Reason::PROTOCOL_ERROR, "AUTH without extended authentication", out),
            // The codec lets nothing else through from a client.
            _ => self.broken(Reason::PROTOCOL_ERROR, "unexpected packet", out),
        }
    }

    fn publish(&mut self, publish: Publish, out: &mut Outbox) -> Result<(), Fault> {
        let topic = match self.unalias(&publish) {
            Ok(topic) => topic,
            Err((reason, what)) => return self.broken(reason, what, out),
        };
        let exactly_once = publish.qos == Qos::ExactlyOnce;
        if exactly_once && self.repeated(&publish, out) {
            return Ok(());
        }
        if publish.qos != Qos::AtMostOnce && self.is_window_full() {
            return self.broken(Reason::RECEIVE_MAX_EXCEEDED, "more publications in flight than agreed", out);
        }
        let topic = if self.scopes() { Arc::from(&*inward(&topic, &self.own)) } else { topic };
        let heard = match self.hear(&topic, &publish.payload) {
            None => None,
            Some(Ok(heard)) => Some((heard.0, heard.1.base.len(), heard.1.reports)),
            Some(Err(why)) => return self.unreadable(&publish, format!("publication to {topic}: {why}"), out),
        };
        let mut reports = Vec::new();
        if let Some((dialect, base_len, heard)) = heard {
            reports = heard;
            self.spoke(dialect, topic.get(..base_len).unwrap_or_default(), &reports, out);
            self.claim_replies(&mut reports, out);
        }
        let ticket = (publish.qos != Qos::AtMostOnce).then(|| self.ticket());
        if let Some(ticket) = ticket {
            let packet_id = publish.packet_id;
            self.owed.push_back(Owed { ticket, packet_id, exactly_once, outcome: None, again: 0, said: false });
        }
        let packet_id = exactly_once.then_some(publish.packet_id);
        if let Some(packet_id) = packet_id {
            self.unreleased.insert(packet_id, Taken::Now);
        }
        let properties = travelling(publish.properties.as_deref());
        let publication =
            Publication { topic, payload: publish.payload, qos: publish.qos, retain: publish.retain, properties };
        ask(Request::Publish { ticket, publication, reports, packet_id }, out);
        Ok(())
    }

    /// Whether one more QoS 1 or 2 publication is one too many. An MQTT 5 client was told how many may be in flight; the
    /// others' reading pauses before, and only ids that they never release add up.
    fn is_window_full(&self) -> bool {
        if self.version < Version::V5 {
            return self.unreleased.len() >= UNRELEASED_MAX;
        }
        let window = usize::from(self.settings.receive_max);
        if self.owed.len() + self.unreleased.len() < window {
            return false;
        }
        // A QoS 2 publication in both lists counts once; one of an earlier connection does not count.
        let once = self.owed.iter().filter(|owed| !owed.exactly_once).count();
        let twice = self.unreleased.values().filter(|taken| **taken == Taken::Now).count();
        once + twice >= window
    }

    fn unalias(&mut self, publish: &Publish) -> Result<Arc<str>, (Reason, String)> {
        let Some(alias) = publish.properties.as_ref().and_then(|set| set.topic_alias) else {
            return Ok(Arc::clone(&publish.topic));
        };
        if alias == 0 || alias > self.settings.topic_alias_max {
            return Err((Reason::TOPIC_ALIAS_INVALID, format!("topic alias {alias}")));
        }
        let aliases = self.aliases.get_or_insert_default();
        let index = usize::from(alias) - 1;
        if aliases.theirs.len() <= index {
            aliases.theirs.resize(index + 1, None);
        }
        let slot = aliases.theirs.get_mut(index);
        if !publish.topic.is_empty() {
            if let Some(slot) = slot {
                *slot = Some(Arc::clone(&publish.topic));
            }
            return Ok(Arc::clone(&publish.topic));
        }
        match slot.and_then(|slot| slot.clone()) {
            Some(topic) => Ok(topic),
            None => Err((Reason::PROTOCOL_ERROR, format!("topic alias {alias} was never set"))),
        }
    }

    /// Whether the QoS 2 publication was taken before. Its PUBREC goes again, unless it is still owed.
    fn repeated(&mut self, publish: &Publish, out: &mut Outbox) -> bool {
        let packet_id = publish.packet_id;
        match self.unreleased.get(&packet_id) {
            Some(Taken::Now) => {}
            Some(Taken::Earlier) if publish.dup => {}
            _ => return false,
        }
        match self.owed.iter_mut().find(|owed| owed.exactly_once && owed.packet_id == packet_id) {
            Some(owed) => owed.again = owed.again.saturating_add(1),
            None => self.send(&Packet::PubRec(Ack { packet_id, reason: Reason::SUCCESS, properties: None }), out),
        }
        true
    }

    /// A payload that does not fit its dialect's topic: nothing of it is stored or routed. MQTT 5 is told so; an older
    /// client can only be acknowledged (it would send the same again for ever), and the fault is counted.
    fn unreadable(&mut self, publish: &Publish, why: String, out: &mut Outbox) -> Result<(), Fault> {
        if publish.qos == Qos::AtMostOnce {
            return Err(Fault::recoverable(why));
        }
        let ticket = self.ticket();
        let exactly_once = publish.qos == Qos::ExactlyOnce;
        let outcome = Some(Err(Refusal::Invalid(why.clone())));
        let packet_id = publish.packet_id;
        self.owed.push_back(Owed { ticket, packet_id, exactly_once, outcome, again: 0, said: true });
        self.drain(out)?;
        Err(Fault::recoverable(why))
    }

    fn pub_rel(&mut self, packet_id: u16, out: &mut Outbox) {
        let known = self.unreleased.remove(&packet_id).is_some();
        if known {
            ask(Request::Release { packet_id }, out);
        }
        let reason = if known { Reason::SUCCESS } else { Reason::PACKET_ID_NOT_FOUND };
        self.send(&Packet::PubComp(Ack { packet_id, reason, properties: None }), out);
    }

    fn subscribe(&mut self, subscribe: Subscribe, out: &mut Outbox) -> Result<(), Fault> {
        let scopes = self.scopes();
        let identifier = subscribe.properties.as_ref().and_then(|set| set.subscription_identifiers.first().copied());
        let mut subscriptions = Vec::with_capacity(subscribe.filters.len());
        let mut known = Vec::with_capacity(subscribe.filters.len());
        for filter in subscribe.filters {
            if topic::check_filter(&filter.filter).is_err() {
                known.push(Some(Reason::FILTER_INVALID));
                continue;
            }
            known.push(None);
            let scoped = if scopes { Arc::from(&*inward(&filter.filter, &self.own)) } else { filter.filter };
            subscriptions.push(Subscription {
                filter: scoped,
                qos: filter.qos,
                no_local: filter.no_local,
                retain_as_published: filter.retain_as_published,
                retain_handling: filter.retain_handling,
                identifier,
            });
        }
        let Some(ticket) = self.file(subscribe.packet_id, known) else { return self.unfiled(out) };
        ask(Request::Subscribe { ticket, subscriptions }, out);
        Ok(())
    }

    fn unsubscribe(&mut self, unsubscribe: Unsubscribe, out: &mut Outbox) -> Result<(), Fault> {
        let scopes = self.scopes();
        let scoped = |filter: Arc<str>| if scopes { Arc::from(&*inward(&filter, &self.own)) } else { filter };
        let mut known = Vec::with_capacity(unsubscribe.filters.len());
        let mut filters = Vec::with_capacity(unsubscribe.filters.len());
        for filter in unsubscribe.filters {
            let valid = topic::check_filter(&filter).is_ok();
            known.push((!valid).then_some(Reason::FILTER_INVALID));
            if valid {
                filters.push(scoped(filter));
            }
        }
        let Some(ticket) = self.file(unsubscribe.packet_id, known) else { return self.unfiled(out) };
        ask(Request::Unsubscribe { ticket, filters }, out);
        Ok(())
    }

    fn file(&mut self, packet_id: u16, known: Vec<Option<Reason>>) -> Option<Ticket> {
        if self.filing.len() >= FILING_MAX {
            return None;
        }
        let ticket = self.ticket();
        self.filing.push_back(Filing { ticket, packet_id, known });
        Some(ticket)
    }

    fn unfiled(&mut self, out: &mut Outbox) -> Result<(), Fault> {
        self.broken(Reason::QUOTA_EXCEEDED, "too many subscribe packets at a time", out)
    }

    pub(super) fn disconnect(&mut self, goodbye: &Goodbye, out: &mut Outbox) -> Result<(), Fault> {
        let expiry = goodbye.properties.as_ref().and_then(|set| set.session_expiry);
        if expiry.is_some_and(|seconds| seconds > 0) && !self.session_expiry_asked {
            return self.broken(Reason::PROTOCOL_ERROR, "DISCONNECT revives a session expiry of 0", out);
        }
        let publish_will = goodbye.reason == Reason::DISCONNECT_WITH_WILL || goodbye.reason.is_error();
        self.state = State::Over;
        ask(Request::Detach { publish_will, expiry: expiry.map(|s| Duration::from_secs(u64::from(s))) }, out);
        out.close("the client disconnected");
        Ok(())
    }

    /// A publication is on disk, or refused. Acknowledgements go out in the order of the publications (4.6.0).
    pub(super) fn settled(
        &mut self,
        now: Instant,
        ticket: Ticket,
        outcome: Result<(), Refusal>,
        out: &mut Outbox,
    ) -> Result<(), Fault> {
        if self.paused() {
            // What the client sent meanwhile lies unread: its silence is ours.
            self.heard = Some(now);
        }
        if let Some(owed) = self.owed.iter_mut().find(|owed| owed.ticket == ticket) {
            owed.outcome = Some(outcome);
        }
        self.drain(out)?;
        self.end_if_due(out)
    }

    /// Sends the acknowledgements that are due. A refusal comes out as a recoverable fault, once.
    fn drain(&mut self, out: &mut Outbox) -> Result<(), Fault> {
        let mut fault = None;
        while self.owed.front().is_some_and(|owed| owed.outcome.is_some()) {
            let Some(owed) = self.owed.pop_front() else { break };
            let (mut reason, mut properties) = (Reason::SUCCESS, None);
            if let Some(Err(refusal)) = owed.outcome {
                let passing = matches!(refusal, Refusal::Unavailable(_) | Refusal::Limit(_));
                if passing && self.version < Version::V5 {
                    // No acknowledgement and no connection: the client keeps the message and sends it again.
                    self.state = State::Over;
                    return Err(Fault::fatal(format!("publication not stored: {refusal}")).ours());
                }
                reason = reason_of(&refusal);
                properties = self.because(&refusal.to_string());
                if owed.exactly_once {
                    self.unreleased.remove(&owed.packet_id);
                }
                if !owed.said {
                    fault = Some(Fault::recoverable(format!("publication refused: {refusal}")));
                }
            }
            let ack = Ack { packet_id: owed.packet_id, reason, properties };
            let packet = if owed.exactly_once { Packet::PubRec(ack) } else { Packet::PubAck(ack) };
            for _ in 0..=owed.again {
                self.send(&packet, out);
            }
        }
        fault.map_or(Ok(()), Err)
    }

    /// What the topic's dialect makes of the payload: the dialect's row and what it heard.
    pub(super) fn hear<'t>(&self, topic: &'t str, payload: &[u8]) -> Option<Result<HeardBy<'t>, String>> {
        let context = Context { own: &self.own, template: self.settings.template.as_ref() };
        self.settings.dialects.iter().find_map(|row| {
            let heard = DIALECTS.get(*row)?.read(topic, payload, context)?;
            Some(heard.map(|heard| (*row, heard)))
        })
    }

    /// Remembers how the devices of these reports speak, and that they do so here.
    fn spoke(&mut self, dialect: usize, base: &str, reports: &[device_models::Report], out: &mut Outbox) {
        for report in reports {
            if let Some(spoken) = self.spoken.get_mut(report.device.as_str()) {
                if spoken.dialect != dialect || *spoken.base != *base {
                    *spoken = Spoken { dialect, base: base.into() };
                }
                continue;
            }
            if self.spoken.len() >= self.settings.devices_max {
                continue;
            }
            self.spoken.insert(report.device.as_str().into(), Spoken { dialect, base: base.into() });
            let known = *report.device == *self.own && report.product.is_none();
            if !known {
                let (device, product) = (report.device.clone(), report.product.clone());
                out.push(Output::Speaks { by: self.by.clone(), device, product });
            }
        }
    }

    pub(super) fn subscribed(&mut self, ticket: Ticket, outcomes: Vec<Result<Qos, Refusal>>, out: &mut Outbox) {
        let reason = |outcome: Result<Qos, Refusal>| match outcome {
            Ok(qos) => Reason(qos as u8),
            Err(refusal) => reason_of(&refusal),
        };
        let Some((packet_id, mut reasons)) = self.filed(ticket, outcomes.into_iter().map(reason)) else { return };
        if self.version < Version::V5 {
            for reason in reasons.iter_mut().filter(|reason| reason.is_error()) {
                *reason = Reason::UNSPECIFIED;
            }
        }
        let hears_more = reasons.iter().any(|reason| !reason.is_error());
        self.send(&Packet::SubAck(Outcomes { packet_id, reasons, properties: None }), out);
        if hears_more {
            // What waits for the device may get through now.
            out.push(Output::Speaks { by: self.by.clone(), device: self.own.to_string(), product: None });
        }
    }

    pub(super) fn unsubscribed(&mut self, ticket: Ticket, outcomes: &[bool], out: &mut Outbox) {
        let reason = |was: &bool| if *was { Reason::SUCCESS } else { Reason::NO_SUBSCRIPTION_EXISTED };
        let Some((packet_id, mut reasons)) = self.filed(ticket, outcomes.iter().map(reason)) else { return };
        if self.version < Version::V5 {
            reasons.clear();
        }
        self.send(&Packet::UnsubAck(Outcomes { packet_id, reasons, properties: None }), out);
    }

    fn filed(&mut self, ticket: Ticket, mut asked: impl Iterator<Item = Reason>) -> Option<(u16, Vec<Reason>)> {
        let index = self.filing.iter().position(|filing| filing.ticket == ticket)?;
        let filing = self.filing.remove(index)?;
        let reason = |known: Option<Reason>| known.or_else(|| asked.next()).unwrap_or(Reason::UNSPECIFIED);
        Some((filing.packet_id, filing.known.into_iter().map(reason).collect()))
    }
}

/// A dialect's row, and what it made of a publication.
pub(super) type HeardBy<'t> = (usize, Heard<'t>);

/// The properties that go with the message to its subscribers.
pub(super) fn travelling(set: Option<&PropertySet>) -> Option<Arc<Properties>> {
    let set = set?;
    let properties = Properties {
        payload_is_utf8: set.payload_format == Some(1),
        expiry: set.message_expiry.map(|seconds| Duration::from_secs(u64::from(seconds))),
        content_type: set.content_type.clone(),
        response_topic: set.response_topic.clone(),
        correlation_data: set.correlation_data.clone(),
        user: set.user.clone(),
    };
    (properties != Properties::default()).then(|| Arc::new(properties))
}
