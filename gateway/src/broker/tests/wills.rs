//! Wills: whose, when, and what they report.

use super::*;

#[tokio::test]
async fn will_belongs_to_connection() {
    let mut door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("#", Qos::AtLeastOnce).await;
    door.up(Connect { will: Some(will("silent", 0)), ..old("a") }).await.disconnect().await;
    drop(door.up(Connect { will: Some(will("loud", 0)), ..old("b") }).await);
    assert_eq!(&*listener.take().await.topic, "loud");
    let mut asked = door.up(Connect { will: Some(will("asked", 0)), ..new("c") }).await;
    asked.send(&Packet::Disconnect(Goodbye { reason: Reason::DISCONNECT_WITH_WILL, properties: None })).await;
    assert_eq!(&*listener.take().await.topic, "asked");
    drop(door.up(Connect { will: Some(will("/meter/m-1/offline", 0)), ..old("m-1") }).await);
    listener.take().await;
    let report = door.wills.recv().await.expect("a will's report");
    assert_eq!(report.reports[0].device, "m-1");
}

#[tokio::test]
async fn a_delayed_will_waits_for_the_client_to_come_back() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("will/#", Qos::AtLeastOnce).await;
    let delayed = |topic: &str| expiring(Connect { will: Some(will(topic, 1)), clean_start: false, ..new("c") }, 60);
    drop(door.up(delayed("will/1")).await);
    let back = door.up(delayed("will/2")).await;
    assert!(listener.is_quiet().await);
    drop(back);
    let started = Instant::now();
    assert_eq!(&*listener.take().await.topic, "will/2");
    assert!(started.elapsed() >= Duration::from_millis(800));
    // A session that ends takes its delay with it.
    drop(door.up(Connect { will: Some(will("will/3", 600)), ..new("d") }).await);
    assert_eq!(&*listener.take().await.topic, "will/3");
}
