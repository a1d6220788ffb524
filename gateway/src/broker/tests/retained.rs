//! What is retained, who gets it, and how much of it there may be.

use super::*;

#[tokio::test]
async fn retained_500_all_delivered() {
    let door = Door::open().await;
    let mut device = door.up(old("d")).await;
    for number in 0..500 {
        let topic = format!("kept/{number}");
        device.publish_with(&topic, "x", Qos::AtLeastOnce, |publish| publish.retain = true).await;
        device.publish_with(&format!("other/{number}"), "x", Qos::AtMostOnce, |publish| publish.retain = true).await;
    }
    for qos in QOS {
        let mut listener = door.up(old("l")).await;
        listener.subscribe("kept/+", qos).await;
        for _ in 0..500 {
            let message = listener.take().await;
            assert!(message.retain && message.topic.starts_with("kept/"));
        }
        assert!(listener.is_quiet().await);
    }
}

#[tokio::test]
async fn only_a_retained_empty_publish_clears() {
    let door = Door::open().await;
    let mut device = door.up(old("d")).await;
    device.publish_with("a", "x", Qos::AtLeastOnce, |publish| publish.retain = true).await;
    device.publish("a", "", Qos::AtLeastOnce).await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("#", Qos::AtLeastOnce).await;
    assert_eq!(listener.take().await.payload, "x");
    device.publish_with("a", "", Qos::AtLeastOnce, |publish| publish.retain = true).await;
    assert!(!listener.take().await.retain);
    listener.subscribe("a", Qos::AtLeastOnce).await;
    assert!(listener.is_quiet().await);
}

#[tokio::test]
async fn retained_messages_have_a_cap() {
    let config = config::Broker { retained_mib: 1, ..config::Broker::default() };
    let door = Door::open_with(&config, Arc::new(TempDir::new().expect("folder"))).await;
    let mut device = door.up(old("d")).await;
    let large = "x".repeat(100 * 1024);
    for number in 0..20 {
        device.publish_with(&format!("a/{number}"), &large, Qos::AtLeastOnce, |publish| publish.retain = true).await;
    }
    let stat = door.broker.stat();
    assert!(stat.retained_bytes <= 1024 * 1024 && stat.retained == 10 && stat.retained_refused == 10, "{stat:?}");
}
