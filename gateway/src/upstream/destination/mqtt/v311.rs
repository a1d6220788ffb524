//! rumqttc's client of MQTT 3.1.1. What that version cannot say: a reason with a PUBACK, the largest packet, no local
//! (a dialect hears its own publishes, and tells them apart), and a session's expiry.

use rumqttc::{
    AsyncClient, ClientError, Event, EventLoop, LastWill, MqttOptions, Outgoing, Packet, Publish, QoS,
    SubscribeReasonCode,
};
use tokio::sync::mpsc;

use super::super::{Arrival, LinkError, Publication, Settings};
use super::{INCOMING_BYTES_MAX, Jammed, KEEP_ALIVE_MIN, Notice, network, wire};

/// What the protocol can carry: our batches are far smaller.
const OUTGOING_BYTES_MAX: usize = 256 << 20;

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
        options.set_last_will(LastWill::new(&will.topic, will.payload.clone(), QoS::AtLeastOnce, will.retain));
    }
    options
        .set_keep_alive(settings.keep_alive.max(KEEP_ALIVE_MIN))
        .set_clean_session(settings.clean_start)
        .set_max_packet_size(INCOMING_BYTES_MAX as usize, OUTGOING_BYTES_MAX)
        .set_manual_acks(true)
        .set_inflight(settings.window.max(1));
    let (client, mut eventloop) = AsyncClient::new(options, room);
    eventloop.set_network_options(network(eventloop.network_options()));
    Ok((Client(client), eventloop))
}

/// Drops `notices` before `eventloop`: whoever finds the latter gone can see it by the former.
pub(super) async fn poll(mut eventloop: EventLoop, notices: mpsc::Sender<Result<Notice, String>>) {
    loop {
        let notice = match eventloop.poll().await {
            Ok(event) => notice(event).map(Ok),
            Err(error) => Some(Err(error.to_string())),
        };
        let Some(notice) = notice else { continue };
        let over = notice.is_err();
        if notices.send(notice).await.is_err() || over {
            return;
        }
    }
}

fn notice(event: Event) -> Option<Notice> {
    Some(match event {
        Event::Outgoing(Outgoing::Publish(id)) => Notice::Written(id),
        Event::Outgoing(Outgoing::AwaitAck(id)) => Notice::Held(id),
        Event::Outgoing(Outgoing::PingReq) => Notice::Asked,
        Event::Outgoing(Outgoing::PubAck(_)) => Notice::Acknowledged,
        Event::Incoming(Packet::PingResp) => Notice::Answered,
        Event::Incoming(Packet::ConnAck(_)) => Notice::Up { packet_max: None },
        Event::Incoming(Packet::PubAck(ack)) => Notice::Confirmed { id: ack.pkid, refusal: None },
        Event::Incoming(Packet::Publish(publish)) => Notice::Arrived(Arrival {
            topic: publish.topic.clone(),
            payload: publish.payload.clone(),
            receipt: Some(super::Receipt::V311(Receipt(Box::new(publish)))),
        }),
        Event::Incoming(Packet::SubAck(ack)) => {
            let refused = ack.return_codes.iter().any(|code| matches!(code, SubscribeReasonCode::Failure));
            Notice::Subscribed { refusal: refused.then(|| "Failure".to_owned()) }
        }
        _ => return None,
    })
}

// === impl Client ===

impl Client {
    pub(super) fn publish(&self, publication: Publication) -> Result<(), Jammed> {
        let Publication { topic, payload, retain, at_most_once, .. } = publication;
        let qos = if at_most_once { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        jammed(self.0.try_publish(topic, qos, retain, payload))
    }

    pub(super) fn subscribe(&self, filter: &str) -> Result<(), Jammed> {
        jammed(self.0.try_subscribe(filter, QoS::AtLeastOnce))
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
