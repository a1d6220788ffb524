//! Sessions: kept, resumed, taken over, expired, and across a restart.

use super::*;

#[tokio::test]
async fn what_waits_for_a_kept_session_comes_in_order_and_unacked_again_with_dup() {
    let door = Door::open().await;
    let mut listener = door.up(kept("l")).await;
    listener.subscribe("a", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    for number in 0..3 {
        device.publish("a", &number.to_string(), Qos::AtLeastOnce).await;
    }
    let unacked = listener.message().await;
    drop(listener);
    for number in 3..300 {
        device.publish("a", &number.to_string(), Qos::AtLeastOnce).await;
    }
    let mut listener = door.up(kept("l")).await;
    assert!(listener.present);
    for number in 0..300 {
        let message = listener.take().await;
        assert_eq!(message.payload, number.to_string());
        assert_eq!(message.dup, number == 0);
        assert!(number > 0 || message.packet_id == unacked.packet_id);
    }
    assert!(listener.is_quiet().await);
}

#[tokio::test]
async fn sessions_retained_and_queues_survive_a_restart() {
    let door = Door::open().await;
    let mut listener = door.up(kept("l")).await;
    listener.subscribe("a/#", Qos::ExactlyOnce).await;
    let mut device = door.up(kept("d")).await;
    device.publish("a/1", "one", Qos::ExactlyOnce).await;
    device.publish("a/1", "two", Qos::AtLeastOnce).await;
    let first = listener.message().await;
    listener.send(&Packet::PubRec(ack(first.packet_id))).await;
    assert!(matches!(listener.read().await, Packet::PubRel(_)));
    drop(listener);
    device.publish_with("a/kept", "three", Qos::AtLeastOnce, |publish| publish.retain = true).await;
    device.send(&Packet::Publish(message("a/1", "four", Qos::ExactlyOnce, 9))).await;
    assert!(matches!(device.read().await, Packet::PubRec(_)));
    drop(device);

    let door = door.restart().await;
    let mut device = door.up(kept("d")).await;
    assert!(device.present);
    let again = Publish { dup: true, ..message("a/1", "four", Qos::ExactlyOnce, 9) };
    device.send(&Packet::Publish(again)).await;
    assert!(matches!(device.read().await, Packet::PubRec(_)));
    let mut listener = door.up(kept("l")).await;
    assert!(listener.present);
    assert!(matches!(listener.read().await, Packet::PubRel(release) if release.packet_id == first.packet_id));
    listener.send(&Packet::PubComp(ack(first.packet_id))).await;
    for expected in ["two", "three", "four"] {
        assert_eq!(listener.take().await.payload, expected);
    }
    assert!(listener.is_quiet().await, "nothing twice");
    let mut other = door.up(old("o")).await;
    other.subscribe("a/kept", Qos::AtMostOnce).await;
    assert_eq!(other.take().await.payload, "three");
    listener.disconnect().await;
    let door = door.restart().await;
    let mut listener = door.up(kept("l")).await;
    assert!(listener.present && listener.is_quiet().await, "what was acknowledged is gone for good");
}

#[tokio::test]
async fn a_clean_start_forgets_and_an_expiry_ends() {
    let door = Door::open().await;
    let mut client = door.up(kept("c")).await;
    client.subscribe("a", Qos::AtLeastOnce).await;
    drop(client);
    let client = door.up(old("c")).await;
    assert!(!client.present);
    client.disconnect().await;
    assert_eq!(door.broker.stat().sessions, 0);
    let client = door.up(expiring(new("c"), 1)).await;
    client.disconnect().await;
    assert_eq!(door.broker.stat().sessions, 1);
    assert!(door.up(Connect { clean_start: false, ..new("c") }).await.present);
    // The expiry of that connection was none.
    assert_eq!(door.broker.stat().sessions, 0);
    drop(door.up(expiring(new("c"), 1)).await);
    tokio::time::timeout(Duration::from_secs(5), async {
        while door.broker.stat().sessions > 0 {
            // Nobody is told of the end of a session without a connection: looking is all there is.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the session expires");
}

#[tokio::test]
async fn unsubscribe_after_a_resume_is_answered_and_holds() {
    let door = Door::open().await;
    let mut client = door.up(kept("c")).await;
    client.subscribe("a", Qos::AtLeastOnce).await;
    drop(client);
    let mut client = door.up(kept("c")).await;
    for filters in [vec![Arc::from("a"), Arc::from("unknown")], vec![Arc::from("a")]] {
        client.send(&Packet::Unsubscribe(Unsubscribe { packet_id: 3, filters, properties: None })).await;
        assert!(matches!(client.read().await, Packet::UnsubAck(Outcomes { packet_id: 3, .. })));
    }
    client.publish("a", "x", Qos::AtLeastOnce).await;
    assert!(client.is_quiet().await);
}

#[tokio::test]
async fn takeover_race() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("will", Qos::AtLeastOnce).await;
    let mut old_one = door.up(Connect { will: Some(will("will", 0)), ..new("c") }).await;
    let broker = door.broker.clone();
    let (next, ()) = tokio::join!(door.up(Connect { will: Some(will("wrong", 0)), ..new("c") }), async {
        let Packet::Disconnect(goodbye) = old_one.read().await else { panic!("DISCONNECT expected") };
        assert_eq!(goodbye.reason, Reason::TAKEN_OVER);
        assert_eq!(broker.stat().takeovers, 1);
        drop(old_one);
    });
    assert_eq!(listener.take().await.payload, "gone", "the old connection's will");
    let mut next = next;
    next.publish("x", "y", Qos::AtLeastOnce).await;
    assert!(next.closed.is_none() && listener.is_quiet().await, "the new one lives and its will rests");
    drop(next);
    // Whoever comes after is not hit by what is left of those before.
    for _ in 0..200 {
        let lost = door.up(new("c")).await;
        drop(lost);
        let mut client = door.up(new("c")).await;
        assert_eq!(client.publish("x", "y", Qos::AtLeastOnce).await, Reason::SUCCESS);
        drop(client);
    }
    assert_eq!(door.broker.stat().connected, 1);
}

#[tokio::test]
async fn another_user_does_not_get_the_session() {
    let door = Door::open().await;
    let alice = Connect { user: Some(Arc::from("alice")), ..kept("c") };
    drop(door.up(alice).await);
    let mut mallory = door.client(Connect { user: Some(Arc::from("mallory")), ..kept("c") }).await;
    assert!(matches!(mallory.read().await, Packet::ConnAck(ConnAck { reason: Reason::NOT_AUTHORIZED, .. })));
}

#[tokio::test]
async fn sessions_and_subscriptions_have_a_cap() {
    let config = config::Broker { sessions_max: 2, subscriptions_max: 3, ..config::Broker::default() };
    let door = Door::open_with(&config, Arc::new(TempDir::new().expect("folder"))).await;
    let mut one = door.up(new("one")).await;
    let two = door.up(new("two")).await;
    for _ in 0..3 {
        let mut three = door.client(new("three")).await;
        assert!(matches!(three.read().await, Packet::ConnAck(ConnAck { reason: Reason::QUOTA_EXCEEDED, .. })));
    }
    drop(two);
    door.up(new("three")).await;
    for filter in ["a", "b", "c", "a"] {
        assert_eq!(one.subscribe(filter, Qos::AtMostOnce).await, Reason(0));
    }
    assert_eq!(one.subscribe("d", Qos::AtMostOnce).await, Reason::QUOTA_EXCEEDED);
}
