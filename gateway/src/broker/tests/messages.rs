//! Messages from publisher to subscriber: topics, QoS, options, properties, shared subscriptions.

use super::*;

#[tokio::test]
async fn topic_first_char_not_ascii() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("设备/#", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    device.publish("设备/1", "你好", Qos::AtLeastOnce).await;
    let message = listener.take().await;
    assert_eq!((&*message.topic, &message.payload[..]), ("设备/1", "你好".as_bytes()));
}

#[tokio::test]
async fn qos_out_is_the_lower_of_both() {
    let door = Door::open().await;
    for published in QOS {
        for subscribed in QOS {
            let mut listener = door.up(old("l")).await;
            assert_eq!(listener.subscribe("a", subscribed).await, Reason(subscribed as u8));
            let mut device = door.up(new("d")).await;
            device.publish("a", "x", published).await;
            assert_eq!(listener.take().await.qos, published.min(subscribed));
        }
    }
}

#[tokio::test]
async fn qos2_duplicate_not_delivered_twice() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("a", Qos::ExactlyOnce).await;
    let mut device = door.up(kept("d")).await;
    device.send(&Packet::Publish(message("a", "one", Qos::ExactlyOnce, 5))).await;
    assert!(matches!(device.read().await, Packet::PubRec(_)));
    drop(device);
    // The connection is lost before the release; the client repeats on the next one.
    let mut device = door.up(kept("d")).await;
    let again = Publish { dup: true, ..message("a", "one", Qos::ExactlyOnce, 5) };
    device.send(&Packet::Publish(again)).await;
    assert!(matches!(device.read().await, Packet::PubRec(_)));
    device.send(&Packet::PubRel(ack(5))).await;
    assert!(matches!(device.read().await, Packet::PubComp(answer) if answer.reason == Reason::SUCCESS));
    device.publish("a", "two", Qos::ExactlyOnce).await;
    assert_eq!(listener.take().await.payload, "one");
    assert_eq!(listener.take().await.payload, "two");
    assert!(listener.is_quiet().await);
}

#[tokio::test]
async fn acks_out_of_order_and_unsolicited_are_taken() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("a", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    for payload in ["1", "2", "3"] {
        device.publish("a", payload, Qos::AtLeastOnce).await;
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(listener.message().await.packet_id);
    }
    for id in [ids[2], 999, ids[0], ids[1]] {
        listener.send(&Packet::PubAck(ack(id))).await;
    }
    assert!(listener.closed.is_none());
    assert_eq!(door.broker.stat().queued_bytes, 0);
}

#[tokio::test]
async fn overlapping_subscriptions_give_one_copy_with_all_identifiers() {
    let door = Door::open().await;
    let mut listener = door.up(new("l")).await;
    for (filter, qos, identifier) in
        [("a/#", Qos::AtMostOnce, 1), ("a/+", Qos::ExactlyOnce, 2), ("+/b", Qos::AtLeastOnce, 3)]
    {
        listener.subscribe_with(filter, qos, |_, set| set.subscription_identifiers = vec![identifier]).await;
    }
    let mut device = door.up(new("d")).await;
    device.publish("a/b", "x", Qos::ExactlyOnce).await;
    let message = listener.take().await;
    let mut identifiers = message.properties.expect("properties").subscription_identifiers;
    identifiers.sort_unstable();
    assert_eq!((message.qos, identifiers), (Qos::ExactlyOnce, vec![1, 2, 3]));
    assert!(listener.is_quiet().await, "one copy");
}

#[tokio::test]
async fn subscription_options_are_kept_to() {
    let door = Door::open().await;
    let mut client = door.up(new("c")).await;
    client.subscribe_with("own", Qos::AtMostOnce, |filter, _| filter.no_local = true).await;
    client.subscribe_with("kept", Qos::AtMostOnce, |filter, _| filter.retain_as_published = true).await;
    client.publish("own", "x", Qos::AtMostOnce).await;
    client.publish_with("kept", "y", Qos::AtMostOnce, |publish| publish.retain = true).await;
    let message = client.take().await;
    assert_eq!((&*message.topic, message.retain), ("kept", true));
    // Handling 1: retained messages only for a new subscription. Handling 2: never.
    client.subscribe_with("kept", Qos::AtMostOnce, |filter, _| filter.retain_handling = 1).await;
    assert!(client.is_quiet().await);
    client.subscribe_with("+", Qos::AtMostOnce, |filter, _| filter.retain_handling = 2).await;
    assert!(client.is_quiet().await);
    client.subscribe("kept", Qos::AtMostOnce).await;
    assert_eq!(client.take().await.payload, "y", "sent anew at every subscription");
}

#[tokio::test]
async fn v5_properties_to_v311_subscriber() {
    let door = Door::open().await;
    let mut old_one = door.up(old("o")).await;
    let mut new_one = door.up(new("n")).await;
    old_one.subscribe("a", Qos::AtLeastOnce).await;
    new_one.subscribe("a", Qos::AtLeastOnce).await;
    let mut device = door.up(new("d")).await;
    let set = PropertySet {
        content_type: Some(Arc::from("text/plain")),
        user: vec![(Arc::from("k"), Arc::from("v"))],
        payload_format: Some(1),
        ..PropertySet::default()
    };
    device.publish_with("a", "x", Qos::AtLeastOnce, |publish| publish.properties = Some(Box::new(set.clone()))).await;
    assert_eq!(old_one.take().await.payload, "x");
    assert_eq!(new_one.take().await.properties.as_deref(), Some(&set));
}

#[tokio::test]
async fn shared_members_share_and_a_dropped_one_with_unacked_messages_harms_nobody() {
    let door = Door::open().await;
    let mut one = door.up(kept("one")).await;
    let mut two = door.up(old("two")).await;
    for member in [&mut one, &mut two] {
        member.subscribe("$share/g/a/#", Qos::AtLeastOnce).await;
        member.subscribe("$share/g/b", Qos::AtLeastOnce).await;
    }
    let mut device = door.up(old("d")).await;
    for _ in 0..4 {
        device.publish("a/1", "x", Qos::AtLeastOnce).await;
    }
    one.message().await;
    drop(one);
    for _ in 0..3 {
        device.publish("b", "y", Qos::AtLeastOnce).await;
    }
    let mut topics = Vec::new();
    for _ in 0..5 {
        topics.push(two.take().await.topic.to_string());
    }
    assert_eq!(topics, ["a/1", "a/1", "b", "b", "b"]);
    let mut one = door.up(kept("one")).await;
    assert!(one.take().await.dup);
}

#[tokio::test]
async fn a_client_gets_no_more_in_flight_than_it_takes() {
    let door = Door::open().await;
    let set = PropertySet { receive_max: Some(2), ..PropertySet::default() };
    let mut listener = door.up(Connect { properties: Some(Box::new(set)), ..new("l") }).await;
    listener.subscribe("a", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    for _ in 0..5 {
        device.publish("a", "x", Qos::AtLeastOnce).await;
    }
    let first = listener.message().await.packet_id;
    listener.message().await;
    assert!(listener.is_quiet().await);
    listener.send(&Packet::PubAck(ack(first))).await;
    listener.message().await;
}

#[tokio::test]
async fn expired_messages_are_not_delivered() {
    let door = Door::open().await;
    let mut listener = door.up(kept("l")).await;
    listener.subscribe("a", Qos::AtLeastOnce).await;
    drop(listener);
    let mut device = door.up(new("d")).await;
    let expiring = |seconds| {
        move |publish: &mut Publish| {
            let set = PropertySet { message_expiry: Some(seconds), ..PropertySet::default() };
            publish.properties = Some(Box::new(set));
        }
    };
    device.publish_with("a", "late", Qos::AtLeastOnce, expiring(0)).await;
    device.publish_with("a", "good", Qos::AtLeastOnce, expiring(100)).await;
    let mut listener = door.up(kept("l")).await;
    assert_eq!(listener.take().await.payload, "good");
    assert_eq!(door.broker.stat().outdated, 1);
}
