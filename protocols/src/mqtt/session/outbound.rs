//! What the exchange has for the client.

use std::sync::Arc;

use super::super::dialects::outward;
use super::super::frame::{self, Ack, Packet, PropertySet, Publish, Reason, Version};
use super::{MqttSession, ask};
use crate::exchange::{Delivery, Properties, Qos, Request};
use crate::session::{Fault, Outbox, Refusal};

/// A payload above this goes out as it is, behind its header; a smaller one is copied to it, which costs less than a
/// second write.
const COPY_MAX: usize = 4096;

impl MqttSession {
    pub(super) fn deliver(&mut self, delivery: Delivery, out: &mut Outbox) -> Result<(), Fault> {
        let publication = delivery.publication;
        let mut topic = if self.scopes() {
            match outward(&publication.topic, &self.own) {
                std::borrow::Cow::Owned(topic) => Arc::from(topic),
                std::borrow::Cow::Borrowed(_) => publication.topic,
            }
        } else {
            publication.topic
        };
        let mut properties = None;
        if self.version == Version::V5 {
            properties = said(publication.properties.as_deref(), delivery.subscription_identifiers);
            if let Some(alias) = self.alias(&mut topic) {
                properties.get_or_insert_default().topic_alias = Some(alias);
            }
        }
        let publish = Publish {
            dup: delivery.dup && publication.qos != Qos::AtMostOnce,
            qos: publication.qos,
            retain: publication.retain,
            topic,
            packet_id: delivery.id,
            payload: publication.payload,
            properties,
        };
        let mut header = frame::publish_header(&publish, self.version);
        let len = header.len() + publish.payload.len();
        if len > self.packet_max {
            if delivery.id > 0 {
                ask(Request::Acknowledged { delivery: delivery.id }, out);
            }
            return Err(Fault::recoverable(format!(
                "delivery of {len} bytes dropped: the client takes {}",
                self.packet_max
            )));
        }
        if let Some(ticket) = delivery.command {
            self.handed_over(ticket, delivery.id, out);
        }
        if publish.payload.len() > COPY_MAX {
            out.send(header.freeze());
            out.send(publish.payload);
        } else {
            header.extend_from_slice(&publish.payload);
            out.send(header.freeze());
        }
        Ok(())
    }

    /// The alias of a topic towards this client, given to the first topics as they come; empties the topic when the
    /// client knows it already.
    fn alias(&mut self, topic: &mut Arc<str>) -> Option<u16> {
        let aliases = self.aliases.as_mut()?;
        if let Some(alias) = aliases.ours.get(topic) {
            *topic = Arc::from("");
            return Some(*alias);
        }
        let next = aliases.ours.len() as u16 + 1;
        if next > aliases.ours_max {
            return None;
        }
        aliases.ours.insert(Arc::clone(topic), next);
        Some(next)
    }

    pub(super) fn release(&mut self, delivery: u16, known: bool, out: &mut Outbox) {
        // A resumed session gets PUBRELs that nobody asked for on this connection.
        self.releasing = self.releasing.saturating_sub(1);
        let reason = if known { Reason::SUCCESS } else { Reason::PACKET_ID_NOT_FOUND };
        self.send(&Packet::PubRel(Ack { packet_id: delivery, reason, properties: None }), out);
    }
}

/// The properties of a delivery.
fn said(properties: Option<&Properties>, subscription_identifiers: Vec<u32>) -> Option<Box<PropertySet>> {
    if properties.is_none() && subscription_identifiers.is_empty() {
        return None;
    }
    let mut set = Box::new(PropertySet { subscription_identifiers, ..PropertySet::default() });
    if let Some(properties) = properties {
        set.payload_format = properties.payload_is_utf8.then_some(1);
        set.message_expiry = properties.expiry.map(|expiry| expiry.as_secs().try_into().unwrap_or(u32::MAX));
        set.content_type.clone_from(&properties.content_type);
        set.response_topic.clone_from(&properties.response_topic);
        set.correlation_data.clone_from(&properties.correlation_data);
        set.user.clone_from(&properties.user);
    }
    Some(set)
}

/// The reason code of a refusal.
pub(super) fn reason_of(refusal: &Refusal) -> Reason {
    match refusal {
        Refusal::Unauthorized => Reason::BAD_CREDENTIALS,
        Refusal::Forbidden(_) => Reason::NOT_AUTHORIZED,
        Refusal::NotFound(_) => Reason::IMPLEMENTATION,
        Refusal::Invalid(_) => Reason::PAYLOAD_FORMAT_INVALID,
        Refusal::Limit(_) => Reason::QUOTA_EXCEEDED,
        Refusal::Unavailable(_) => Reason::SERVER_UNAVAILABLE,
    }
}
