//! The second core: rumqttd's router carries, and what it cannot do is not left to it.

use std::collections::BTreeMap;

use super::*;

fn config() -> config::Broker {
    config::Broker { core: config::BrokerCore::Rumqttd, ..config::Broker::default() }
}

async fn door() -> Door {
    Door::open_with(&config(), Arc::new(TempDir::new().expect("folder"))).await
}

#[tokio::test]
async fn rumqttd_carries_every_topic_at_its_qos() {
    let door = door().await;
    let mut listener = door.up(new("l")).await;
    assert_eq!(listener.subscribe("设备/#", Qos::AtLeastOnce).await, Reason(1));
    assert_eq!(listener.subscribe("+/1", Qos::ExactlyOnce).await, Reason(2));
    let mut device = door.up(new("d")).await;
    let set = PropertySet { content_type: Some(Arc::from("text/plain")), ..PropertySet::default() };
    for qos in QOS {
        let properties = Some(Box::new(set.clone()));
        device.publish_with("设备/1", "你好", qos, |publish| publish.properties = properties).await;
        let message = listener.take().await;
        assert_eq!((&*message.topic, &message.payload[..], message.qos), ("设备/1", "你好".as_bytes(), qos));
        assert_eq!(message.properties.as_deref(), Some(&set));
    }
    assert!(listener.is_quiet().await, "one copy of overlapping filters");
    assert_eq!(door.broker.stat().carried, 3);
}

/// What every listener got of a script of publications, by topic.
async fn deliveries(door: &Door) -> Vec<BTreeMap<String, Vec<String>>> {
    let filters: [&[&str]; 6] =
        [&["#"], &["a/+", "a/#"], &["+/b", "设备/+"], &["a/b", "$data/x"], &["$share/g/a/#"], &["/+/", "a"]];
    let mut listeners = Vec::new();
    for (number, filters) in filters.iter().enumerate() {
        let mut listener = door.up(new(&format!("l{number}"))).await;
        for filter in *filters {
            listener.subscribe(filter, QOS[number % 3]).await;
        }
        listeners.push(listener);
    }
    let mut device = door.up(new("d")).await;
    for round in 0..100 {
        for (number, topic) in ["a/b", "a", "a/b/c", "设备/b", "$data/x", "/x/", "b", "é"].iter().enumerate() {
            device.publish(topic, &format!("{round}"), QOS[(number + round) % 3]).await;
        }
    }
    let mut all = Vec::new();
    for mut listener in listeners {
        let mut got: BTreeMap<String, Vec<String>> = BTreeMap::new();
        while let Ok(Some(packet)) = tokio::time::timeout(Duration::from_millis(300), listener.try_read()).await {
            let Packet::Publish(publish) = packet else { panic!("PUBLISH expected") };
            match publish.qos {
                Qos::AtMostOnce => {}
                Qos::AtLeastOnce => listener.send(&Packet::PubAck(ack(publish.packet_id))).await,
                Qos::ExactlyOnce => {
                    listener.send(&Packet::PubRec(ack(publish.packet_id))).await;
                    let Packet::PubRel(_) = listener.read().await else { panic!("PUBREL expected") };
                    listener.send(&Packet::PubComp(ack(publish.packet_id))).await;
                }
            }
            let text = format!("{:?} {}", publish.qos, String::from_utf8_lossy(&publish.payload));
            got.entry(publish.topic.to_string()).or_default().push(text);
        }
        all.push(got);
    }
    all
}

#[tokio::test]
async fn rumqttd_and_the_own_core_deliver_the_same() {
    let (own, other) = (Door::open().await, door().await);
    let expected = deliveries(&own).await;
    assert_eq!(deliveries(&other).await, expected, "each topic in order, at the same QoS, to the same listeners");
    assert!(expected.iter().all(|got| !got.is_empty()));
    // The rest begins with `$`: a hidden topic, and a shared subscription.
    let figures = |stat: Stat| (stat.delivered, stat.carried, stat.turned_away);
    assert_eq!(figures(own.broker.stat()), (1_900, 0, 0));
    assert_eq!(figures(other.broker.stat()), (1_900, 1_500, 0));
}

#[tokio::test]
async fn rumqttd_loses_nothing_acknowledged_to_a_flood_or_to_those_who_leave_with_a_backlog() {
    let door = door().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("#", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    let mut flood = door.up(old("flood")).await;
    let payload = "x".repeat(1000);
    let publishing = async {
        for number in 0..300 {
            for _ in 0..20 {
                flood.publish("flood", &payload, Qos::AtMostOnce).await;
            }
            device.publish("polite", &number.to_string(), Qos::AtLeastOnce).await;
            if number % 10 == 0 {
                let mut leaving = door.up(old("leaving")).await;
                leaving.subscribe("flood/#", Qos::AtMostOnce).await;
                leaving.subscribe("polite", Qos::AtLeastOnce).await;
                flood.publish("flood", &payload, Qos::AtMostOnce).await;
                drop(leaving);
            }
        }
    };
    let listening = async {
        let mut next = 0;
        while next < 300 {
            let message = listener.take().await;
            if &*message.topic == "polite" {
                assert_eq!(message.payload, next.to_string());
                next += 1;
            }
        }
    };
    tokio::join!(publishing, listening);
    let stat = door.broker.stat();
    assert!(stat.turned_away == 0 && stat.carried > 300, "{stat:?}");
    assert!(door.broker.shared.lock().fanout.is_some(), "the router lives");
}

#[tokio::test]
async fn rumqttd_keeps_no_session_and_forgets_what_is_unsubscribed() {
    let door = door().await;
    let mut client = door.up(kept("c")).await;
    for filter in ["a/#", "a/+"] {
        client.subscribe(filter, Qos::AtLeastOnce).await;
    }
    let filters = vec![Arc::from("a/#")];
    client.send(&Packet::Unsubscribe(Unsubscribe { packet_id: 3, filters, properties: None })).await;
    assert!(matches!(client.read().await, Packet::UnsubAck(_)));
    client.publish("a/b/c", "x", Qos::AtLeastOnce).await;
    client.publish("a/b", "y", Qos::AtMostOnce).await;
    assert_eq!(client.take().await.payload, "y");
    drop(client);
    assert_eq!(door.broker.stat().sessions, 0);
    assert!(!door.up(kept("c")).await.present);
}

#[tokio::test]
async fn rumqttd_is_given_no_more_filters_than_it_can_hold() {
    let config = config::Broker { subscriptions_max: 1_000, ..config() };
    let door = Door::open_with(&config, Arc::new(TempDir::new().expect("folder"))).await;
    let mut client = door.up(new("c")).await;
    for number in 0..64 {
        assert_eq!(client.subscribe(&format!("a/{number}"), Qos::AtMostOnce).await, Reason(0));
    }
    assert_eq!(client.subscribe("b", Qos::AtMostOnce).await, Reason::QUOTA_EXCEEDED);
    assert_eq!(client.subscribe("a/1", Qos::AtMostOnce).await, Reason(0), "it has this one");
    assert_eq!(client.subscribe("$share/g/b", Qos::AtMostOnce).await, Reason(0), "not its business");
}

#[tokio::test]
async fn rumqttd_given_up_leaves_a_broker_that_has_everything() {
    let door = door().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("a/#", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    for number in 0..20 {
        device.publish("a/1", &number.to_string(), Qos::AtLeastOnce).await;
    }
    // What comes out of the router is taken by a task, which did not run since.
    assert!(door.broker.stat().carried < 20);
    door.broker.shared.lock().do_without("a test");
    for number in 20..30 {
        device.publish("a/1", &number.to_string(), Qos::AtLeastOnce).await;
    }
    for number in 0..30 {
        assert_eq!(listener.take().await.payload, number.to_string());
    }
    assert!(listener.is_quiet().await, "nothing twice");
    assert!(door.broker.shared.lock().fanout.is_none());
}
