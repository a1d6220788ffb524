//! CONNECT to CONNACK: who it is, whether it may, what is agreed.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::dialects::{inward, is_level};
use super::super::frame::{self, ConnAck, Connect, Packet, PropertySet, Reason, Version, Will};
use super::{Aliases, MqttSession, State, Taken, ask, inbound, outbound};
use crate::exchange;
use crate::exchange::{Attached, Publication, Request};
use crate::session::{Claim, Fault, Identity, Outbox, Output, Refusal};

/// Deliveries an older client takes at a time: its standard names no number, so the exchange's own limit decides.
const RECEIVE_MAX_UNSAID: u16 = u16::MAX;

/// Topics that we may give an alias towards one client, however many it offers: memory.
const OUR_ALIASES_MAX: u16 = 32;

impl MqttSession {
    pub(super) fn connect(&mut self, mut connect: Box<Connect>, out: &mut Outbox) -> Result<(), Fault> {
        if !matches!(self.state, State::New) {
            return self.broken(Reason::PROTOCOL_ERROR, "second CONNECT", out);
        }
        self.version = connect.version;
        self.state = State::Over;
        let set = connect.properties.as_deref();
        self.reasons_wanted = set.and_then(|set| set.request_problem_information) != Some(0);
        if set.is_some_and(|set| set.authentication_method.is_some()) {
            let why = "extended authentication is not offered";
            return Err(self.refuse(Reason::BAD_AUTHENTICATION_METHOD, why, out));
        }
        if set.is_some_and(|set| set.authentication_data.is_some()) {
            return Err(self.refuse(Reason::PROTOCOL_ERROR, "authentication data without a method", out));
        }
        if connect.client.len() > self.settings.client_id_max {
            return Err(self.refuse(Reason::CLIENT_ID_NOT_VALID, "client id too long", out));
        }
        if connect.client.is_empty() {
            // 3.1 asks for an id; 3.1.1 lets it be empty for sessions that nobody can come back to.
            if connect.version == Version::V31 || (connect.version == Version::V311 && !connect.clean_start) {
                return Err(self.refuse(Reason::CLIENT_ID_NOT_VALID, "client id is empty", out));
            }
        }
        let ticket = self.ticket();
        let claim = Claim::Device {
            name: connect.client.to_string(),
            user: connect.user.as_deref().map(str::to_owned),
            secret: connect.password.take(),
        };
        self.state = State::Admitting(connect);
        out.push(Output::Admit { ticket, claim });
        Ok(())
    }

    pub(super) fn admitted(&mut self, outcome: Result<Identity, Refusal>, out: &mut Outbox) -> Result<(), Fault> {
        let connect = match std::mem::replace(&mut self.state, State::Over) {
            State::Admitting(connect) => connect,
            other => {
                self.state = other;
                return Ok(());
            }
        };
        match outcome {
            Ok(identity) => self.by = identity,
            Err(refusal) => return Err(self.refuse(reason_of(&refusal), &refusal.to_string(), out)),
        }
        self.client = if connect.client.is_empty() { self.assigned() } else { Arc::clone(&connect.client) };
        self.own = self.own_device();
        let set = connect.properties.as_deref();
        let seconds = match connect.version {
            Version::V5 => set.and_then(|set| set.session_expiry).unwrap_or(0),
            _ if connect.clean_start => 0,
            _ => u32::MAX,
        };
        self.session_expiry_asked = seconds > 0;
        let will = connect.will.as_ref().map(|will| self.will(will, connect.version));
        let will = match will.transpose() {
            Ok(will) => will,
            Err(why) => return Err(self.refuse(Reason::PAYLOAD_FORMAT_INVALID, &why, out)),
        };
        let ticket = self.ticket();
        let request = Request::Attach {
            ticket,
            by: self.by.clone(),
            client: Arc::clone(&self.client),
            clean_start: connect.clean_start,
            expiry: Duration::from_secs(u64::from(seconds)),
            receive_max: set.and_then(|set| set.receive_max).unwrap_or(RECEIVE_MAX_UNSAID),
            will,
        };
        self.state = State::Attaching(connect);
        ask(request, out);
        Ok(())
    }

    pub(super) fn attached(
        &mut self,
        now: Instant,
        outcome: Result<Attached, Refusal>,
        out: &mut Outbox,
    ) -> Result<(), Fault> {
        let connect = match std::mem::replace(&mut self.state, State::Over) {
            State::Attaching(connect) => connect,
            other => {
                self.state = other;
                return Ok(());
            }
        };
        let attached = match outcome {
            Ok(attached) => attached,
            Err(refusal) => return Err(self.refuse(reason_of(&refusal), &refusal.to_string(), out)),
        };
        self.unreleased = attached.unreleased.iter().map(|packet_id| (*packet_id, Taken::Earlier)).collect();
        let properties = self.agree(&connect, &attached);
        self.heard = Some(now);
        self.state = State::Up;
        let ack = ConnAck { session_present: attached.session_present, reason: Reason::SUCCESS, properties };
        self.send(&Packet::ConnAck(ack), out);
        out.push(Output::Speaks { by: self.by.clone(), device: self.own.to_string(), product: None });
        Ok(())
    }

    /// Settles keep alive and limits, and says what an MQTT 5 client must be told of them.
    fn agree(&mut self, connect: &Connect, attached: &Attached) -> Option<Box<PropertySet>> {
        let asked = NonZeroU16::new(connect.keep_alive);
        self.keep_alive = asked;
        if connect.version < Version::V5 {
            return None;
        }
        let ours = self.settings.keep_alive_max.filter(|max| asked.is_none_or(|asked| asked > *max));
        if ours.is_some() {
            self.keep_alive = ours;
        }
        let set = connect.properties.as_deref();
        let asked_expiry = Duration::from_secs(u64::from(set.and_then(|set| set.session_expiry).unwrap_or(0)));
        if let Some(max) = set.and_then(|set| set.packet_max) {
            self.packet_max = max as usize;
        }
        let ours_max = set.and_then(|set| set.topic_alias_max).unwrap_or(0).min(OUR_ALIASES_MAX);
        if ours_max > 0 {
            self.aliases = Some(Box::new(Aliases { ours_max, ..Aliases::default() }));
        }
        Some(Box::new(PropertySet {
            session_expiry: (attached.expiry != asked_expiry)
                .then(|| attached.expiry.as_secs().try_into().unwrap_or(u32::MAX)),
            assigned_client: connect.client.is_empty().then(|| Arc::clone(&self.client)),
            server_keep_alive: ours.map(NonZeroU16::get),
            receive_max: Some(self.settings.receive_max),
            packet_max: Some(self.settings.packet_max as u32),
            topic_alias_max: Some(self.settings.topic_alias_max).filter(|max| *max > 0),
            ..PropertySet::default()
        }))
    }

    fn will(&self, will: &Will, version: Version) -> Result<exchange::Will, String> {
        let topic = if self.scopes() { Arc::from(&*inward(&will.topic, &self.own)) } else { Arc::clone(&will.topic) };
        let reports = match self.hear(&topic, &will.payload) {
            Some(Ok((_, heard))) => heard.reports,
            Some(Err(why)) => return Err(format!("will on {}: {why}", will.topic)),
            None => Vec::new(),
        };
        let set = will.properties.as_deref();
        let delay = if version == Version::V5 { set.and_then(|set| set.will_delay).unwrap_or(0) } else { 0 };
        let publication = Publication {
            topic,
            payload: will.payload.clone(),
            qos: will.qos,
            retain: will.retain,
            properties: inbound::travelling(set),
        };
        Ok(exchange::Will { publication, delay: Duration::from_secs(u64::from(delay)), reports })
    }

    /// Refuses by CONNACK.
    fn refuse(&mut self, reason: Reason, why: &str, out: &mut Outbox) -> Fault {
        let properties = self.because(why);
        self.send(&Packet::ConnAck(ConnAck { session_present: false, reason, properties }), out);
        self.state = State::Over;
        Fault::fatal(format!("connection refused: {why}"))
    }

    /// Refuses what could not be read. Only an unknown version of MQTT is answered: it is a client after all, and 3.1.1
    /// (3.1.2.2) has the words.
    pub(super) fn refuse_unread(reason: Reason, out: &mut Outbox) {
        if reason == Reason::UNSUPPORTED_VERSION {
            let ack = ConnAck { session_present: false, reason, properties: None };
            out.send(frame::encode(&Packet::ConnAck(ack), Version::V311));
        }
    }

    fn assigned(&self) -> Arc<str> {
        let number = self.seed.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
        Arc::from(format!("sg-{number:024x}"))
    }

    /// The name by which the client itself is a device: its client id, where that is its to speak for, else the name of
    /// its credential.
    fn own_device(&self) -> Arc<str> {
        if self.by.reaches(&self.client) { Arc::clone(&self.client) } else { Arc::clone(&self.by.name) }
    }

    /// Whether `v1/devices/me/…` is rewritten for this client.
    pub(super) fn scopes(&self) -> bool {
        self.settings.dialects.contains(&THINGSBOARD) && is_level(&self.own)
    }
}

/// The row of the dialect that has topics of everybody's.
const THINGSBOARD: usize = 2;

pub(super) fn reason_of(refusal: &Refusal) -> Reason {
    outbound::reason_of(refusal)
}
