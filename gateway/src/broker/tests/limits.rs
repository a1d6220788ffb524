//! Limits and bad manners: floods, stuck subscribers, reserved topics; and commands.

use super::*;

#[test]
fn an_idle_session_is_small() {
    let size = size_of::<crate::broker::sessions::Session>();
    assert!(size <= 280, "{size} bytes");
}

#[tokio::test]
async fn flooding_neighbour_loses_nothing_acked() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("#", Qos::AtLeastOnce).await;
    let mut flood = door.up(old("flood")).await;
    let mut polite = door.up(old("polite")).await;
    let payload = "x".repeat(1000);
    let flooding = async {
        for _ in 0..20_000 {
            flood.publish("flood", &payload, Qos::AtMostOnce).await;
            tokio::task::yield_now().await;
        }
        for _ in 0..2_000 {
            assert_eq!(flood.publish("flood1", &payload, Qos::AtLeastOnce).await, Reason::SUCCESS);
        }
    };
    let speaking = async {
        for number in 0..500 {
            polite.publish("polite", &number.to_string(), Qos::AtLeastOnce).await;
            tokio::task::yield_now().await;
        }
        polite.publish("polite", "end", Qos::AtLeastOnce).await;
    };
    let listening = async {
        let (mut next, mut flooded) = (0, 0);
        loop {
            let message = listener.take().await;
            match &*message.topic {
                "polite" if message.payload == "end" => {}
                "polite" => {
                    assert_eq!(message.payload, next.to_string());
                    next += 1;
                }
                "flood1" => flooded += 1,
                _ => {}
            }
            if next == 500 && flooded == 2_000 {
                return;
            }
        }
    };
    tokio::join!(flooding, speaking, listening);
    assert_eq!(door.broker.stat().turned_away, 0);
}

#[tokio::test]
async fn a_stuck_subscriber_costs_its_publishers_one_wait() {
    let config = config::Broker { queue_kib: 4, ..config::Broker::default() };
    let door = Door::open_with(&config, Arc::new(TempDir::new().expect("folder"))).await;
    let mut stuck = door.up(old("stuck")).await;
    stuck.subscribe("a", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    let started = Instant::now();
    for _ in 0..200 {
        device.publish("a", &"x".repeat(500), Qos::AtLeastOnce).await;
    }
    assert!(started.elapsed() < PATIENCE * 3, "{:?}", started.elapsed());
    let stat = door.broker.stat();
    assert!(stat.turned_away > 150 && stat.queued_bytes <= 4096, "{stat:?}");
}

#[tokio::test]
async fn a_kept_queue_is_bounded_and_says_what_it_turned_away() {
    let config = config::Broker { queue_kib: 4, ..config::Broker::default() };
    let door = Door::open_with(&config, Arc::new(TempDir::new().expect("folder"))).await;
    let mut listener = door.up(kept("l")).await;
    listener.subscribe("a", Qos::AtLeastOnce).await;
    drop(listener);
    let mut device = door.up(old("d")).await;
    for _ in 0..50 {
        device.publish("a", &"x".repeat(500), Qos::AtLeastOnce).await;
    }
    let stat = door.broker.stat();
    assert!(stat.queued_bytes <= 4096 && stat.turned_away > 40, "{stat:?}");
}

#[tokio::test]
async fn subscribers_that_leave_with_a_backlog_leave_nothing() {
    let door = Door::open().await;
    let mut device = door.up(old("d")).await;
    for round in 0..50 {
        let mut listener = door.up(old(&format!("l{round}"))).await;
        listener.subscribe("a/#", Qos::AtLeastOnce).await;
        for _ in 0..50 {
            device.publish("a/1", "x", Qos::AtMostOnce).await;
        }
        listener.message().await;
        drop(listener);
    }
    let stat = door.broker.stat();
    assert_eq!((stat.sessions, stat.queued_bytes), (1, 0));
}

#[tokio::test]
async fn dollar_topics_are_hidden_and_asked_for_by_name() {
    let door = Door::open().await;
    let mut client = door.up(new("c")).await;
    client.subscribe("#", Qos::AtLeastOnce).await;
    assert_eq!(client.publish("$SYS/fake", "x", Qos::AtLeastOnce).await, Reason::NOT_AUTHORIZED);
    assert!(client.is_quiet().await);
    assert_eq!(client.subscribe("$SYS/broker/version", Qos::AtMostOnce).await, Reason(0));
    assert!(client.take().await.payload.starts_with(b"sluicegate"));
}

#[tokio::test]
async fn a_command_goes_to_the_device_alone_or_says_that_nobody_listens() {
    let door = Door::open().await;
    let mut device = door.up(old("dev-1")).await;
    device.subscribe("v1/devices/me/attributes", Qos::AtLeastOnce).await;
    let mut other = door.up(old("dev-2")).await;
    other.subscribe("v1/devices/me/attributes", Qos::AtLeastOnce).await;
    let attachment = device.attachment.as_mut().expect("attached");
    let publication = Publication {
        topic: Arc::from("v1/devices/dev-1/attributes"),
        payload: Bytes::from_static(b"{}"),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: None,
    };
    let ask = |publication| Request::Command { ticket: Ticket(1), publication };
    let answer = attachment.request(ask(publication.clone())).await;
    assert!(matches!(answer, Some(Event::Commanded { outcome: Ok(()), .. })));
    let nobody = Publication { topic: Arc::from("v1/devices/dev-2/attributes"), ..publication };
    let answer = attachment.request(ask(nobody)).await;
    assert!(matches!(answer, Some(Event::Commanded { outcome: Err(Refusal::NotFound(_)), .. })));
    assert_eq!(&*device.take().await.topic, "v1/devices/me/attributes");
    assert!(other.is_quiet().await);
}
