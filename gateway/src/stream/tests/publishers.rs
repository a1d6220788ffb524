//! Publishers that come, take over, fall silent, break their protocol and go.

use super::*;

#[tokio::test]
async fn threads_have_their_names_and_their_cpus() {
    let cpus = threads::cpus();
    let rig = Rig::new(|config| config.threads = cpus.len());
    assert!(rig.core.responsive(Duration::from_secs(5)).await);
    let mut seen = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
        seen.push((name.trim().to_owned(), allowed.trim().to_owned()));
    }
    for index in 0..cpus.len() {
        let wanted = (format!("sg-stream-{index}"), cpus[cpus.len() - 1 - index].to_string());
        assert!(seen.contains(&wanted), "{wanted:?} is not among {seen:?}");
    }
    rig.close().await;
}

#[tokio::test]
async fn a_new_publisher_takes_over_and_viewers_see_time_go_on() {
    let rig = Rig::new(|_| {});
    let mut first = rig.publish().await;
    first.begin();
    first.send(&[frame(Kind::Key, 10_000, 500), frame(Kind::Delta, 10_040, 500)]);
    rig.until(|info| info.counters.video_frames == 2).await;
    let mut watcher = rig.watch(Container::Flv);
    watcher.frames(2);
    let mut second = rig.publish().await;
    assert!(first.is_closed(), "the old publisher is let go");
    second.begin();
    second.send(&[frame(Kind::Delta, 0, 10), frame(Kind::Key, 40, 700), frame(Kind::Delta, 80, 70)]);
    let seen: Vec<_> =
        (0..2).map(|_| watcher.next().unwrap()).map(|u| (u.kind, u.dts_90k / 90, u.data.len())).collect();
    assert_eq!(seen, [(Kind::Key, 10_080, 704), (Kind::Delta, 10_120, 74)], "no configuration again, no keyless frame");
    // Another configuration is passed on.
    let mut third = rig.publish().await;
    let mut other = avcc();
    other[3] ^= 1;
    third.send(&[unit(Track::Video, Kind::Config, 0, &other), frame(Kind::Key, 0, 9)]);
    assert_eq!(watcher.next().unwrap().kind, Kind::Config);
    assert_eq!(watcher.next().unwrap().dts_90k / 90, 10_160);
    let info = rig.core.list().remove(0);
    assert_eq!((info.counters.takeovers, info.viewers), (2, 1));
    rig.close().await;
}

#[tokio::test]
async fn a_live_stream_is_not_taken_over_where_that_is_off() {
    let rig = Rig::new(|config| config.takeover = false);
    let _first = rig.publish().await;
    assert!(rig.core.publishable(&Rig::name()).is_err());
    let (ours, theirs) = pair();
    rig.hand(theirs, Box::new(FlvSource(Demux::default())), Output::Source { stream: Rig::name() });
    assert!(Push(ours).is_closed());
    assert_eq!(rig.core.refused().publishers, 1);
    assert!(rig.core.list()[0].live);
    rig.close().await;
}

#[tokio::test]
async fn viewers_are_kept_for_the_grace_time_and_then_let_go() {
    let rig = Rig::new(|config| config.grace_seconds = 2);
    let push = rig.publish_key(500).await;
    let mut watcher = rig.watch(Container::Flv);
    watcher.frames(1);
    drop(push);
    rig.until(|info| !info.live && info.viewers == 1).await;
    assert!(rig.core.available(&Rig::name()).await.is_ok());
    assert!(watcher.next().is_none(), "closed after the grace time");
    let gone = Instant::now() + Duration::from_secs(5);
    while !rig.core.list().is_empty() {
        assert!(Instant::now() < gone);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(rig.core.available(&Rig::name()).await, Err(Refusal::NotFound(_))));
    rig.close().await;
}

#[tokio::test]
async fn without_a_grace_time_a_stream_ends_with_its_publisher_and_its_viewers_have_all_of_it() {
    let rig = Rig::new(|config| {
        (config.grace_seconds, config.window_min_ms, config.window_max_ms) = (0, 5_000, 5_000);
    });
    let mut push = rig.publish_key(500).await;
    let mut watcher = rig.watch(Container::Flv);
    watcher.frames(1);
    let mut changes = rig.core.changes();
    push.send(&[frame(Kind::Delta, 40, 500), frame(Kind::Delta, 80, 500)]);
    drop(push);
    loop {
        tokio::time::timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
        match rig.core.list().first() {
            None => break,
            Some(info) => assert!(info.live, "nobody may land on a stream that has ended"),
        }
    }
    assert!(matches!(rig.core.available(&Rig::name()).await, Err(Refusal::NotFound(_))));
    assert_eq!(watcher.frames(2).len(), 2, "what waited for its merge window");
    assert!(watcher.next().is_none());
    rig.close().await;
}

#[tokio::test]
async fn a_silent_publisher_is_let_go() {
    let rig = Rig::new(|config| config.silence_max_seconds = 1);
    let mut push = rig.publish().await;
    assert!(push.is_closed());
    rig.until(|info| !info.live).await;
    rig.close().await;
}

#[tokio::test]
async fn limits_turn_away_what_is_too_much() {
    let rig = Rig::new(|config| (config.viewers_max, config.sources_max) = (1, 1));
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 100)]);
    let mut first = rig.watch(Container::Flv);
    first.frames(1);
    assert!(matches!(rig.core.available(&Rig::name()).await, Err(Refusal::Limit(_))));
    assert!(rig.watch(Container::Flv).next().is_none());
    let other = StreamName::parse("live/other").unwrap();
    assert!(matches!(rig.core.publishable(&other), Err(Refusal::Limit(_))));
    let (ours, theirs) = pair();
    rig.hand(theirs, Box::new(FlvSource(Demux::default())), Output::Source { stream: other });
    assert!(Push(ours).is_closed());
    let refused = rig.core.refused();
    assert_eq!((refused.viewers, refused.publishers), (2, 1));
    // The place is free again when the viewer has left.
    drop(first);
    let patience = Instant::now() + Duration::from_secs(5);
    while rig.core.available(&Rig::name()).await.is_err() {
        assert!(Instant::now() < patience);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.close().await;
}

#[tokio::test]
async fn a_publisher_that_breaks_its_protocol_is_closed_and_its_stream_said_to_be_offline() {
    let mut rig = Rig::new(|_| {});
    let mut push = rig.publish().await;
    push.0.write_all(b"FLV\x01\x05\xff\xff\xff\xff noise noise noise").unwrap();
    assert!(push.is_closed());
    rig.until(|info| !info.live).await;
    let mut words = Vec::new();
    while let Ok(report) = rig.reports.try_recv() {
        assert_eq!((report.device.as_str(), report.product.as_deref()), ("live/gate", Some("ip-camera")));
        words.push(report.word);
    }
    assert!(words.contains(&Word::Event { name: "online".to_owned(), data: Value::Null }), "{words:?}");
    let offline = words.iter().any(|word| matches!(word, Word::Event { name, .. } if name == "offline"));
    assert!(offline, "{words:?}");
    rig.close().await;
}

/// Stumbles, recoverably, over every script tag.
struct Stumbling(FlvSource);

impl Session for Stumbling {
    fn receive(&mut self, now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        let Input::Stream(buffer) = input else { return Ok(()) };
        while let Some(tag) = take_tag(buffer).map_err(|_| Fault::fatal("not FLV"))? {
            let unit = self.0.0.unit(tag.tag, tag.dts_ms, tag.body).map_err(|_| Fault::fatal("not FLV"))?;
            let Some(unit) = unit else { continue };
            if unit.track == Track::Data {
                return Err(Fault::recoverable("a script tag"));
            }
            out.push(Output::Unit(unit));
        }
        self.0.receive(now, Input::Ended { reason: "" }, out)
    }

    fn tick(&mut self, _: Instant, _: &mut Outbox) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

#[tokio::test]
async fn what_follows_a_recoverable_fault_in_the_same_bytes_is_read_at_once() {
    let rig = Rig::new(|_| {});
    let (ours, theirs) = pair();
    let session = Stumbling(FlvSource(Demux::default()));
    rig.hand(theirs, Box::new(session), Output::Source { stream: Rig::name() });
    let script = unit(Track::Data, Kind::Delta, 0, &[2, 0, 1, b'!']);
    let mut bytes = BytesMut::new();
    for unit in [unit(Track::Video, Kind::Config, 0, &avcc()), script.clone(), script, frame(Kind::Key, 0, 100)] {
        bytes.extend_from_slice(&tag(&unit));
    }
    Push(ours).0.write_all(&bytes).unwrap();
    rig.until(|info| info.counters.video_frames == 1).await;
    rig.close().await;
}
