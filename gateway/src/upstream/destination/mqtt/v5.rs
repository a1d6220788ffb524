//! rumqttc's client of MQTT 5.

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, LastWill, Packet, PubAckReason, Publish, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, ClientError, Event, EventLoop, MqttOptions};
use tokio::sync::mpsc;

use super::super::{Arrival, LinkError, Publication, Settings};
use super::{CONNECT_SECONDS_MAX, INCOMING_BYTES_MAX, Jammed, KEEP_ALIVE_MIN, Notice, network, wire};

#[derive(Debug)]
pub(super) struct Client(AsyncClient);

#[derive(Debug)]
pub(in super::super) struct Receipt(Box<Publish>);

pub(super) fn open(settings: &Settings, room: usize) -> Result<(Client, EventLoop), LinkError> {
    let (transport, address) = wire(settings)?;
    let mut options = MqttOptions::new(&settings.client_id, address, settings.place.port);
    options.set_transport(transport);
    if let Some((name, password)) = &settings.credentials {
        options.set_credentials(name, password);
    }
    if let Some(will) = &settings.will {
        options.set_last_will(LastWill::new(&will.topic, will.payload.clone(), QoS::AtLeastOnce, will.retain, None));
    }
    let window = settings.window.max(1);
    options
        .set_keep_alive(settings.keep_alive.max(KEEP_ALIVE_MIN))
        .set_clean_start(settings.clean_start)
        .set_connection_timeout(CONNECT_SECONDS_MAX)
        .set_max_packet_size(Some(INCOMING_BYTES_MAX))
        .set_receive_maximum(Some(window))
        .set_session_expiry_interval(Some(u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX)))
        .set_manual_acks(true)
        // Without it rumqttc makes room for 65,535 publishes: 14 MB.
        .set_outgoing_inflight_upper_limit(window);
    options.set_network_options(network(options.network_options()));
    let (client, eventloop) = AsyncClient::new(options, room);
    Ok((Client(client), eventloop))
}

/// Drops `notices` before `eventloop`: whoever finds the latter gone can see it by the former.
pub(super) async fn poll(mut eventloop: EventLoop, notices: mpsc::Sender<Result<Notice, String>>) {
    loop {
        let notice = match eventloop.poll().await {
            Ok(event) => notice(event),
            Err(error) => Err(error.to_string()),
        };
        let Some(notice) = notice.transpose() else { continue };
        let over = notice.is_err();
        if notices.send(notice).await.is_err() || over {
            return;
        }
    }
}

/// An error: the broker does not want a publish now, or not from us; that may change.
fn notice(event: Event) -> Result<Option<Notice>, String> {
    Ok(Some(match event {
        Event::Outgoing(Outgoing::Publish(id)) => Notice::Written(id),
        Event::Outgoing(Outgoing::AwaitAck(id)) => Notice::Held(id),
        Event::Outgoing(Outgoing::PingReq) => Notice::Asked,
        Event::Outgoing(Outgoing::PubAck(_)) => Notice::Acknowledged,
        Event::Incoming(Packet::PingResp(_)) => Notice::Answered,
        Event::Incoming(Packet::ConnAck(ack)) => {
            let packet_max = ack.properties.and_then(|properties| properties.max_packet_size);
            Notice::Up { packet_max: packet_max.map(|bytes| bytes as usize) }
        }
        Event::Incoming(Packet::PubAck(ack)) => {
            let reason = || format!("the broker refuses a publish: {:?}", ack.reason);
            let refusal = match ack.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => None,
                PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => Some(reason()),
                _ => return Err(reason()),
            };
            Notice::Confirmed { id: ack.pkid, refusal }
        }
        Event::Incoming(Packet::Publish(publish)) => Notice::Arrived(Arrival {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload.clone(),
            receipt: Some(super::Receipt::V5(Receipt(Box::new(publish)))),
        }),
        Event::Incoming(Packet::SubAck(ack)) => {
            let refused = ack.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_)));
            Notice::Subscribed { refusal: refused.map(|code| format!("{code:?}")) }
        }
        _ => return Ok(None),
    }))
}

// === impl Client ===

impl Client {
    pub(super) fn publish(&self, publication: Publication) -> Result<(), Jammed> {
        let Publication { topic, payload, retain, at_most_once, .. } = publication;
        let qos = if at_most_once { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        jammed(self.0.try_publish(topic, qos, retain, payload))
    }

    pub(super) fn subscribe(&self, filter: &str) -> Result<(), Jammed> {
        // Dialects whose replies go out on the topic that the command came in on must not hear themselves.
        let filter = Filter { nolocal: true, ..Filter::new(filter, QoS::AtLeastOnce) };
        jammed(self.0.try_subscribe_many([filter]))
    }

    pub(super) fn acknowledge(&self, receipt: &Receipt) -> Result<bool, Jammed> {
        jammed(self.0.try_ack(&receipt.0)).map(|()| receipt.0.qos == QoS::AtLeastOnce)
    }

    pub(super) fn disconnect(&self) -> Result<(), Jammed> {
        jammed(self.0.try_disconnect())
    }
}

fn jammed(result: Result<(), ClientError>) -> Result<(), Jammed> {
    result.map_err(|error| Jammed(error.to_string()))
}
